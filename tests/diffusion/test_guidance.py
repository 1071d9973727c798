"""Identities of classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Cond
from motionaura_jax.diffusion.samplers.absorbing import Ancestral, Confidence
from motionaura_jax.diffusion.sampling import Guidance, guided, sample, stacked

VOCAB, BATCH, GRID = 4, 3, (1, 2, 2)
RNG = np.random.default_rng(2)
X = jnp.asarray(RNG.integers(0, VOCAB + 1, (BATCH, *GRID)))
M = jnp.array([0.2, 0.5, 1.0])
HALFWAY = jnp.float32(0.5)
TABLE = jnp.asarray(RNG.normal(size=(VOCAB + 1, VOCAB)), jnp.float32)


def model(x, m, cond):
    shift = (cond.tokens * cond.token_mask[..., None]).sum(1) + cond.scalars["fps"][:, None] * m[:, None]
    return TABLE[x] + shift[:, None, None, None]


def guide(model, cond, uncond=None, guidance=None):
    """Return the guided denoiser of a model `(x, m, cond)`."""
    both = cond if guidance is None else stacked(cond, uncond)
    return guided(lambda x, m: model(x, m, both), guidance)


def condition(seed, batch=BATCH):
    rng = np.random.default_rng(seed)
    return Cond(
        tokens=jnp.asarray(rng.normal(size=(batch, 2, VOCAB)), jnp.float32),
        token_mask=jnp.ones((batch, 2), bool),
        scalars={"fps": jnp.full(batch, 0.3)},
    )


def test_logits_are_extrapolated_from_one_call_of_twice_the_batch():
    shapes = []

    def counted(x, m, cond):
        shapes.append(x.shape)
        return model(x, m, cond)

    denoise = guide(counted, condition(0), condition(1), Guidance(scale=2.0, ramp="constant"))
    want = 3.0 * np.asarray(model(X, M, condition(0))) - 2.0 * np.asarray(model(X, M, condition(1)))
    np.testing.assert_allclose(denoise(X, M, HALFWAY), want, atol=1e-5)
    assert shapes == [(2 * BATCH, *GRID)]


def test_zero_scale_is_the_condition_alone_exactly():
    alone = guide(model, condition(0))(X, M, HALFWAY)
    off = guide(model, condition(0), condition(1), Guidance(scale=0.0))
    np.testing.assert_array_equal(off(X, M, HALFWAY), alone)
    np.testing.assert_array_equal(alone, model(X, M, condition(0)))


def test_equal_conditions_cancel_at_any_scale():
    same = guide(model, condition(0), condition(0), Guidance(scale=5.0, ramp="constant"))(X, M, HALFWAY)
    np.testing.assert_allclose(same, model(X, M, condition(0)), atol=1e-5)


def test_one_null_condition_serves_the_whole_batch():
    null = condition(1, batch=1)
    spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (BATCH, *leaf.shape[1:])), null)
    settings = Guidance(scale=1.5)
    one, many = (guide(model, condition(0), each, settings)(X, M, HALFWAY) for each in (null, spread))
    np.testing.assert_array_equal(one, many)


def test_a_negative_prompt_takes_the_place_of_the_null_condition():
    settings = Guidance(scale=1.0, ramp="constant")
    negative = guide(model, condition(0), condition(9), settings)(X, M, HALFWAY)
    want = 2.0 * model(X, M, condition(0)) - model(X, M, condition(9))
    np.testing.assert_allclose(negative, want, atol=1e-5)


@pytest.mark.parametrize("sampler", [Confidence(vocab_size=VOCAB), Ancestral(vocab_size=VOCAB)])
@pytest.mark.parametrize(("ramp", "steps", "weights"), [
    ("linear", 4, [0.0, 1.0, 2.0, 3.0]), ("linear", 1, [3.0]), ("constant", 3, [3.0, 3.0, 3.0])
])  # fmt: skip
def test_the_last_step_has_the_whole_scale_also_where_much_is_known(sampler, ramp, steps, weights):
    guidance, seen = Guidance(scale=3.0, ramp=ramp), []

    def denoise(x, m, progress):
        jax.debug.callback(lambda w: seen.append(float(w)), guidance.weight(progress), ordered=True)
        return TABLE[x]

    x = jnp.full((2, 2, 8, 8), VOCAB).at[:, 0].set(1)
    jax.block_until_ready(sample(denoise, sampler, jax.random.split(jax.random.key(0)), x, steps=steps))
    jax.effects_barrier()
    np.testing.assert_allclose(seen, weights, rtol=1e-6)


def test_scale_is_traced_and_strengthens_the_condition():
    traces = []
    prompt = Cond(
        tokens=jnp.zeros((BATCH, 2, VOCAB)).at[:, 0, 2].set(1.0),
        token_mask=jnp.ones((BATCH, 2), bool),
        scalars={"fps": jnp.zeros(BATCH)},
    )
    null = jax.tree.map(jnp.zeros_like, prompt)

    @jax.jit
    def run(guidance, keys):
        traces.append(1)
        denoise = guide(model, prompt, null, guidance)
        return sample(denoise, Confidence(vocab_size=VOCAB), keys, jnp.full((BATCH, 1, 8, 8), VOCAB), steps=6).x

    keys = jax.random.split(jax.random.key(0), BATCH)
    shares = [float((run(Guidance(scale=s, ramp="constant"), keys) == 2).mean()) for s in (0.0, 2.0, 20.0)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.95
    assert len(traces) == 1


@pytest.mark.parametrize("sampler", [Confidence(vocab_size=VOCAB), Ancestral(vocab_size=VOCAB)])
def test_outside_the_interval_the_condition_is_alone_and_half_as_much_is_computed(sampler):
    sizes, cond, uncond = [], condition(0, 2), condition(1, 2)
    guidance = Guidance(scale=3.0, ramp="constant", start=0.25, end=0.75)

    def counted(branches):
        def run(x, m):
            jax.debug.callback(lambda: sizes.append(len(x)), ordered=True)
            return model(x, m, branches)

        return run

    def masked(x, m, progress):
        """Follow the interval without skipping anything."""
        w = jnp.where((progress > 0.24) & (progress < 0.76), 3.0, 0.0)
        return (1 + w) * model(x, m, cond) - w * model(x, m, uncond)

    x, keys = jnp.full((2, 2, 8, 8), VOCAB), jax.random.split(jax.random.key(0))
    skipping = guided(counted(stacked(cond, uncond)), guidance, counted(cond))
    found = sample(skipping, sampler, keys, x, steps=5)
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert sizes == [2, 4, 4, 4, 2]
    np.testing.assert_array_equal(found.x, sample(masked, sampler, keys, x, steps=5).x)


def test_an_interval_needs_the_branch_alone():
    with pytest.raises(ValueError, match="alone"):
        guided(model, Guidance(start=0.5))(X, M, HALFWAY)
    with pytest.raises(UserError, match=r"from 0\.8 to 0\.2"):
        Guidance(start=0.8, end=0.2)


def test_unknown_ramp_is_refused():
    with pytest.raises(UserError, match="ramp"):
        Guidance(ramp="quadratic")
