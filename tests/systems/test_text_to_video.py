"""Text to video as a system: the loss by hand, sample keys, resolved recipes, refusals, overfitting one clip."""

import dataclasses
import logging
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import leaf_types
from motionaura_jax.core.types import Cond
from motionaura_jax.data.media import write_video
from motionaura_jax.diffusion.process import stratified
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.models.layers.config import LoraConfig
from motionaura_jax.parallel.config import AXES
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.training import optimizer, state, step
from tests.systems import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make(tokenizer, **sections):
    return TextToVideoSystem(config.build(TextToVideoRecipe, tiny.text_to_video(tokenizer, **sections)))


def batch(system, size=4, shape=(4, 16, 16), seed=0):
    rng = np.random.default_rng(seed)
    return system.to_arrays(
        {
            "video": rng.uniform(-1, 1, (size, *shape, 3)).astype(np.float32),
            "fps": np.linspace(6, 12, size).astype(np.float32),
            "sample": np.arange(size, dtype=np.int32),
            "caption": (tiny.CAPTIONS * 2)[:size],
        }
    )


@pytest.fixture(scope="module")
def system(tokenizer):
    return make(tokenizer)


@pytest.fixture(scope="module")
def weights(system):
    """Return perturbed weights; with initial ones, zero gates make text irrelevant."""
    params, _ = jax.jit(system.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    noise = np.random.default_rng(0)
    moved = [leaf + 0.3 * noise.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module")
def frozen(system):
    return system.frozen()


def test_weights_have_one_shape_on_any_number_of_devices_along_the_sequence(system):
    def shapes(devices):
        mesh = jax.sharding.AbstractMesh((1, 1, 1, devices), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.eval_shape(system.init, jax.random.key(0))

    assert leaf_types(shapes(3)) == leaf_types(shapes(16)) == leaf_types(shapes(1))


@pytest.mark.parametrize("objective", ["ce_masked", "elbo"])
def test_the_loss_is_the_masked_cross_entropy_by_numpy(tokenizer, weights, frozen, objective):
    system = make(tokenizer, diffusion={"text_dropout": 0.0, "objective": objective, "schedule": "linear"})
    data, key = batch(system), jax.random.key(3)
    total, (_, metrics) = jax.jit(system.loss)(weights, {}, frozen, data, key, jnp.int32(0))

    x0 = np.asarray(jax.jit(lambda t, v: t.encode(v).tokens)(frozen["tokenizer"], data["video"]))
    u = stratified(jax.random.fold_in(key, 2**32 - 2), data["sample"], 4)
    keys = jnp.stack([jax.random.split(jax.random.fold_in(key, i))[0] for i in range(4)])
    x_t, _ = system.process.corrupt(x0, u, keys)
    encoder = T5Encoder(system.recipe.text.encoder.t5(system.text.words.size, 8), scanned=False)
    features = jax.jit(encoder.apply)({"params": weights["text"]}, data["text"])
    cond = Cond(tokens=features, token_mask=data["text"] != 0, scalars={"fps": data["fps"]})
    m = np.maximum(u, 1 / 32) if objective == "ce_masked" else u
    denoise = jax.jit(SpectralTransformer(system.recipe.model).apply)
    logits = np.asarray(denoise({"params": weights["denoiser"]}, x_t, m, cond).dense(), np.float64)
    entropy = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, x0[..., None], -1)[..., 0]
    masked = np.asarray(x_t) == 16
    sums = (entropy * masked).sum((1, 2, 3))
    expected = sums / masked.sum((1, 2, 3)) if objective == "ce_masked" else sums / np.asarray(u) / 32
    np.testing.assert_allclose(total, expected.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["masked"], masked.mean(), rtol=1e-6)


def test_given_frames_are_clean_in_training_and_not_in_evaluations(tokenizer, weights, frozen):
    """Evaluations use the mask of `example`, which generates everything."""
    system = make(tokenizer, diffusion={"known_frames": 1.0})
    data, key = batch(system), jax.random.key(3)
    seen = {}
    corrupt = type(system.process).corrupt

    def spy(process, x0, time, keys, mask=None):
        seen["mask"], (x_t, target) = mask, corrupt(process, x0, time, keys, mask)
        seen["clean"] = x_t == x0
        return x_t, target

    def corruption():
        system.loss(weights, {}, frozen, data, key, jnp.int32(0))
        return seen  # all else is traced and then left out of the program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(system.process), "corrupt", spy)
        seen = jax.jit(corruption)()
    given = ~np.asarray(seen["mask"])[:, :, 0, 0]
    assert given.any(1).all() and not given.all(1).any()
    assert np.asarray(seen["clean"])[given].all()
    assert jax.eval_shape(lambda: system.example(frozen, data, jax.random.split(key, 4)))[1] is None


def test_a_sample_does_not_see_the_rest_of_the_batch(system, weights, frozen):
    loss, data, key = jax.jit(system.loss), batch(system), jax.random.key(1)
    whole = loss(weights, {}, frozen, data, key, jnp.int32(0))[0]
    parts = [{name: value[i : i + 1] for name, value in data.items()} for i in (2, 0, 3, 1)]
    np.testing.assert_allclose(
        whole, np.mean([loss(weights, {}, frozen, part, key, jnp.int32(0))[0] for part in parts]), rtol=1e-5
    )


def test_the_step_of_the_engine_takes_microbatches(tokenizer, frozen):
    system = make(tokenizer, train={"accumulation": 2})
    optimize = optimizer.build(system.recipe.optimizer, 100)
    start = jax.eval_shape(lambda: state.create(system, optimize, 0))
    after, metrics = jax.eval_shape(step.make_train_step(system, optimize), start, frozen, batch(system))
    assert jax.tree.structure(after) == jax.tree.structure(start) and {"loss", "masked", "dropped"} <= metrics.keys()


def test_dropped_text_is_the_null_text(tokenizer, weights, frozen):
    system = make(tokenizer, diffusion={"text_dropout": 0.999})
    data = batch(system)
    loss = jax.jit(jax.value_and_grad(system.loss, has_aux=True))
    (dropped, (_, metrics)), gradient = loss(weights, {}, frozen, data, jax.random.key(0), jnp.int32(0))
    empty = {**data, "text": np.zeros_like(data["text"])}
    assert metrics["dropped"] == 1.0
    assert dropped == loss(weights, {}, frozen, empty, jax.random.key(0), jnp.int32(0))[0][0]
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(gradient["text"]))
    assert np.abs(gradient["denoiser"]["text"]["null"]).max() > 0


def test_text_and_frame_rate_matter(tokenizer, weights, frozen):
    system = make(tokenizer, diffusion={"text_dropout": 0.0})
    data, loss = batch(system), jax.jit(system.loss)
    value = lambda data: float(loss(weights, {}, frozen, data, jax.random.key(0), jnp.int32(0))[0])  # noqa: E731
    assert value(data) != value({**data, "text": np.roll(data["text"], 1, 0)})
    assert value(data) != value({**data, "fps": data["fps"] * 2})


@pytest.mark.slow(quick=True)
def test_buckets_of_several_shapes_train_one_network(tokenizer, weights, frozen):
    buckets = [
        {"num_frames": 4, "height": 16, "width": 16, "batch_size": 4},
        {"num_frames": 6, "height": 8, "width": 16, "batch_size": 2},
    ]
    system = make(tokenizer, data={"manifest": "clips", "buckets": buckets})
    loss, data = jax.jit(system.loss), batch(system, 2, (6, 8, 16))
    parts = [{name: value[i : i + 1] for name, value in data.items()} for i in (0, 1)]
    whole, *halves = (loss(weights, {}, frozen, part, jax.random.key(0), 0)[0] for part in (data, *parts))
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-4)


