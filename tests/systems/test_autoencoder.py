"""The base of autoencoder systems, on a minimal autoencoder: lists of losses, discriminators, evaluation."""

import dataclasses
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Latent
from motionaura_jax.models.autoencoders import discriminators, tiling
from motionaura_jax.models.autoencoders.geometry import Geometry
from motionaura_jax.models.features.perceptual import FeatureNetwork
from motionaura_jax.pipelines.decoding import decode_video
from motionaura_jax.pipelines.reconstruct import reconstruct
from motionaura_jax.systems.autoencoder import AutoencoderRecipe, AutoencoderSystem, ForwardPass
from motionaura_jax.training import optimizer, state, step
from motionaura_jax.training.monitoring.flops import step_flops
from tests.systems import tiny

STRIDES = (2, 4, 4)
CHANNELS = 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Variational autoencoder of patches with continuous latents: one matrix each way, with `aux` added to the output."""

    params: Mapping[str, jax.Array]
    latent_space: str = dataclasses.field(default="", metadata={"static": True})
    geometry = Geometry(strides=STRIDES, channels=CHANNELS)
    vocab_size = 0

    def encode(self, video, key=None):
        padded, size = tiling.pad(self.geometry, video)
        return self.bottleneck(self.features(padded), size, key)

    def features(self, padded):
        b, t, h, w = padded.shape[0], *self.geometry.latent_shape(*padded.shape[1:4])
        patches = padded.reshape(b, t, 2, h, 4, w, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t, h, w, -1)
        return patches @ self.params["in"]

    def bottleneck(self, features, size, key=None, *, quantized=True):
        mean, log_variance = jnp.split(features, 2, axis=-1)
        noise = 0.0 if key is None else jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        return Latent(values=mean + noise, size=size, latent_space=self.latent_space)

    def decode(self, latent, aux=None):
        return tiling.crop(self.decode_values(latent.values, aux), latent.size)

    def decode_values(self, values, aux=None):
        video = jnp.clip(self.unclipped(values), -1.0, 1.0)
        return video if aux is None else video + aux

    def unclipped(self, values):
        b, t, h, w, _ = values.shape
        pixels = (values @ self.params["out"]).reshape(b, t, h, w, *STRIDES, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return pixels.reshape(b, 2 * t, 4 * h, 4 * w, 3)


class LinearSystem(AutoencoderSystem):
    """Minimal system: all that a subclass has to define."""

    Recipe = AutoencoderRecipe

    def init_autoencoder(self, key):
        pixels, (a, b) = 2 * 4 * 4 * 3, jax.random.split(key)
        return {
            "autoencoder": {
                "in": 0.1 * jax.random.normal(a, (pixels, 2 * CHANNELS)),
                "out": 0.1 * jax.random.normal(b, (CHANNELS, pixels)),
            }
        }, {}

    def bind(self, params, extra, latent_space=""):
        return Linear(params=params["autoencoder"], latent_space=latent_space)

    def latent_space(self, params, extra):
        return f"linear {float(np.abs(params['autoencoder']['in']).sum()):.6f}"

    def forward(self, params, extra, frozen, batch, key, step):
        model = self.bind(params, extra)
        latent = model.encode(batch["video"], key)
        divergence = jnp.square(latent.values).mean()
        return ForwardPass(model.unclipped(latent.values), (1e-3 * divergence,), {"divergence": divergence}, {})


def make(networks=None, **sections):
    values = {"system": "linear", "data": tiny.SIZE, "train": {"steps": 100}, **sections}
    return LinearSystem(config.build(AutoencoderRecipe, values), networks=networks)


def adversarial(**changes):
    """Return values with one discriminator of frames and one of clips."""
    two = [{"kind": "2d", "channels": [4, 8], "weight": 0.5}, {"kind": "3d", "channels": [4, 8]}]
    return {"loss": {"adversarial": 0.1, "adversarial_start": 0.5, **changes}, "discriminators": two}


def batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.uniform(-1, 1, (size, 4, 16, 16, 3)).astype(np.float32),
        "sample": np.arange(size, dtype=np.int32),
    }


def loss_of(system, params, at, frozen=None):
    """Return loss, terms and gradients at a step."""
    loss = jax.jit(jax.value_and_grad(system.loss, has_aux=True))
    (total, (_, terms)), gradients = loss(params, {}, frozen or {}, batch(), jax.random.key(1), jnp.int32(at))
    return total, terms, gradients


def step_of(system):
    """Return the optimizer of a system and its train step."""
    optimize = optimizer.build(system.recipe.optimizer, 100, system.param_groups())
    return optimize, step.make_train_step(system, optimize)


def begin(system):
    optimize, train_step = step_of(system)
    return jax.jit(lambda: state.create(system, optimize, 0))(), train_step


def test_a_continuous_autoencoder_trains_evaluates_and_reconstructs_in_tiles():
    system = make(evaluate={"pictures": 1}, optimizer={"learning_rate": 3e-3})
    current, train_step = begin(system)
    losses = []
    for _ in range(40):
        current, metrics = train_step(current, {}, batch())
        losses.append(float(metrics["mse"]))
    assert losses[-1] < losses[0] and "divergence" in metrics
    found = system.evaluate(current.params, current.extra, {}, [batch()])
    assert found.metrics["psnr"] == found.metrics["psnr_continuous"] and "codes_used" not in found.metrics
    trained = system.autoencoder(jax.device_get(current.params), {})
    assert trained.latent_space.startswith("linear ")
    video = np.random.default_rng(1).integers(0, 255, (5, 19, 23, 3), dtype=np.uint8)
    whole, tiles = reconstruct(trained, video), reconstruct(trained, video, tile=(4, 8, 8))
    assert whole.tokens is None and whole.frames is whole.continuous
    np.testing.assert_allclose(tiles.frames.astype(int), whole.frames, atol=1)  # patches are independent


def test_the_decoder_gets_its_further_inputs_and_refuses_another_latent_space():
    system = make()
    params, _ = system.init(jax.random.key(0))
    trained = system.autoencoder(params, {})
    latent = trained.encode(batch()["video"])
    plain = list(decode_video(trained, latent))
    lighter = list(decode_video(trained, latent, aux=np.full((4, 1, 1, 1, 1), 0.5, np.float32)))
    assert len(plain) == 4 and np.mean(lighter) > np.mean(plain) + 50
    with pytest.raises(ValueError, match="latent of 'another' given to an autoencoder of 'linear"):
        next(decode_video(trained, dataclasses.replace(latent, latent_space="another")))
    with pytest.raises(ValueError, match="cannot decode in tiles"):
        next(decode_video(trained, latent, aux=0.5, tile=(4, 8, 8)))


def test_losses_and_discriminators_of_lists_add_up():
    networks = {
        name: FeatureNetwork(
            load=lambda path: {"scale": float(path)}, features=lambda w, x, p=power: [w["scale"] + x**p]
        )
        for name, power in (("squeezenet", 1), ("squares", 2))
    }
    features = [{"network": "squares", "weights": "2.0", "weight": 0.3}]
    sections = adversarial(perceptual=0.7, perceptual_weights="1.0", mse=0.0, l1=2.0)
    system = make(networks, features=features, **sections)
    params, _ = jax.jit(system.init)(jax.random.key(0))
    assert set(params) == {"autoencoder", "discriminator", "discriminator_1"}
    assert (
        params["discriminator"]["conv_0"]["kernel"].shape[0]
        == 1
        < params["discriminator_1"]["conv_0"]["kernel"].shape[0]
    )
    total, terms, _ = loss_of(system, params, 60, system.frozen())
    weights = {"l1": 2.0, "divergence": 1e-3, "perceptual": 0.7, "squares": 0.3}
    weights |= {"generator": 0.05, "discriminator": 1.0, "r1": 5.0}
    weights |= {"generator_1": 0.1, "discriminator_1": 1.0, "r1_1": 5.0}
    assert set(terms) == {"mse", *weights}
    np.testing.assert_allclose(total, sum(weights[name] * terms[name] for name in weights), rtol=1e-5)


def test_every_player_trains_on_its_own_terms_alone():
    """The returned gradients match the formulas and cover only each player's own parameters."""
    system = make(**adversarial(), train={"steps": 100, "ema_decay": 0.9})
    params, _ = jax.jit(system.init)(jax.random.key(0))
    _, _, gradients = loss_of(system, params, 50)

    def plain(mine, others):
        output = system.forward({**others, **mine}, {}, {}, batch(), jax.random.key(1), 0).video
        total = 0.0
        for name, one in zip(("discriminator", "discriminator_1"), system.recipe.discriminators, strict=True):
            judge = lambda video, name=name, one=one: discriminators.Discriminator(one).apply(  # noqa: E731
                {"params": {**others, **mine}[name]}, video
            )
            if "autoencoder" in mine:
                total += 0.1 * one.weight * discriminators.generator_loss(judge(output))
            else:
                total += discriminators.discriminator_loss(judge(batch()["video"]), judge(output))
                total += 5.0 * discriminators.r1_penalty(judge, batch()["video"])
        return total

    held = {name: tree for name, tree in params.items() if name != "autoencoder"}
    ours = jax.jit(jax.grad(plain))(held, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients, {**gradients, **ours})
    theirs = jax.jit(jax.grad(plain))({"autoencoder": params["autoencoder"]}, params)
    _, _, alone = loss_of(make(), params, 50)
    expected = jax.tree.map(jnp.add, theirs["autoencoder"], alone["autoencoder"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients["autoencoder"], expected
    )


def test_before_the_start_loss_and_gradients_are_those_without_discriminators():
    with_them, without = make(**adversarial()), make()
    params, _ = jax.jit(with_them.init)(jax.random.key(0))
    total, terms, gradients = loss_of(with_them, params, 49)
    alone, _, plain = loss_of(without, {"autoencoder": params["autoencoder"]}, 49)
    np.testing.assert_allclose(total, alone, rtol=1e-6)  # two programs may round differently
    assert terms["discriminator"] == terms["generator_1"] == 0.0
    # The compiler fuses the two programs differently, so gradients agree up to rounding alone.
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)  # noqa: E731
    jax.tree.map(near, gradients["autoencoder"], plain["autoencoder"])
    assert not any(
        np.any(leaf) for name in ("discriminator", "discriminator_1") for leaf in jax.tree.leaves(gradients[name])
    )
    assert any(np.any(leaf) for leaf in jax.tree.leaves(loss_of(with_them, params, 50)[2]["discriminator"]))


