"""The tokenizer as a system: Eq. 1 against numpy, sample keys, accumulation, codebook updates, overfitting one clip."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import CheckpointConfig
from motionaura_jax.models.autoencoders.config import MBQVAEConfig, preset
from motionaura_jax.models.autoencoders.masking import mask_video
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer, fingerprint
from motionaura_jax.models.features.perceptual import FeatureNetwork
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh
from motionaura_jax.systems.loading import load_autoencoder
from motionaura_jax.systems.mbq_vae import MBQVAERecipe, MBQVAESystem
from motionaura_jax.training import checkpoint, loop, optimizer, state, step
from tests.systems import tiny

MODEL = {
    **tiny.TOKENIZER,
    "channels": [8, 16],
    "enc_mb": [0, 1],
    "dec_mb": [0, 1],
    "z_channels": 16,
    "norm": "group",
    "mfi_hidden": 8,
}

FLAT = {"enc_mb": [0, 0], "dec_mb": [0, 0]}  # compiles in a third of the time


def make(*, networks=None, **sections):
    values = {"system": "mbq_vae", "data": tiny.SIZE, "model": MODEL, "train": {"steps": 100}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return MBQVAESystem(config.build(MBQVAERecipe, values), networks=networks)


def batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.uniform(-1, 1, (size, 4, 16, 16, 3)).astype(np.float32),
        "sample": np.arange(size, dtype=np.int32),
    }


def network_of(system, params, method):
    """Return a part of the network as a function of its input alone."""
    return jax.jit(functools.partial(MBQVAE(system.recipe.model).apply, {"params": params}, method=method))


def begin(system):
    """Return the initial state of a run and its train step."""
    optimize = optimizer.build(system.recipe.optimizer, 100, system.param_groups())
    return jax.jit(lambda: state.create(system, optimize, 0))(), step.make_train_step(system, optimize)


@pytest.fixture(scope="module")
def system():
    return make()


@pytest.fixture(scope="module")
def weights(system):
    return jax.jit(system.init)(jax.random.key(0))


def test_the_loss_is_equation_1_by_numpy(weights):
    system = make(masking={"frame_probability": 0.0, "patch_probability": 0.0}, loss={"l1": 0.3, "mfi": 0.7})
    params, extra = weights
    data = batch()
    total, (_, terms) = jax.jit(system.loss)(params, extra, {}, data, jax.random.key(1), jnp.int32(0))
    tokenizer = params["tokenizer"]
    z = np.asarray(network_of(system, tokenizer["network"], "encode")(data["video"]), np.float64)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    book = np.asarray(tokenizer["quantizer"]["codebook"], np.float64)
    book /= np.linalg.norm(book, axis=-1, keepdims=True)
    codes = ((z[..., None, :] - book) ** 2).sum(-1).argmin(-1)
    output = network_of(system, tokenizer["network"], "decode")(book[codes].astype(np.float32))
    distance = ((z - book[codes]) ** 2).sum(-1).mean()
    error = data["video"] - np.asarray(output)
    expected = (error**2).mean() + 0.3 * np.abs(error).mean() + (1 + 0.25) * distance
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert terms["mfi"] == 0.0


@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.slow(quick=True)), True])
def test_the_masked_frame_term_is_the_likelihood_of_the_masked_index_by_numpy(causal):
    system = make(
        model={"causal": causal, **FLAT},
        masking={"frame_probability": 1.0, "patch_probability": 0.0},
        loss={"mfi": 0.7, "l1": 0.3},
    )
    recipe, data, key = system.recipe, batch(), jax.random.key(1)
    params, extra = jax.jit(system.init)(jax.random.key(0))
    total, (_, terms) = jax.jit(system.loss)(params, extra, {}, data, key, jnp.int32(0))
    keys = jnp.stack([jax.random.fold_in(key, sample) for sample in data["sample"]])
    masked, index = mask_video(recipe.masking, keys, data["video"], params["tokenizer"]["mask_fill"])
    assert (np.asarray(index) >= 0).all() and len(set(np.asarray(index).tolist())) > 1
    network = params["tokenizer"]["network"]
    padded = np.pad(masked, ((0, 0), (0, 1 if causal else 0), (0, 0), (0, 0), (0, 0)), mode="edge")
    z = np.asarray(network_of(system, network, "encode")(padded), np.float64)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network["mfi_head"])
    hidden = z.mean((2, 3)) @ head["hidden"]["kernel"] + head["hidden"]["bias"]
    logits = (hidden / (1 + np.exp(-hidden))) @ head["logits"]["kernel"] + head["logits"]["bias"]
    logits = logits.reshape(4, -1)[:, 1 if causal else 0 :][
        :, :4
    ]  # causal: the first latent frame stands for one frame, not two
    chosen = np.take_along_axis(logits, np.asarray(index)[:, None], 1)[:, 0]
    expected = (np.log(np.exp(logits).sum(1)) - chosen).mean()
    np.testing.assert_allclose(terms["mfi"], expected, rtol=1e-4)
    rest = terms["mse"] + 0.3 * terms["l1"] + terms["codebook"] + recipe.model.beta * terms["commitment"]
    np.testing.assert_allclose(total, rest + 0.7 * expected, rtol=1e-4)


@pytest.mark.parametrize("learned", [pytest.param(False, marks=pytest.mark.slow(quick=True)), True])
def test_the_fill_color_learns_only_where_it_is_asked_to(learned):
    masking = {"frame_probability": 1.0, "patch_probability": 1.0, "learned_fill": learned}
    system = make(masking=masking, model=FLAT)
    params, extra = jax.jit(system.init)(jax.random.key(0))
    gradient = jax.jit(jax.grad(system.loss, has_aux=True))(
        params, extra, {}, batch(), jax.random.key(1), jnp.int32(0)
    )[0]
    assert bool((jnp.abs(gradient["tokenizer"]["mask_fill"]) > 0).all()) == learned


def test_masked_pixels_have_the_value_of_the_recipe():
    masking = {"frame_probability": 1.0, "patch_probability": 0.0, "learned_fill": False, "fill": -1.0, "anneal": 0.0}
    system = make(masking=masking, model=FLAT)
    params, _ = jax.eval_shape(system.init, jax.random.key(0))
    masked, index = system._mask(params, batch(), jax.random.key(1), 0.0)
    for clip, frame in zip(masked, index, strict=True):
        np.testing.assert_array_equal(clip[frame], -1.0)


def test_a_sample_does_not_see_the_rest_of_the_batch(system, weights):
    params, extra = weights
    loss = jax.jit(system.loss)
    whole = loss(params, extra, {}, batch(), jax.random.key(1), jnp.int32(0))[0]
    one_by_one = [
        loss(params, extra, {}, {k: v[i : i + 1] for k, v in batch().items()}, jax.random.key(1), jnp.int32(0))[0]
        for i in range(4)
    ]
    np.testing.assert_allclose(whole, np.mean(one_by_one), rtol=1e-5)


@pytest.mark.parametrize("quantizer", [pytest.param("vq", marks=pytest.mark.slow(quick=True)), "vq_ema"])
def test_accumulation_equals_the_large_batch_codebook_included(quantizer):
    results = []
    for accumulation in (1, 2):
        current, train_step = begin(make(model={"quantizer": quantizer, **FLAT}, train={"accumulation": accumulation}))
        results.append(train_step(current, {}, batch())[0])
    for a, b in zip(jax.tree.leaves(results[0].extra), jax.tree.leaves(results[1].extra), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(jax.tree.leaves(results[0].params), jax.tree.leaves(results[1].params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)  # Adam's first step has the size of the learning rate


def test_prepare_puts_codes_where_the_encoder_outputs_are(system, weights):
    params, extra = weights
    prepared, _ = system.prepare(params, extra, iter([batch(seed=s) for s in range(3)]))
    loss = jax.jit(system.loss)
    before = loss(params, extra, {}, batch(), jax.random.key(0), jnp.int32(0))[1][1]["commitment"]
    after = loss(prepared, extra, {}, batch(), jax.random.key(0), jnp.int32(0))[1][1]["commitment"]
    assert after < 0.7 * before


def test_the_continuous_phase_ignores_the_codebook(weights):
    system, (params, extra) = make(model={"continuous_until": 0.5, "l2": False}), weights
    moved = jax.tree.map(lambda codes: codes + 3.0, params["tokenizer"]["quantizer"])
    other = {**params, "tokenizer": {**params["tokenizer"], "quantizer": moved}}
    loss = jax.jit(lambda params, step: system.loss(params, extra, {}, batch(), jax.random.key(0), step)[0])
    assert loss(params, jnp.int32(49)) == loss(other, jnp.int32(49))
    assert loss(params, jnp.int32(50)) != loss(other, jnp.int32(50))
    same, _ = system.prepare(params, extra, iter([]))
    assert same is params


@pytest.mark.parametrize(
    ("quantizer", "more"),
    [
        pytest.param("fsq", {"fsq_levels": [4, 4, 3, 3]}, marks=pytest.mark.slow(quick=True)),
        ("lfq", {}),
        pytest.param("none", {}, marks=pytest.mark.slow(quick=True)),
    ],
)
def test_every_quantizer_trains_and_evaluates(quantizer, more):
    system = make(model={"quantizer": quantizer, **more, **FLAT}, evaluate={"pictures": 1})
    current, train_step = begin(system)
    current, metrics = train_step(current, {}, batch())
    assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    evaluation = system.evaluate(current.params, current.extra, {}, [batch()])
    assert ("codes_used" in evaluation.metrics) == (quantizer != "none")
    assert evaluation.videos["clip_0"].shape == (4, 16, 32, 3)
    if quantizer == "none":
        assert evaluation.metrics["psnr"] == evaluation.metrics["psnr_continuous"]


@pytest.mark.slow(quick=True)
def test_the_adversarial_players_do_not_train_each_other():
    system = make(loss={"adversarial": 0.1, "adversarial_start": 0.5}, discriminator={"channels": [8, 8]}, model=FLAT)
    params, extra = jax.jit(system.init)(jax.random.key(0))
    gradient = jax.jit(jax.grad(system.loss, has_aux=True))
    early, late = (gradient(params, extra, {}, batch(), jax.random.key(0), jnp.int32(s))[0] for s in (0, 60))
    size = lambda tree: sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(early["discriminator"]) == 0 < size(late["discriminator"])
    plain = make(model=FLAT)
    alone = jax.jit(jax.grad(plain.loss, has_aux=True))(params, extra, {}, batch(), jax.random.key(0), jnp.int32(60))[0]
    differs = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(), late["tokenizer"]["network"], alone["tokenizer"]["network"]
    )
    assert max(jax.tree.leaves(differs["decoder"])) > 0


@pytest.mark.slow(quick=True)
def test_an_adversarial_run_of_before_resumes_and_opens(monkeypatch, tmp_path):
    """The saved average also contains the discriminator, whose name has not changed."""
    system = make(loss={"adversarial": 0.1}, discriminator={"channels": [8]}, model=FLAT)
    with monkeypatch.context() as before:
        before.setattr(MBQVAESystem, "param_groups", lambda self: ())
        current, _ = begin(system)
        store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), config.to_dict(system.recipe))
        store.save(current, checkpoint.Continuation())
        store.close()
        assert set(current.ema) == {"tokenizer", "discriminator"}
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), config.to_dict(system.recipe))
    optimize = optimizer.build(system.recipe.optimizer, 100, system.param_groups())
    with jax.set_mesh(make_mesh(MeshConfig())):
        restored, _ = store.restore(state.abstract(system, optimize, jax.sharding.get_mesh()))
    store.close()
    assert set(restored.ema) == {"tokenizer"}
    jax.tree.map(np.testing.assert_array_equal, restored.params, current.params)
    jax.tree.map(np.testing.assert_array_equal, restored.ema["tokenizer"], current.ema["tokenizer"])
    tokenizer, _ = load_autoencoder(tmp_path)
    assert tokenizer.latent_space == system.autoencoder(jax.device_get(current.params), current.extra).latent_space


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (config.build(MBQVAEConfig, tiny.TOKENIZER), "db1212ff9e51f386"),
        (MBQVAEConfig(), "42005674bdaecee0"),
        (preset("tiny", causal=True), "0fde493b4002ee68"),
    ],
)
def test_the_latent_spaces_of_tokenizers_from_before_patches_keep_their_names(model, expected):
    params = {"network": np.arange(6, dtype=np.float32)}
    assert fingerprint(model, params, {}) == expected
    names = {fingerprint(dataclasses.replace(model, stem=stem), params, {}) for stem in ("conv", "patch", "haar")}
    assert len(names | {expected}) == 3


def write(folder, system, leave_out=()):
    """Write step 0 of a run; its saved recipe lacks the keys `leave_out` of the model."""
    saved = config.to_dict(system.recipe)
    for key in leave_out:
        del saved["model"][key]
    store = checkpoint.Checkpoints(folder, CheckpointConfig(), saved)
    store.save(begin(system)[0], checkpoint.Continuation())
    store.close()


def test_weights_of_another_stem_are_refused_and_those_from_before_patches_open(tmp_path):
    keys = ("stem", "stem_time", "stem_space")
    patch, haar = ({**FLAT, "stem": kind, "stem_time": 2} for kind in ("patch", "haar"))
    write(tmp_path / "old", make(model=FLAT), leave_out=keys)
    write(tmp_path / "patch", make(model=patch))
    assert load_autoencoder(tmp_path / "old")[0].config == make(model=FLAT).recipe.model
    with pytest.raises(UserError, match=r"config.model.stem=patch: .*old was trained with conv; give that value"):
        loop.fit(make(model=patch), tmp_path / "old", override=True)
    # The same shapes, but other weights.
    with pytest.raises(UserError, match=r"config.model.stem=haar: .*patch was trained with patch"):
        loop.fit(make(model=haar), tmp_path / "patch", override=True)
    begun = MBQVAESystem(make(model=haar).recipe.with_value("init_from", str(tmp_path / "patch")))
    with pytest.raises(UserError, match=r"config.model.stem=haar: .*patch was trained with patch"):
        loop.fit(begun, tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


def test_muon_and_weight_decay_treat_patches_like_other_convolutions():
    system = make(model={**FLAT, "stem": "haar", "stem_space": 4}, optimizer={"name": "muon"})
    params = jax.eval_shape(system.init, jax.random.key(0))[0]
    weights = optimizer.Weights(not_decayed=system.not_decayed, matrices=system.matrices)
    network = weights.as_matrices(params)["tokenizer"]["network"]
    decayed = weights.decayed(params)["tokenizer"]["network"]
    for part, layer in (("encoder", "stem"), ("decoder", "output")):
        assert network[part][layer]["kernel"] == network["encoder"]["down_0"]["kernel"]
        assert network[part][layer]["bias"] is None
        assert decayed[part][layer] == {"kernel": True, "bias": False}


@pytest.mark.slow(quick=True)
def test_the_perceptual_loss_compares_features_of_the_network_it_is_given():
    """The distance matches NumPy; the feature network is frozen and passes gradients to the decoder."""

    def load(path):
        assert path == "weights.bin"
        return {"mix": jnp.arange(12.0).reshape(3, 4) / 6 - 1}

    network = FeatureNetwork(load=load, features=lambda weights, images: [jnp.tanh(images @ weights["mix"]), images])
    loss = {"perceptual": 0.5, "perceptual_weights": "weights.bin"}
    system = make(
        networks={"squeezenet": network},
        loss=loss,
        model=FLAT,
        masking={"frame_probability": 0.0, "patch_probability": 0.0},
    )
    params, extra = jax.jit(system.init)(jax.random.key(0))
    frozen, data = system.frozen(), batch()

    def term(params, frozen):
        total, (_, terms) = system.loss(params, extra, frozen, data, jax.random.key(1), jnp.int32(0))
        return terms["perceptual"], (total, terms)

    (value, (total, terms)), gradient = jax.jit(jax.value_and_grad(term, has_aux=True))(params, frozen)
    assert set(params) == {"tokenizer"}
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient["tokenizer"]["network"]["decoder"])) > 0
    tokenizer = Tokenizer(config=system.recipe.model, params=params["tokenizer"], extra=extra)
    values = tokenizer.encode(data["video"]).values
    output = network_of(system, tokenizer.params["network"], "decode")(values)
    videos = [data["video"], np.asarray(output)]
    mixed = [np.tanh(video @ np.asarray(frozen["perceptual"]["mix"])) for video in videos]
    layers = [[x / np.linalg.norm(x, axis=-1, keepdims=True) for x in pair] for pair in (mixed, videos)]
    expected = np.mean([np.square(a - b).sum(-1).mean() for a, b in layers])
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    others = terms["mse"] + 0.2 * terms["l1"] + terms["codebook"] + 0.25 * terms["commitment"] + 0.05 * terms["mfi"]
    np.testing.assert_allclose(total, others + 0.5 * value, rtol=1e-4)


def test_a_perceptual_weight_without_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.loss\.perceptual_weights: name the file \(SqueezeNet"):
        make(loss={"perceptual": 0.1})
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as SqueezeNet weights"):
        make(loss={"perceptual": 0.1, "perceptual_weights": str(tmp_path / "weights.npz")}).frozen()


def test_clips_under_the_window_of_ssim_are_evaluated_without_it(weights):
    small = {"video": batch()["video"][:, :, :8], "sample": batch()["sample"]}
    bucket = {**tiny.SIZE, "height": 8, "fps": 16.0}
    evaluation = make(data={"buckets": [bucket, {**tiny.SIZE, "fps": 24.0}]}).evaluate(*weights, {}, [small])
    assert np.isnan(evaluation.metrics["ssim"]) and evaluation.metrics["psnr"] > 0
    assert evaluation.fps == 16.0


@pytest.mark.slow(quick=True)
def test_overfits_one_clip():
    system = make(
        optimizer={"learning_rate": 4e-3, "weight_decay": 0.0, "decay": "constant"},
        masking={"frame_probability": 0.0, "patch_probability": 0.0},
        model={**FLAT, "codebook_size": 64},
    )
    grid = np.linspace(-1, 1, 16, dtype=np.float32)
    clip = np.stack(
        [np.stack(np.broadcast_arrays(grid[:, None], grid[None] * (1 - 0.4 * t), 0.3 * t), -1) for t in range(4)]
    )
    data = {"video": np.broadcast_to(clip, (4, *clip.shape)).astype(np.float32), "sample": np.arange(4, dtype=np.int32)}
    current, train_step = begin(system)
    current = state.restart(current, *system.prepare(current.params, current.extra, iter([data])))
    for _ in range(120):
        current, metrics = train_step(current, {}, data)
    color_only = np.square(clip - clip.mean((0, 1, 2))).mean()
    assert metrics["mse"] < 0.1 * color_only