def test_evaluation_reports_levels_and_shows_real_beside_drawn(system, weights, frozen):
    evaluation = system.evaluate(weights, {}, frozen, [batch(system), batch(system, seed=1)])
    levels = [evaluation.metrics[f"nelbo_{level}"] for level in (25, 50, 75, 100)]
    np.testing.assert_allclose(evaluation.metrics["nelbo"], np.mean(levels), rtol=1e-5)
    assert evaluation.metrics["nelbo_shuffled"] != evaluation.metrics["nelbo"]
    assert [video.shape for video in evaluation.videos.values()] == [(4, 16, 32, 3)] * 4
    assert next(iter(evaluation.videos)) == "0_a_red_circle_moves_up"
    assert evaluation.fps == 6.0


def test_shuffled_captions_are_those_of_other_clips_also_where_batches_hold_one(system, weights, frozen):
    """The bound equals that with captions swapped in the data."""
    data = batch(system, 2)
    parts = [{name: value[i : i + 1] for name, value in data.items()} for i in (0, 1)]
    swapped = [{**part, "text": other["text"]} for part, other in zip(parts, reversed(parts), strict=True)]
    one, two = (system.evaluate(weights, {}, frozen, batches).metrics for batches in (parts, swapped))
    assert one["nelbo_shuffled"] == two["nelbo"] != one["nelbo"]
    assert "nelbo_shuffled" not in system.evaluate(weights, {}, frozen, parts[:1]).metrics


