"""Corruption and losses against counts, enumeration and float64 closed forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.absorbing import Absorbing
from motionaura_jax.diffusion.known import known_frames
from motionaura_jax.diffusion.likelihood import nelbo
from motionaura_jax.diffusion.schedules import Cosine, Discrete, Linear
from motionaura_jax.ops.cross_entropy import cross_entropy
from motionaura_jax.ops.prediction import Prediction

VOCAB, GRID, SIZE = 5, (1, 2, 4), 8
ELBO = Absorbing(vocab_size=VOCAB, schedule=Cosine(), objective="elbo")
ANY_ORDER = Absorbing(vocab_size=VOCAB, schedule=Linear(), objective="any_order")
TRAIN = Absorbing(vocab_size=VOCAB, schedule=Linear())
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(VOCAB + 1, VOCAB))
PLACES = RNG.normal(size=(SIZE, VOCAB))

corrupt = jax.jit(Absorbing.corrupt, static_argnums=0)
loss = jax.jit(lambda process, logits, *rest: process.loss(Prediction(values=logits), *rest), static_argnums=0)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def toy_logits(x):
    """Return float64 logits of a denoiser that reads the left neighbor."""
    x = np.asarray(x)
    flat = x.reshape(len(x), -1)
    return (TABLE[np.roll(flat, 1, 1)] + PLACES[: flat.shape[1]]).reshape(*x.shape, VOCAB)


def toy_denoise(x, m):
    left = jnp.roll(x.reshape(len(x), -1), 1, 1)
    return (jnp.asarray(TABLE)[left] + jnp.asarray(PLACES)[: left.shape[1]]).reshape(*x.shape, VOCAB)


def entropies(x_t, x0):
    """Return -log p(x0 | x_t) of the toy denoiser per token, in float64."""
    log_p = special.log_softmax(toy_logits(x_t), -1)
    return -np.take_along_axis(log_p, np.asarray(x0)[..., None], -1)[..., 0]


def chi_square(observed, expected):
    keep = np.asarray(expected) >= 5
    observed = np.append(np.asarray(observed)[keep], np.sum(np.asarray(observed)[~keep]))
    expected = np.append(np.asarray(expected)[keep], np.sum(np.asarray(expected)[~keep]))
    observed, expected = observed[expected > 0], expected[expected > 0]
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


def test_marginals_are_independent_bernoulli():
    count, u = 6000, 0.37
    x0 = jnp.asarray(RNG.integers(0, VOCAB, (count, *GRID)))
    x_t, target = corrupt(ELBO, x0, jnp.full(count, u), keys(count))
    m = np.sin(np.pi * u / 2)
    masked = np.asarray(x_t == VOCAB).reshape(count, -1)
    assert chi_square(np.bincount(masked.sum(1), minlength=9), count * stats.binom.pmf(np.arange(9), SIZE, m)) > 1e-3
    pairs = np.bincount(2 * masked[:, 0] + masked[:, 1], minlength=4)
    assert chi_square(pairs, count * np.outer([1 - m, m], [1 - m, m]).ravel()) > 1e-3
    np.testing.assert_array_equal(target, x0)
    np.testing.assert_array_equal(np.asarray(x_t)[np.asarray(x_t) != VOCAB], np.asarray(x0)[np.asarray(x_t) != VOCAB])


def test_training_masks_at_least_one_token_at_clipped_level():
    count = 4000
    x0 = jnp.zeros((count, *GRID), jnp.int32)
    x_t, _ = corrupt(TRAIN, x0, jnp.full(count, 1e-6), keys(count))
    numbers = np.asarray((x_t == VOCAB).sum((1, 2, 3)))
    law = stats.binom.pmf(np.arange(9), SIZE, 1 / SIZE)
    law[1], law[0] = law[0] + law[1], 0
    assert numbers.min() == 1
    assert chi_square(np.bincount(numbers, minlength=9), count * law) > 1e-3
    three = Absorbing(vocab_size=VOCAB, schedule=Linear(), min_masked=3)
    x_t, _ = corrupt(three, x0, jnp.full(count, 1e-6), keys(count))
    assert (x_t == VOCAB).sum((1, 2, 3)).min() == 3
    np.testing.assert_allclose(TRAIN.level(jnp.array([0.01, 0.5]), GRID), [1 / SIZE, 0.5])


@pytest.mark.parametrize(
    "process", [TRAIN, ELBO, ANY_ORDER, Absorbing(vocab_size=VOCAB, schedule=Linear(), corrupt_visible=0.5)]
)
def test_positions_outside_the_mask_stay_clean_and_out_of_the_loss(process):
    x0 = jnp.asarray(RNG.integers(0, VOCAB, (64, *GRID)))
    mask = jnp.asarray(RNG.random((64, *GRID)) < 0.3).at[0].set(False)
    u = jnp.linspace(0.05, 1.0, 64)
    x_t, _ = corrupt(process, x0, u, keys(64), mask)
    assert bool(jnp.where(mask, True, x_t == x0).all())
    logits = jnp.asarray(RNG.normal(size=(64, *GRID, VOCAB)))
    losses = loss(process, logits, x0, x_t, u, mask)
    spoiled = loss(process, jnp.where(mask[..., None], logits, 99.0), x0, x_t, u, mask)
    np.testing.assert_array_equal(losses, spoiled)
    assert losses[0] == 0.0  # nothing to learn from, and no 0 / 0


def test_frames_have_masked_fractions_of_their_own_with_a_common_mean():
    process = Absorbing(vocab_size=VOCAB, schedule=Linear(), per_frame=1.0)
    grid, count = (4, 24, 24), 300
    x0, u = jnp.zeros((count, *grid), jnp.int32), jnp.linspace(0.02, 1.0, count)
    x_t, _ = corrupt(process, x0, u, keys(count))
    frames = np.asarray(x_t == VOCAB).mean((2, 3))
    assert (frames >= 0).all() and np.abs(frames.mean(1) - u).max() < 0.05
    middle = np.abs(np.asarray(u) - 0.5) < 0.2
    assert frames[middle].std(1).mean() > 0.12  # equal levels would have 0.02, from rounding to whole tokens
    half = Absorbing(vocab_size=VOCAB, schedule=Linear(), per_frame=0.5)
    x_t, _ = corrupt(half, x0, jnp.full(count, 0.5), keys(count))
    equal = (np.asarray(x_t == VOCAB).mean((2, 3)).std(1) < 0.05).sum()
    assert stats.binomtest(int(equal), count, 0.5).pvalue > 1e-3


def test_visible_tokens_count_with_their_weight():
    process = Absorbing(vocab_size=VOCAB, schedule=Linear(), corrupt_visible=0.5, visible_weight=0.3)
    x0 = jnp.asarray(RNG.integers(0, VOCAB, (16, *GRID)))
    u = jnp.linspace(0.1, 1.0, 16)
    x_t, _ = corrupt(process, x0, u, keys(16))
    entropy, masked = entropies(x_t, x0), np.asarray(x_t) == VOCAB

    def mean(where):
        return (entropy * where).sum((1, 2, 3)) / np.maximum(where.sum((1, 2, 3)), 1)

    found = loss(process, jnp.asarray(toy_logits(x_t), jnp.float32), x0, x_t, u)
    np.testing.assert_allclose(found, mean(masked) + 0.3 * mean(~masked), rtol=1e-5)


@pytest.mark.parametrize("process", [TRAIN, ELBO, ANY_ORDER])
def test_the_level_is_the_masked_share_of_all_tokens_in_training_and_in_the_bound(process):
    grid = (4, 8, 8)
    mask = jnp.zeros((2, *grid), bool).at[0, 2:].set(True).at[1, 1:].set(True)
    x0, u = jnp.zeros(mask.shape, jnp.int32), jnp.array([0.5, 0.9])
    shares = np.asarray(process.schedule.masked(u)) * [0.5, 0.75]
    shares = np.ceil(shares * 256) / 256 if process is ANY_ORDER else shares  # a whole number of tokens
    np.testing.assert_allclose(process.level(u, grid, mask), shares, rtol=1e-6)
    x_t, _ = corrupt(process, x0, u, keys(2), mask)
    np.testing.assert_allclose(np.asarray(x_t == VOCAB).mean((1, 2, 3)), shares, atol=0.08)

    told = []

    def predict(x_t, level):
        jax.debug.callback(lambda *values: told.append(values), level, (x_t == VOCAB).mean((1, 2, 3)), ordered=True)
        return Prediction(values=jnp.zeros((*x_t.shape, VOCAB)))

    jax.block_until_ready(process.loss_by_level(predict, x0, keys(2), levels=4, mask=mask))
    jax.effects_barrier()
    np.testing.assert_allclose(*np.array(told).transpose(1, 0, 2), rtol=1e-6)


def test_known_frames_are_prefixes_or_keyframes_in_the_given_share():
    known = np.asarray(known_frames(keys(4000), 5, 0.5))
    count = known.sum(1)
    assert count.max() == 4  # something is left to generate
    assert stats.binomtest(int((count > 0).sum()), 4000, 0.5).pvalue > 1e-3
    prefix = (known[count > 0, :-1] >= known[count > 0, 1:]).all(1)
    assert 0.5 < prefix.mean() < 0.75  # half by choice, and some keyframes happen to be a prefix
    assert (known.mean(0) > 0.1).all()
    np.testing.assert_array_equal(known_frames(keys(4000)[7:9], 5, 0.5), known[7:9])
    with pytest.raises(ValueError, match="at least 2"):
        known_frames(keys(1), 1, 0.5)


def test_corruption_of_a_sample_depends_on_its_key_alone():
    x0 = jnp.asarray(RNG.integers(0, VOCAB, (6, *GRID)))
    process = Absorbing(vocab_size=VOCAB, schedule=Cosine(), corrupt_visible=0.3)
    u, all_keys, order = jnp.linspace(0.1, 0.9, 6), keys(6), jnp.array([4, 2, 0])
    whole, _ = corrupt(process, x0, u, all_keys)
    part, _ = corrupt(process, x0[order], u[order], all_keys[order])
    np.testing.assert_array_equal(part, whole[order])


def test_visible_tokens_are_corrupted_at_the_given_rate():
    process = Absorbing(vocab_size=VOCAB, schedule=Linear(), corrupt_visible=0.4)
    x0 = jnp.full((3000, *GRID), 2)
    x_t, _ = corrupt(process, x0, jnp.full(3000, 0.5), keys(3000))
    visible = np.asarray(x_t)[np.asarray(x_t) != VOCAB]
    expected = np.full(VOCAB, 0.4 / VOCAB)
    expected[2] += 0.6
    assert chi_square(np.bincount(visible, minlength=VOCAB), visible.size * expected) > 1e-3


def all_subsets(x0):
    """Return every way to mask the 4 tokens of x0, and the number of masked tokens."""
    masks = np.array(list(itertools.product([False, True], repeat=4)))
    return np.where(masks.reshape(-1, 1, 2, 2), VOCAB, x0), masks.sum(1)


def any_order_bound(x0):
    """Return the mean over n of the cross entropy with n masked tokens, in float64: the per-token bound of any schedule."""
    x_t, counts = all_subsets(x0)
    means = np.where(x_t == VOCAB, entropies(x_t, np.broadcast_to(x0, x_t.shape)), 0).sum((1, 2, 3)) / counts.clip(1)
    return np.mean([means[counts == n].mean() for n in range(1, 5)])


def test_elbo_equals_its_closed_form_for_every_schedule():
    x0 = np.array([[[[1, 4], [0, 2]]]])
    x_t, counts = all_subsets(x0)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    nodes, weights = (nodes + 1) / 2, weights / 2

    def bound(schedule, u, weight):
        process = Absorbing(vocab_size=VOCAB, schedule=schedule, objective="elbo")
        m = np.asarray(schedule.masked(u), np.float64)[:, None]
        law = m**counts * (1 - m) ** (4 - counts)
        states = np.tile(x_t, (len(u), 1, 1, 1))
        losses = loss(process, toy_logits(states), np.broadcast_to(x0, states.shape), states, np.repeat(u, 16))
        return (weight[:, None] * law * np.asarray(losses).reshape(len(u), 16)).sum()

    exact = any_order_bound(x0)
    assert bound(Linear(), nodes, weights) == pytest.approx(exact, rel=1e-4)
    assert bound(Cosine(), nodes, weights) == pytest.approx(exact, rel=1e-4)
    for base in (Linear(), Cosine()):  # with few steps, tokens are revealed together, which can only loosen the bound
        coarse = [bound(Discrete(base=base, T=T), (np.arange(T) + 0.5) / T, np.full(T, 1 / T)) for T in (1, 200)]
        assert coarse[0] == pytest.approx(entropies(x_t[-1:], x0).mean(), rel=1e-5)
        assert coarse[1] == pytest.approx(exact, rel=0.01)


def test_any_order_masks_every_number_of_tokens_equally_often_and_every_set_of_that_size():
    x0, count = np.array([[[[1, 4], [0, 2]]]]), 6000
    u = (jnp.arange(count) + 0.5) / count
    x_t, _ = corrupt(ANY_ORDER, jnp.asarray(np.broadcast_to(x0, (count, *x0.shape[1:]))), u, keys(count, 3))
    masked = np.asarray(x_t == VOCAB).reshape(count, 4)
    np.testing.assert_array_equal(masked.sum(1), np.repeat([1, 2, 3, 4], count // 4))
    np.testing.assert_allclose(np.asarray(ANY_ORDER.level(u, (1, 2, 2))), masked.sum(1) / 4, rtol=1e-6)
    pairs = masked[masked.sum(1) == 2] @ (1 << np.arange(4))
    assert chi_square(np.bincount(pairs)[[3, 5, 6, 9, 10, 12]], np.full(6, count / 4 / 6)) > 1e-3


def test_any_order_is_the_elbo_at_a_finite_variance():
    """Its mean over all counts and subsets is the bound of every schedule, and no loss exceeds the largest entropy.

    The loss of "elbo" does: near u = 0 its weight is 1 / u, and its second moment grows with the logarithm of 1 / u.
    """
    x0 = np.array([[[[1, 4], [0, 2]]]])
    x_t, counts = all_subsets(x0)
    x_t, counts = x_t[counts > 0], counts[counts > 0]
    u = (counts - 0.5) / 4
    clean = np.broadcast_to(x0, x_t.shape)
    losses = np.asarray(loss(ANY_ORDER, toy_logits(x_t), clean, x_t, u))
    chance = 1 / 4 / special.comb(4, counts)
    assert chance.sum() == pytest.approx(1)
    assert (chance * losses).sum() == pytest.approx(any_order_bound(x0), rel=1e-5)
    worst = entropies(x_t, clean)[x_t == VOCAB].max()
    assert losses.max() <= worst * (1 + 1e-6)
    one_masked = counts == 1
    steep = Absorbing(vocab_size=VOCAB, schedule=Linear(), objective="elbo")
    rare = loss(steep, toy_logits(x_t[one_masked]), clean[one_masked], x_t[one_masked], np.full(4, 1e-4))
    assert np.asarray(rare).max() > 100 * worst


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Discrete(base=Cosine(), T=10), Discrete(base=Linear(), T=3)])
def test_elbo_on_independent_tokens_is_their_likelihood(schedule):
    """For an iid model every schedule, discrete ones included, gives -log p(x0) exactly; Monte Carlo through `corrupt`."""
    process = Absorbing(vocab_size=VOCAB, schedule=schedule, objective="elbo")
    x0 = np.asarray(RNG.integers(0, VOCAB, GRID))
    exact = -special.log_softmax(PLACES, -1)[np.arange(SIZE), x0.ravel()].mean()
    count = 4096
    u = (jnp.arange(count) + 0.5) / count
    batch = jnp.broadcast_to(jnp.asarray(x0), (count, *GRID))
    x_t, target = corrupt(process, batch, u, keys(count, 7))
    logits = jnp.broadcast_to(jnp.asarray(PLACES.reshape(*GRID, VOCAB)), (*batch.shape, VOCAB))
    losses = np.asarray(loss(process, logits, target, x_t, u))
    assert abs(losses.mean() - exact) < 4 * losses.std() / np.sqrt(count)


def test_nelbo_by_level_is_unbiased_and_exact_at_full_masking():
    x0 = np.array([[[[1, 4], [0, 2]]]])
    count = 3000
    batch = jnp.asarray(np.broadcast_to(x0, (count, *x0.shape[1:])))
    entropy = lambda x, m: cross_entropy(toy_denoise(x, m), batch)  # noqa: E731
    by_level = jax.jit(functools.partial(nelbo, entropy, mask_id=VOCAB), static_argnames="levels")
    for levels in (4, 2):
        rows = np.asarray(by_level(batch, keys(count), levels=levels))
        estimate = rows.mean(0)
        assert rows.shape == (levels, count)
        assert abs(estimate.mean() - any_order_bound(x0)) < 4 * estimate.std() / np.sqrt(count)
    full = by_level(batch, keys(count), levels=4)[-1]
    np.testing.assert_allclose(full, entropies(np.full_like(x0, VOCAB), x0).mean(), rtol=1e-5)


def test_nelbo_masks_only_what_it_may():
    seen = []

    def entropy(x, m):
        jax.debug.callback(lambda x, m: seen.append((np.asarray(x), np.asarray(m))), x, m)
        return cross_entropy(toy_denoise(x, m), x0)

    x0 = jnp.asarray(RNG.integers(0, VOCAB, (64, *GRID)))
    mask = jnp.zeros(x0.shape, bool).at[:, :, 0].set(True)
    jax.block_until_ready(jax.jit(functools.partial(nelbo, entropy, mask_id=VOCAB, levels=2))(x0, keys(64), mask=mask))
    jax.effects_barrier()
    for x, m in seen:
        np.testing.assert_array_equal(x[:, :, 1], x0[:, :, 1])
        np.testing.assert_allclose((x == VOCAB).mean((1, 2, 3)), m)
    assert sorted(np.unique(m).tolist() for _, m in seen) == [[0.125, 0.25], [0.375, 0.5]]


def test_gradient_is_softmax_minus_target_over_masked_tokens():
    x0 = RNG.integers(0, VOCAB, (3, *GRID))
    x_t = np.where(RNG.random(x0.shape) < 0.5, VOCAB, x0)
    x_t[:, 0, 0, 0] = VOCAB
    u, logits = np.array([0.2, 0.5, 0.9]), toy_logits(x_t)
    masked = (x_t == VOCAB)[..., None]
    error = np.where(masked, special.softmax(logits, -1) - np.eye(VOCAB)[x0], 0)
    number = masked.sum((1, 2, 3, 4), keepdims=True)
    got = jax.jit(jax.grad(lambda z: loss(TRAIN, z, x0, x_t, u).mean()))(jnp.asarray(logits))
    np.testing.assert_allclose(got, error / number / 3, atol=1e-6)
    got = jax.jit(jax.grad(lambda z: loss(ELBO, z, x0, x_t, u).sum()))(jnp.asarray(logits))
    weight = (np.pi / 2 / np.tan(np.pi * u / 2)).reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose(got, weight * error / SIZE, atol=1e-6)


def test_means_over_microbatches_are_the_mean_over_the_batch():
    x0 = RNG.integers(0, VOCAB, (8, *GRID))
    x_t = np.where(RNG.random(x0.shape) < np.linspace(0.1, 1, 8).reshape(8, 1, 1, 1), VOCAB, x0)
    u, logits = np.linspace(0.1, 1, 8), toy_logits(x_t)
    for process in (TRAIN, ELBO, ANY_ORDER):
        halves = [loss(process, logits[s], x0[s], x_t[s], u[s]).mean() for s in (slice(4), slice(4, 8))]
        assert np.mean(halves) == pytest.approx(float(loss(process, logits, x0, x_t, u).mean()), rel=1e-6)


def test_label_smoothing_and_low_precision_logits():
    logits, target = RNG.normal(size=(6, VOCAB)), RNG.integers(0, VOCAB, 6)
    soft = 0.9 * np.eye(VOCAB)[target] + 0.1 / VOCAB
    want = -(soft * special.log_softmax(logits, -1)).sum(-1)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), target, label_smoothing=0.1), want, rtol=1e-5)
    low = jnp.asarray(logits, jnp.bfloat16)
    assert cross_entropy(low, target).dtype == jnp.float32
    np.testing.assert_array_equal(cross_entropy(low, target), cross_entropy(low.astype(jnp.float32), target))


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "mse"},
        {"objective": "elbo", "label_smoothing": 0.1},
        {"objective": "elbo", "corrupt_visible": 0.1},
        {"label_smoothing": 1.0},
        {"min_masked": 0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError, match="diffusion:"):
        Absorbing(vocab_size=VOCAB, schedule=Linear(), **settings)


def test_prior_is_all_mask():
    assert bool((TRAIN.prior((2, *GRID)) == TRAIN.mask_id).all())
