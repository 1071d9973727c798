"""Samplers: invariants, exact laws with exact denoisers, and a numpy reference of the confidence sampler."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.samplers.absorbing import Ancestral, Confidence
from motionaura_jax.diffusion.sampling import sample
from motionaura_jax.diffusion.schedules import Cosine, Discrete, Linear

VOCAB, BATCH, GRID, SIZE = 5, 3, (2, 3, 3), 18
RNG = np.random.default_rng(3)
TABLE = RNG.normal(size=(VOCAB + 1, VOCAB)).astype(np.float32)
PLACES = RNG.normal(size=(*GRID, VOCAB)).astype(np.float32)
SAMPLERS = {
    "confidence": Confidence(vocab_size=VOCAB),
    "remask": Confidence(vocab_size=VOCAB, remask=2),
    "halton": Confidence(vocab_size=VOCAB, reveal="halton", schedule=Linear()),
    "random": Confidence(vocab_size=VOCAB, reveal="random", schedule=Discrete(base=Linear(), T=100)),
    "ancestral": Ancestral(vocab_size=VOCAB),
    "remdm": Ancestral(vocab_size=VOCAB, remask="rescale", remask_rate=0.5),
}


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def neighbor_logits(x, m, _=None):
    """Return logits that depend on the left neighbor, the position and m."""
    return jnp.asarray(TABLE)[jnp.roll(x, 1, -1)] * (1 + m[:, None, None, None, None]) + PLACES


@functools.cache
def compiled(denoise):
    return jax.jit(functools.partial(sample, denoise), static_argnames="steps")


def blank(batch, grid, vocab=VOCAB):
    return jnp.full((batch, *grid), vocab)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("confidence", 7), ("remask", 7), ("halton", 30), ("random", 1), ("ancestral", 12), ("remdm", 12)],
)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), temperature=st.floats(0, 2), top_p=st.floats(0.1, 1))
def test_everything_is_revealed_and_nothing_known_is_touched(name, steps, seed, share, temperature, top_p):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, VOCAB, (BATCH, *GRID))
    known = rng.random(x.shape) < share
    known[0] = False
    sampler = type(SAMPLERS[name])(**{**vars(SAMPLERS[name]), "temperature": temperature, "top_p": top_p})
    start = np.where(known, x, VOCAB)
    result = compiled(neighbor_logits)(sampler, keys(BATCH, seed), start, steps=steps)
    tokens, masked = np.asarray(result.x), np.asarray(result.trace.masked)
    assert tokens.min() >= 0 and tokens.max() < VOCAB
    np.testing.assert_array_equal(tokens[known], x[known])
    counts = np.concatenate([(~known).sum((1, 2, 3))[None], masked])
    assert (counts[-1] == 0).all()
    assert name == "remdm" or (np.diff(counts, axis=0) <= 0).all()
    if name not in ("ancestral", "remdm"):
        assert (np.diff(counts, axis=0)[counts[:-1] > 0] < 0).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_key_alone(name):
    run, order = compiled(neighbor_logits), jnp.array([2, 0, 1])
    whole = run(SAMPLERS[name], keys(3), blank(3, GRID), steps=7).x
    np.testing.assert_array_equal(run(SAMPLERS[name], keys(3)[order], blank(3, GRID), steps=7).x, whole[order])
    np.testing.assert_array_equal(run(SAMPLERS[name], keys(3)[2:], blank(1, GRID), steps=7).x[0], whole[2])
    assert not np.array_equal(whole[0], whole[1])


def test_new_settings_and_inputs_do_not_recompile():
    traces = []

    def denoise(x, m, _):
        traces.append(1)
        return neighbor_logits(x, m)

    run = compiled(denoise)
    run(Confidence(vocab_size=VOCAB, top_p=0.9, top_k=3), keys(BATCH), blank(BATCH, GRID), steps=3)
    first = len(traces)
    for value in (0.0, 0.5):
        sampler = Confidence(vocab_size=VOCAB, temperature=value, choice_temperature=value, top_p=value, top_k=2)
        run(sampler, keys(BATCH, 1), blank(BATCH, GRID).at[0, 0].set(1), steps=3)
    assert len(traces) == first


def reference_confidence(x, steps):
    """Run greedy MaskGIT without choice noise in plain numpy loops."""
    x, counts = x.copy(), []
    free = (x == VOCAB).sum()
    for k in range(steps):
        m = np.sin(np.pi / 2 * (1 - k / steps)) * free / SIZE
        logits = np.asarray(neighbor_logits(jnp.asarray(x[None]), jnp.array([m])))[0]
        best, score = logits.argmax(-1), special.log_softmax(logits.astype(np.float64), -1).max(-1)
        places = sorted(np.argwhere(x == VOCAB).tolist(), key=lambda p: -score[tuple(p)])
        left = max(min(int(np.ceil(free * np.cos(np.pi / 2 * (k + 1) / steps) - 1e-9)), len(places) - 1), 0)
        for place in places[: len(places) - left]:
            x[tuple(place)] = best[tuple(place)]
        counts.append(left)
    return x, counts


@pytest.mark.parametrize("steps", [7, 30])
def test_confidence_equals_its_reference(steps):
    x = np.where(RNG.random((BATCH, *GRID)) < 0.7, VOCAB, RNG.integers(0, VOCAB, (BATCH, *GRID)))
    greedy = Confidence(vocab_size=VOCAB, temperature=0.0, choice_temperature=0.0)
    result = compiled(neighbor_logits)(greedy, keys(BATCH), x, steps=steps)
    for i in range(BATCH):
        tokens, counts = reference_confidence(x[i], steps)
        np.testing.assert_array_equal(result.x[i], tokens)
        np.testing.assert_array_equal(result.trace.masked[:, i], counts)


@pytest.mark.parametrize("sampler", [Confidence(vocab_size=VOCAB, schedule=Linear()), Ancestral(vocab_size=VOCAB)])
def test_the_denoiser_is_told_the_masked_share_of_all_tokens(sampler):
    """As in training, m is that share: tokens known at the start count as visible."""
    seen = []

    def denoise(x, m, _):
        jax.debug.callback(lambda *values: seen.append(values), m, (x == VOCAB).mean((1, 2, 3)), ordered=True)
        return jnp.asarray(TABLE)[x]

    grid = (4, 8, 8)
    known = np.zeros((2, *grid), bool)
    known[0, :2], known[1, :1] = True, True
    x = RNG.integers(0, VOCAB, known.shape)
    jax.block_until_ready(sample(denoise, sampler, keys(2), np.where(known, x, VOCAB), steps=4))
    jax.effects_barrier()
    told, masked = np.array(seen).transpose(1, 0, 2)
    levels = np.asarray(sampler.schedule.masked(1 - np.arange(4) / 4))
    np.testing.assert_allclose(told, levels[:, None] * [0.5, 0.75], rtol=1e-5)
    np.testing.assert_allclose(told, masked, atol=0.1)


def test_choice_noise_follows_its_annealed_temperature():
    """With two tokens and two steps, the first choice is logistic in the confidence difference over the temperature."""

    def denoise(x, m, _):
        margin = jnp.array([2.0, 0.5])  # for code 0 in the first step and code 1 in the second: the code marks the step
        sign = jnp.where(m > 0.75, 1.0, -1.0)[:, None, None, None]
        return jnp.stack([sign * margin, jnp.zeros((len(x), 1, 1, 2))], -1)

    sampler = Confidence(vocab_size=2, schedule=Linear(), temperature=0.0, choice_temperature=1.6)
    tokens = compiled(denoise)(sampler, keys(3000), blank(3000, (1, 1, 2), 2), steps=2).x
    gap = np.log1p(np.exp(-0.5)) - np.log1p(np.exp(-2.0))
    first = int((tokens[..., 0] == 0).sum())
    assert bool((tokens.sum((1, 2, 3)) == 1).all())
    assert stats.binomtest(first, 3000, special.expit(gap / 0.8)).pvalue > 1e-3


PAIR = np.array([[0.30, 0.05, 0.02], [0.03, 0.25, 0.05], [0.05, 0.05, 0.20]])


def pair_logits(x, m, _):
    """Return exact conditionals of independent token pairs along the last axis, each with the joint distribution PAIR."""
    joint = jnp.asarray(PAIR)
    left, right = x[..., 0::2], x[..., 1::2]
    given_right = jnp.concatenate([joint.T, joint.sum(1)[None]])[right]
    given_left = jnp.concatenate([joint, joint.sum(0)[None]])[left]
    return jnp.log(jnp.stack([given_right, given_left], -2).reshape(*x.shape, 3))


def pair_counts(tokens):
    return np.bincount(np.ravel(3 * tokens[..., 0::2] + tokens[..., 1::2]), minlength=9)


@pytest.mark.parametrize("steps", [2, 40])
def test_ancestral_reproduces_the_law_of_its_steps(steps):
    """Both tokens of a pair fall into one step with probability sum (dm)^2 and are then independent."""
    sampler = Ancestral(vocab_size=3, schedule=Cosine())
    tokens = compiled(pair_logits)(sampler, keys(8), blank(8, (1, 16, 64), 3), steps=steps).x
    together = (np.diff(np.sin(np.pi / 2 * np.linspace(0, 1, steps + 1))) ** 2).sum()
    law = (1 - together) * PAIR + together * np.outer(PAIR.sum(1), PAIR.sum(0))
    assert stats.chisquare(pair_counts(tokens), 8 * 16 * 32 * law.ravel()).pvalue > 1e-3


RULES = [("cap", 0.3), ("rescale", 0.5), ("rescale", 1.0)]


@pytest.mark.parametrize(("rule", "rate"), RULES)
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_masking_again_leaves_the_marginals_of_the_process(rule, rate, schedule):
    """The kernel of a step maps the law of a token at u, (1 - m_u, m_u), to that at s, in float64 arithmetic."""
    levels = np.asarray(schedule.masked(jnp.linspace(1.0, 0.0, 21)), np.float64)
    sampler = Ancestral(vocab_size=VOCAB, schedule=schedule, remask=rule, remask_rate=rate)
    for now, after in itertools.pairwise(levels):
        reveal, again = (float(value) for value in sampler.rates(jnp.float32(now), jnp.float32(after)))
        most = min(1.0, after / (1.0 - now)) if now < 1 else 1.0
        assert again == pytest.approx(min(rate, most) if rule == "cap" else rate * most, abs=1e-5)
        assert -1e-6 <= reveal <= 1 + 1e-6
        assert now * (1 - reveal) + (1 - now) * again == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize(("rule", "rate"), RULES)
def test_masking_again_follows_the_schedule_and_keeps_the_law(rule, rate):
    sampler = Ancestral(vocab_size=3, schedule=Linear(), remask=rule, remask_rate=rate)
    x = blank(8, (1, 16, 64), 3)
    result = compiled(pair_logits)(sampler, keys(8), x, steps=40)
    share = np.asarray(result.trace.masked).sum(1) / x.size
    expected = 1 - np.arange(1, 41) / 40
    np.testing.assert_allclose(share, expected, atol=4.5 * np.sqrt(0.25 / x.size))
    assert np.abs(pair_counts(result.x) / (8 * 16 * 32) - PAIR.ravel()).max() < 0.02


def test_tokens_that_are_given_are_never_masked_again():
    x = np.where(RNG.random((4, *GRID)) < 0.5, 1, VOCAB)
    sampler = Ancestral(vocab_size=VOCAB, remask="rescale", remask_rate=1.0)
    result = compiled(neighbor_logits)(sampler, keys(4), x, steps=9)
    np.testing.assert_array_equal(np.asarray(result.x)[x == 1], 1)


@pytest.mark.parametrize("reveal", ["random", "halton"])
def test_one_token_a_step_in_a_blind_order_is_exact(reveal):
    sampler = Confidence(vocab_size=3, reveal=reveal)
    tokens = compiled(pair_logits)(sampler, keys(1000), blank(1000, (1, 1, 4), 3), steps=4).x
    assert stats.chisquare(pair_counts(tokens), 2000 * PAIR.ravel()).pvalue > 1e-3


def test_temperature_sharpens_the_drawn_law():
    def denoise(x, m, _):
        return jnp.broadcast_to(jnp.log(jnp.array([0.6, 0.3, 0.1])), (*x.shape, 3))

    half = {"vocab_size": 3, "temperature": 0.5}
    for sampler in (Ancestral(**half), Confidence(reveal="halton", **half)):
        tokens = compiled(denoise)(sampler, keys(2), blank(2, (1, 32, 32), 3), steps=4).x
        law = np.array([0.36, 0.09, 0.01]) / 0.46
        assert stats.chisquare(np.bincount(np.ravel(tokens), minlength=3), 2048 * law).pvalue > 1e-3


def test_steps_without_a_new_token_take_no_forward_pass():
    calls = []

    def denoise(x, m, _):
        jax.debug.callback(lambda: calls.append(1))
        return neighbor_logits(x, m)

    x = blank(1, GRID).at[:, 1].set(0)
    result = compiled(denoise)(Ancestral(vocab_size=VOCAB), keys(1), x, steps=100)
    jax.block_until_ready(result)
    jax.effects_barrier()
    revealing = (np.diff(np.asarray(result.trace.masked)[:, 0], prepend=9) < 0).sum()
    assert len(calls) == result.trace.evaluations[-1] == revealing <= 9
    calls.clear()
    result = compiled(denoise)(Confidence(vocab_size=VOCAB), keys(1), x, steps=30)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert len(calls) == result.trace.evaluations[-1] == 9  # one token per step until none is left


def one_object(x, m, _):
    """Return exact conditionals of a scene with background 0 and a single object 1 at a uniformly random position."""
    hidden = (x == 2).sum((1, 2, 3), keepdims=True)
    found = (x == 1).any((1, 2, 3), keepdims=True)
    share = jnp.broadcast_to(jnp.where(found, 0.0, 1.0 / jnp.maximum(hidden, 1)), x.shape)
    return jnp.log(jnp.stack([1.0 - share, share], -1))


@pytest.mark.parametrize("reveal", ["confidence", "halton", "random"])
def test_blind_orders_leave_the_object_out_half_as_often(reveal):
    """16 places in 4 steps of 1, 3, 5 and 7 tokens.  By confidence the object can only appear in the last step."""
    sampler = Confidence(vocab_size=2, reveal=reveal, choice_temperature=0.0)
    result = compiled(one_object)(sampler, keys(3000), blank(3000, (1, 4, 4), 2), steps=4)
    np.testing.assert_array_equal(result.trace.masked[:, 0], [15, 12, 7, 0])
    absent = int((result.x.sum((1, 2, 3)) == 0).sum())
    last = (6 / 7) ** 7
    rate = last if reveal == "confidence" else 15 / 16 * (14 / 15) ** 3 * (11 / 12) ** 5 * last
    assert stats.binomtest(absent, 3000, rate).pvalue > 1e-3


def test_halton_draws_fewer_neighbors_together():
    """Mismatched neighbors appear only if both were sampled in the same step."""

    def denoise(x, m, _):
        partner = jnp.stack([x[..., 1::2], x[..., 0::2]], -1).reshape(x.shape)
        return jnp.where(partner[..., None] == 2, 0.0, jnp.where(jnp.arange(2) == partner[..., None], 0.0, -jnp.inf))

    broken = {}
    for reveal in ("halton", "random"):
        sampler = Confidence(vocab_size=2, reveal=reveal)
        tokens = np.asarray(compiled(denoise)(sampler, keys(128), blank(128, (1, 8, 8), 2), steps=6).x)
        broken[reveal] = (tokens[..., 0::2] != tokens[..., 1::2]).sum()
    assert broken["halton"] < 0.75 * broken["random"]


def test_remasking_replaces_tokens_the_denoiser_no_longer_believes():
    def denoise(x, m, _):
        sure = jnp.where(m > 0.5, 0, 1)[:, None, None, None, None] == jnp.arange(2)
        return jnp.broadcast_to(jnp.where(sure, 0.0, -8.0), (*x.shape, 2))

    x, zeros = blank(8, (1, 6, 6), 2).at[:, 0, 0].set(0), {}
    for remask in (0, 1, 3):
        sampler = Confidence(vocab_size=2, remask=remask, schedule=Linear(), choice_temperature=0.0)
        result = compiled(denoise)(sampler, keys(8), x, steps=8)
        assert (np.diff(result.trace.masked, axis=0) < 0).all()
        assert bool((result.x[:, 0, 0] == 0).all())
        zeros[remask] = int((result.x[:, 0, 1:] == 0).sum())
    assert zeros[3] < zeros[1] < zeros[0]


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="remask='sometimes'"):
        Ancestral(vocab_size=VOCAB, remask="sometimes")
    with pytest.raises(UserError, match="reveal"):
        Confidence(vocab_size=VOCAB, reveal="hilbert")
    with pytest.raises(UserError, match="remask"):
        Confidence(vocab_size=VOCAB, reveal="halton", remask=1)
    with pytest.raises(UserError, match="num_inference_steps=0"):
        sample(neighbor_logits, SAMPLERS["confidence"], keys(1), blank(1, GRID), steps=0)
    with pytest.raises(ValueError, match="denoiser: logits"):
        sample(neighbor_logits, Ancestral(vocab_size=VOCAB + 1), keys(1), blank(1, GRID, VOCAB + 1), steps=2)