def test_fixed_prompts_replace_the_captions(tokenizer, weights, frozen):
    system = make(tokenizer, sample={"prompts": ["a red star"], "sampler": "ancestral", "guidance_scale": 1.0})
    videos = system.evaluate(weights, {}, frozen, [batch(system)]).videos
    assert {name: video.shape for name, video in videos.items()} == {"0_a_red_star": (4, 16, 16, 3)}


def test_prompts_and_settings_of_samples_are_checked_when_training_starts(tokenizer, tmp_path, caplog):
    write_video(tmp_path / "0.gif", np.zeros((2, 8, 8, 3), np.uint8), 8.0)
    (tmp_path / "0.txt").write_text("a red circle")
    prompts = ["a red zebra", "a circle moves up " + "a " * 9]
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        system = make(tokenizer, data={"manifest": str(tmp_path)}, sample={"prompts": prompts, "remask": 1})
        assert "motionaura_jax" not in caplog.text  # inference makes the same system
        system.check_data()
    for expected in ("never seen 'zebra'", "is longer than 12 words; cut: 'a '", "without diffusion.corrupt_visible"):
        assert expected in caplog.text


def test_the_saved_recipe_needs_no_captions_and_no_tokenizer(tokenizer, system):
    recipe = system.recipe
    assert recipe.model.vocab_size == 16 and len(recipe.latent_space) == 16
    saved = config.build(TextToVideoRecipe, config.to_dict(dataclasses.replace(recipe, tokenizer="moved/away")))
    again = TextToVideoSystem(saved)
    assert again.recipe == saved and jax.tree.leaves(jax.eval_shape(again.init, jax.random.key(0)))
    with pytest.raises(UserError, match="moved/away: no such checkpoint"):
        again.frozen()


def test_the_vocabulary_comes_from_the_captions_of_the_manifest(tokenizer, tmp_path):
    for number, caption in enumerate(["a red fox", "A blue fox", ""]):
        write_video(tmp_path / f"{number}.gif", np.zeros((2, 8, 8, 3), np.uint8), 8.0)
        (tmp_path / f"{number}.txt").write_text(caption)
    text = {"vocabulary": [], "max_missing": 0.5}
    system = make(tokenizer, data={"manifest": str(tmp_path)}, text=text)
    assert system.recipe.text.vocabulary == ("a", "fox", "blue", "red")
    with pytest.raises(UserError, match=r"1 of 3 clips have no caption, e\.g\. 2\.gif; .*max_missing \(0\.2\)"):
        make(tokenizer, data={"manifest": str(tmp_path)}, text={**text, "max_missing": 0.2})


def test_rendered_scenes_bring_their_words(tokenizer, caplog):
    system = make(tokenizer, data={"scene_style": "easy", "scenes": 2}, text={"vocabulary": []})
    assert {"circle", "purple", "rotates", "background"} <= set(system.recipe.text.vocabulary)
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        system.check_data()
    assert "captions are longer than model.text_len=12" in caplog.text and "are not in" not in caplog.text


def test_captions_are_held_against_a_given_vocabulary_too(tokenizer, tmp_path, caplog):
    for number, caption in enumerate(["a red fox", "a a a a a", ""]):
        write_video(tmp_path / f"{number}.gif", np.zeros((2, 8, 8, 3), np.uint8), 8.0)
        (tmp_path / f"{number}.txt").write_text(caption)
    data, given = {"manifest": str(tmp_path)}, {"max_missing": 0.5, "vocabulary": ["a", "red"]}
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        make(tokenizer, data=data, text=given).check_data()
    assert "1 of 3 clips have no caption" in caplog.text
    assert "12 % of the words in captions are not in config.text.vocabulary, e.g. 'fox'" in caplog.text
    with pytest.raises(UserError, match=r"the vocabulary has no word of its captions, e\.g\. 'a'; write them"):
        make(tokenizer, data=data, text={**given, "vocabulary": ["un", "renard"]}).check_data()
    with pytest.raises(UserError, match="1 of 3 clips have no caption"):
        make(tokenizer, data=data, text={**given, "max_missing": 0.2}).check_data()