def flops(jaxpr, active):
    """Return the FLOPs of a traced program with all conditions `active`, by `step_flops` without its share for gradients."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "cond":
            total += flops(eqn.params["branches"][active].jaxpr, active)
            continue
        inner = [value for value in jax.tree.leaves(list(eqn.params.values())) if hasattr(value, "jaxpr")]
        inner = [getattr(value.jaxpr, "jaxpr", value.jaxpr) for value in inner]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        alone = type("Program", (), {"eqns": [eqn], "invars": [], "outvars": []})
        total += times * sum(flops(one, active) for one in inner) if inner else step_flops(alone, [])
    return total


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_before_the_start_costs_no_flops_of_discriminators(accumulation):
    train = {"steps": 100, "accumulation": accumulation}
    programs = {}
    for name, sections in (("with", adversarial()), ("without", {})):
        system = make(**sections, train=train)
        optimize, train_step = step_of(system)
        current = jax.eval_shape(lambda system=system, optimize=optimize: state.create(system, optimize, 0))
        programs[name] = jax.make_jaxpr(train_step)(current, {}, batch()).jaxpr
    before, after, without = flops(programs["with"], 0), flops(programs["with"], 1), flops(programs["without"], 0)
    assert before == without > 0
    assert after > 3 * before


def test_the_running_program_skips_discriminators_until_they_start(monkeypatch):
    """A callback inside the discriminators is not called for two steps, then it is."""
    calls = []
    network = discriminators.Discriminator

    class Watched(network):
        def apply(self, *args, **kwargs):
            jax.debug.callback(lambda: calls.append(self.config.kind))
            return network.apply(self, *args, **kwargs)

    system = make(**adversarial(adversarial_start=0.02), train={"steps": 100, "accumulation": 2})
    current, _ = begin(system)
    monkeypatch.setattr(discriminators, "Discriminator", Watched)
    _, train_step = step_of(system)
    counts = []
    for _ in range(3):
        current, metrics = train_step(current, {}, batch())
        jax.block_until_ready(current)
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts[1] == 0 < counts[2] and set(calls) == {"2d", "3d"}
    assert np.isfinite(metrics["loss"]) and metrics["discriminator_1"] > 0


def test_players_are_clipped_apart_and_discriminators_are_not_averaged():
    current, train_step = begin(make(**adversarial(adversarial_start=0.0, r1=1000.0)))
    after, metrics = train_step(current, {}, batch())
    assert set(after.ema) == {"autoencoder"} and "discriminator_1" in after.inference_params
    norms = [metrics[f"gradient_norm_{name}"] for name in ("other", "discriminator", "discriminator_1")]
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(norms), rtol=1e-5)


def test_old_keys_are_lists_of_one():
    recipe = make(loss={"adversarial": 0.1, "perceptual": 0.2, "perceptual_weights": "w"}).recipe
    assert recipe.all_discriminators() == (recipe.discriminator,)
    (named,) = recipe.all_features().items()
    assert named[0] == "perceptual" and (named[1].network, named[1].weights, named[1].weight) == (
        "squeezenet",
        "w",
        0.2,
    )
    assert make().recipe.all_discriminators() == () and make().recipe.all_features() == {}
    two = json.dumps(adversarial()["discriminators"])
    values = config.override({"system": "linear"}, [f"--config.discriminators={two}", "--config.loss.adversarial=1"])
    assert [one.kind for one in config.build(AutoencoderRecipe, values).all_discriminators()] == ["2d", "3d"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([{"network": "squeezenett", "weights": "w"}], "no network is called 'squeezenett'.*squeezenet"),
        ([{"weights": "w"}, {"weights": "v"}], "two losses of one network"),
        ([{"network": "squeezenet"}], r"config\.features\[0\]\.weights: this key has no default"),
    ],
)
def test_a_wrong_list_of_features_is_one_line(features, message):
    with pytest.raises(UserError, match=message):
        make(features=features)
