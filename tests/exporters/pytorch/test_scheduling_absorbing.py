"""The exported samplers match ours given the same random numbers, and sample equally well with their own."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.diffusion import orders, schedules
from motionaura_jax.diffusion.sampling import guided, sample, stacked
from motionaura_jax.systems.text_to_video.recipe import SampleConfig, make_sampler
from tests.exporters.pytorch.noise import OurNoise

torch = pytest.importorskip("torch")

CODES, GRID, BATCH = 13, (2, 3, 4), 3
CASES = {
    "confidence": {},
    "hot": {"temperature": 1.5, "choice_temperature": 9.0},
    "greedy": {"temperature": 0.0, "choice_temperature": 0.0},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "both": {"top_k": 5, "top_p": 0.5, "temperature": 0.7},
    "remask": {"remask": 2},
    "halton": {"sampler": "halton", "schedule": "linear"},
    "random": {"sampler": "random"},
    "ancestral": {"sampler": "ancestral"},
    "masked_again": {"sampler": "ancestral", "remask_rate": 0.4},
    "masked_again_at_most": {"sampler": "ancestral", "remask_rate": 0.2, "remask_rule": "cap", "schedule": "linear"},
    "interval": {"guidance_start": 0.2, "guidance_end": 0.7},
    "ancestral_top_p": {"sampler": "ancestral", "top_p": 0.8, "schedule": "linear:20"},
}


def scheduler(**settings):
    from motionaura_jax.exporters.pytorch.scheduling_absorbing import AbsorbingScheduler

    return AbsorbingScheduler(vocab_size=CODES, **settings)


def table():
    """Return logits that depend on revealed tokens, level and progress, in both frameworks."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(CODES + 1, CODES)).astype(np.float32) for _ in range(3)]


def ours(config, keys, x, steps):
    here, there, level = map(jnp.asarray, table())

    def under(factors):
        def model(x, m):
            logits = here[x] + there[jnp.roll(x, 1, axis=3)] + m[:, None, None, None, None] * level[0]
            return logits * factors[:, None, None, None, None]

        return model

    alone = jnp.ones(BATCH)
    denoise = guided(under(stacked(alone, jnp.full(BATCH, -0.3))), config.guidance, under(alone))
    return sample(denoise, make_sampler(config, CODES), keys, x, steps=steps).x


def theirs(scheduler, noise, x, steps):
    from motionaura_jax.exporters.pytorch.scheduling_absorbing import guide

    here, there, level = map(torch.from_numpy, table())

    def denoise(x, m, progress):
        logits = here[x] + there[x.roll(1, 3)] + m[:, None, None, None, None] * level[0]
        if not scheduler.guides(progress):
            return logits
        return guide(logits, -0.3 * logits, scheduler.guidance_scale, progress, scheduler.guidance_ramp)

    return scheduler.sample(denoise, torch.from_numpy(np.array(x)).long(), noise, steps=steps)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 7])
def test_equal_noise_gives_equal_tokens(case, steps):
    config = SampleConfig(guidance_scale=2.5, guidance_ramp="constant" if case == "hot" else "linear", **CASES[case])
    keys = jax.random.split(jax.random.key(1), BATCH)
    x = np.full((BATCH, *GRID), CODES, np.int32)
    x[1, 0, :2] = 5
    wanted = jax.jit(ours, static_argnums=(0, 3))(config, keys, jnp.asarray(x), steps)
    fields = {field.name for field in dataclasses.fields(scheduler())}
    settings = {name: value for name, value in config.sampling.items() if name in fields}
    found = theirs(scheduler(**settings), OurNoise(keys, config.sampler), x, steps)
    np.testing.assert_array_equal(found, wanted)
    assert (np.asarray(found) < CODES).all() and (found[1, 0, :2] == 5).all()


@pytest.mark.parametrize("name", ["linear", "cosine", "linear:1000", "cosine:7"])
def test_schedules_are_ours(name):
    from motionaura_jax.exporters.pytorch.scheduling_absorbing import masked_fraction

    times = np.linspace(0, 1, 57)
    found = [masked_fraction(name, float(u)) for u in times]
    np.testing.assert_allclose(found, schedules.schedule(name).masked(jnp.asarray(times, jnp.float32)), atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 8, 8), (1, 5, 9), (3, 1, 2), (1, 1, 1)])
def test_the_halton_order_is_ours(grid):
    from motionaura_jax.exporters.pytorch.scheduling_absorbing import halton_ranks

    np.testing.assert_array_equal(halton_ranks(grid), orders.halton_ranks(grid))


def test_a_sample_depends_on_its_own_seed_alone():
    from motionaura_jax.exporters.pytorch.scheduling_absorbing import SeededNoise

    one = scheduler(sampler="halton", guidance_scale=1.0)
    x = np.full((3, *GRID), CODES, np.int32)
    three = theirs(one, SeededNoise([4, 5, 6]), x, 4)
    np.testing.assert_array_equal(three[1:2], theirs(one, SeededNoise([5]), x[:1], 4))
    generator = torch.Generator().manual_seed(6)
    np.testing.assert_array_equal(three[2:], theirs(one, SeededNoise([generator]), x[:1], 4))


def test_drawn_tokens_follow_their_probabilities():
    from motionaura_jax.exporters.pytorch.scheduling_absorbing import SeededNoise, draw

    logits = torch.from_numpy(np.random.default_rng(0).normal(size=CODES).astype(np.float32))
    noise = SeededNoise([0])
    drawn = draw(logits.expand(1, 40, 50, 50, CODES), lambda shape: noise.gumbel("draw", 0, shape))
    found = np.bincount(drawn.flatten(), minlength=CODES) / drawn.numel()
    wanted = logits.softmax(-1).numpy()
    assert np.abs(found - wanted).max() < 5 * math.sqrt(wanted.max() / drawn.numel())


def test_what_cannot_be_sampled_is_refused():
    x = np.full((1, *GRID), CODES, np.int32)
    with pytest.raises(ValueError, match="at least 1"):
        theirs(scheduler(), None, x, 0)
    with pytest.raises(ValueError, match="must be one of"):
        theirs(scheduler(sampler="sorted"), None, x, 2)
    with pytest.raises(ValueError, match="neither"):
        theirs(scheduler(schedule="square"), None, x, 2)