@pytest.mark.parametrize("spectral", ["hartley", "re_fft2"])
def test_folded_training_has_the_same_loss_and_gradients(tokenizer, weights, frozen, spectral):
    """The system then runs the folded denoiser."""
    folded, plain = (make(tokenizer, model={"spectral": spectral, "folded_training": on}) for on in (True, False))
    data, key, results, sizes = batch(plain), jax.random.key(4), [], []
    for system in (plain, folded):
        run = jax.jit(jax.value_and_grad(system.loss, has_aux=True))
        results.append(run(weights, {}, frozen, data, key, jnp.int32(0)))
        sizes.append(str(jax.make_jaxpr(system.loss)(weights, {}, frozen, data, key, 0)).count("fft"))
    ((loss, _), gradient), ((other, _), others) = results
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-5), gradient, others)
    assert sizes[0] != sizes[1]


# Each setting changes the computation, not the leaves, or changes nothing.
NO_MEANING = {"qk_gain", "remat", "folded_training", "loss_chunk", "scan", "dtype", "matmul_precision"}
OTHERS = {
    "vocab_size": 9, "width": 32, "heads": 4, "blocks": 2, "mlp_ratio": 3.0, "attention_ratio": 0.5,
    "spectral": "hartley", "cross_spectral": False, "residual": "paper", "rope": "flat1d", "abs_pos": False,
    "adaln": "perblock", "time_cond": False, "learned_null": False, "head_norm": True, "output_bias": True,
    "text_dim": 4, "text_len": 6, "layers": 2, "buckets": 4, "max_distance": 8,
    "lora": LoraConfig(), "rank": 3, "targets": ("q",), "mlp": False, "activation": "none",
}  # fmt: skip


@pytest.mark.parametrize("section", ["model", "model.lora", "text.encoder"])
def test_every_setting_that_changes_no_leaf_but_the_meaning_is_guarded(tokenizer, section):
    values = tiny.text_to_video(tokenizer, model={"lora": {"rank": 2}})
    base = config.build(TextToVideoRecipe, values).completed(make(tokenizer).recipe)
    settings = operator.attrgetter(section)(base)
    shapes = lambda recipe: leaf_types(jax.eval_shape(TextToVideoSystem(recipe).init, jax.random.key(0)))  # noqa: E731
    before = shapes(base)
    for field in dataclasses.fields(settings):
        if field.name in NO_MEANING:
            continue
        changed = dataclasses.replace(settings, **{field.name: OTHERS[field.name]})
        recipe = {
            "model": lambda new: dataclasses.replace(base, model=new),
            "model.lora": lambda new: dataclasses.replace(base, model=dataclasses.replace(base.model, lora=new)),
            "text.encoder": lambda new: dataclasses.replace(base, text=dataclasses.replace(base.text, encoder=new)),
        }[section](changed)
        assert (before != shapes(recipe)) != (f"{section}.{field.name}" in TextToVideoRecipe.meaning), field.name


def test_another_tokenizer_is_refused(tokenizer, system, tmp_path):
    other = tiny.save_tokenizer(tmp_path, codebook_size=8)
    recipe = dataclasses.replace(system.recipe, tokenizer=str(other))
    with pytest.raises(UserError, match=f"the latent space .{{16}}, but {recipe.latent_space} is needed"):
        TextToVideoSystem(recipe).frozen()
    continuous = tiny.save_tokenizer(tmp_path / "continuous", quantizer="none")
    with pytest.raises(UserError, match="has no codebook"):
        make(continuous)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": ""}, "config.tokenizer: name the workdir"),
        ({"sample": {"num_inference_steps": -1}}, "config.sample.num_inference_steps=-1: must be at least 1"),
        ({"sample": {"guidance_scale": 0.5}}, "guidance_scale=0.5: must be at least 1"),
        ({"sample": {"sampler": "greedy"}}, "sampler=greedy: expected one of confidence, halton, random, ancestral"),
        ({"sample": {"schedule": "cosin"}}, "no such schedule; did you mean 'cosine'"),
        ({"sample": {"sampler": "halton", "remask": 2}}, "remask=2"),
        ({"sample": {"temperature": -1.0}}, "temperature=-1.0: must be at least 0"),
        ({"sample": {"top_p": 5.0}}, "sample.top_p=5.0: must be above 0 and at most 1"),
        ({"sample": {"top_k": 0}}, "sample.top_k=0: must be at least 1"),
        ({"sample": {"levels": 0}}, "levels=0: must be at least 1"),
        ({"diffusion": {"schedule": "liner"}}, "no such schedule; did you mean 'linear'"),
        ({"diffusion": {"text_dropout": 1.0}}, "text_dropout=1.0: must be at least 0 and below 1"),
        (
            {"data": {"buckets": [{**tiny.SIZE, "batch_size": size} for size in (2, 4)]}},
            "those of 4x16x16 need one batch_size, not 2 and 4",
        ),
        ({"diffusion": {"objective": "elbo", "corrupt_visible": 0.1}}, "'elbo' is a bound only with"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(tokenizer, change, message):
    with pytest.raises(UserError) as error:
        config.build(TextToVideoRecipe, {**tiny.text_to_video(tokenizer), **change})
    assert message in str(error.value)


def test_the_stages_of_the_paper_share_one_decay():
    for name, last in (("paper_16", 120_000), ("paper_32", 240_000), ("paper_48", 390_000), ("paper_64", 580_000)):
        values = config.read(f"configs/text_to_video.py:tiny,{name}", ["--config.tokenizer=runs/tokenizer"])
        recipe = config.build(TextToVideoRecipe, values)
        rate = optimizer.schedule(recipe.optimizer, recipe.train.steps)
        assert recipe.train.steps == last
        for step_ in (0, last // 2, last):
            np.testing.assert_allclose(rate(step_), 1e-5 * (1 - step_ / 580_000), rtol=1e-5, atol=1e-12)


@pytest.mark.slow(quick=True)
def test_overfits_one_clip(tokenizer, frozen):
    system = make(
        tokenizer,
        model={"width": 32, "spectral": "none"},
        optimizer={"learning_rate": 5e-3, "decay": "constant", "weight_decay": 0.0, "warmup_steps": 5},
        train={"ema_decay": 0.0},
    )
    one = batch(system, 1)
    data = {name: np.repeat(value, 4, axis=0) for name, value in one.items()} | {"sample": np.arange(4, dtype=np.int32)}
    optimize = optimizer.build(system.recipe.optimizer, 100)
    current, train_step = jax.jit(lambda: state.create(system, optimize, 0))(), step.make_train_step(system, optimize)
    for _ in range(100):
        current, _ = train_step(current, frozen, data)
    tokens = jax.jit(lambda t, v: t.encode(v).tokens)(frozen["tokenizer"], one["video"])
    counts = np.bincount(np.asarray(tokens).ravel())
    share = counts[counts > 0] / counts.sum()
    unigram = -(share * np.log(share)).sum()
    assert unigram > 1.0
    assert system.evaluate(current.params, {}, frozen, [data]).metrics["nelbo"] < 0.5 * unigram


def test_the_tokenizer_is_an_argument_of_the_program_that_fills_the_cache(tokenizer, monkeypatch):
    """As a constant it would be recompiled for every system and held twice."""
    traces, encode = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, video: traces.append(1) or encode(self, video))
    values = {**tiny.text_to_video(tokenizer), "token_cache": 8}
    for _ in range(2):
        batch(TextToVideoSystem(config.build(TextToVideoRecipe, values)), 3)
    assert len(traces) == 1


@pytest.mark.as_users_do  # both programs round the same way
def test_cached_tokens_train_the_same(tokenizer, system, weights, frozen):
    cached = TextToVideoSystem(config.build(TextToVideoRecipe, {**tiny.text_to_video(tokenizer), "token_cache": 8}))
    data = batch(cached)
    assert {name: spec.shape for name, spec in cached.batch_spec().items()}["tokens"] == data["tokens"].shape
    losses = [
        jax.jit(one.loss)(weights, {}, frozen, batch(one), jax.random.key(3), jnp.int32(0))[0]
        for one in (system, cached)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)  # two programs, which may round differently
