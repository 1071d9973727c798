"""Text to video from a published encoder: live or from a cache, identified, and never trained."""

import json
import shutil

import jax
import numpy as np
import pytest

from motionaura_jax import encode
from motionaura_jax.conditioning.text import identity
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.data.array_cache import ArrayCache
from motionaura_jax.models.encoders.config import T5Config
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.training import optimizer, state
from motionaura_jax.training.monitoring import flops
from tests.models import published
from tests.systems.tiny import CAPTIONS, SIZE, perturb, save_tokenizer, save_untrained, text_to_video


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a tokenizer, an encoder, a manifest, and the features of its captions."""
    folder = tmp_path_factory.mktemp("frozen")
    save_tokenizer(folder / "tokenizer")
    published.write_t5(folder / "t5")
    rows = [json.dumps({"file": f"{index}.mp4", "caption": text}) for index, text in enumerate(CAPTIONS)]
    (folder / "clips.jsonl").write_text("\n".join(rows))
    assert run_encode(folder, folder / "cache") == 0
    return folder


def run_encode(folder, output, *flags):
    words = ["--text", f"--text_encoder={folder / 't5'}", f"--manifest={folder / 'clips.jsonl'}", "--limit=12"]
    return encode.main([*words, f"--output={output}", "--batch_size=3", "--json", *flags])


def make_recipe(places, **text):
    values = text_to_video(places / "tokenizer", data={"manifest": str(places / "clips.jsonl")})
    values["text"] = {name: str(value) for name, value in text.items()}
    return config.build(TextToVideoSystem.Recipe, values)


def make(places, **text):
    return TextToVideoSystem(make_recipe(places, **text))


@pytest.fixture(scope="module")
def live(places):
    return make(places, tower=places / "t5")


@pytest.fixture(scope="module")
def cached(places):
    return make(places, cache=places / "cache")


def data(system):
    rng = np.random.default_rng(0)
    size = (SIZE["batch_size"], SIZE["num_frames"], SIZE["height"], SIZE["width"], 3)
    batch = {"video": rng.uniform(-1, 1, size).astype(np.float32), "fps": np.full(4, 8, np.float32)}
    return system.to_arrays({**batch, "sample": np.arange(4, dtype=np.int32), "caption": [*CAPTIONS[:3], ""]})


def test_the_encoder_decides_width_and_identity(places, live, cached):
    assert live.recipe.model.text_dim == cached.recipe.model.text_dim == published.T5["d_model"]
    assert live.recipe.text.tower_hash == cached.recipe.text.tower_hash == identity(ArrayCache(places / "cache").meta)
    assert not live.recipe.text.vocabulary
    saved = config.build(TextToVideoSystem.Recipe, config.to_dict(live.recipe))
    assert TextToVideoSystem(saved).recipe == live.recipe


def test_a_plan_needs_neither_encoder_nor_cache(places, cached):
    planned = TextToVideoSystem.planned(config.to_dict(cached.recipe) | {"text": {"tower": "nobody/has-this"}})
    params, extra = jax.eval_shape(planned.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, jax.eval_shape(cached.init, jax.random.key(0))[0])
    spec = dict(planned.batch_spec())
    step = jax.ShapeDtypeStruct((), np.int32)
    value, _ = jax.eval_shape(planned.loss, params, extra, planned.frozen(), spec, jax.random.key(0), step)
    assert value.shape == () and spec["text"]["features"].shape == cached.batch_spec()["text"]["features"].shape


def test_nothing_of_the_encoder_trains_or_is_saved(live):
    params, extra = jax.eval_shape(live.init, jax.random.key(0))
    assert not jax.tree.leaves(params["text"]) and extra == {}
    assert jax.tree.leaves(live.frozen()["text"])


def test_the_encoder_goes_where_the_mesh_says(places, live):
    with jax.set_mesh(make_mesh(MeshConfig())):
        tower = make(places, tower=places / "t5").frozen()["text"]
        assert {leaf.sharding.mesh for leaf in jax.tree.leaves(tower.params)} == {jax.sharding.get_mesh()}
    for ours, other in zip(jax.tree.leaves(tower), jax.tree.leaves(live.frozen()["text"]), strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_batch_has_the_promised_shapes(live, cached):
    for system in (live, cached):
        spec, batch = system.batch_spec(), data(system)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), dict(spec))
        assert shapes == jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), dict(batch))


def test_live_and_cached_features_train_the_same(live, cached):
    params, extra = jax.jit(live.init)(jax.random.key(0))
    params = perturb(params, 0.1)

    def value(system):
        gradient = jax.value_and_grad(system.loss, has_aux=True)
        return jax.jit(gradient)(params, extra, system.frozen(), data(system), jax.random.key(1), 0)

    for ours, other in zip(jax.tree.leaves(value(live)), jax.tree.leaves(value(cached)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-6)


def test_features_are_those_of_the_network_alone(places, cached, live):
    tower = live.frozen()["text"]
    network = T5Encoder(T5Config(**published.T5, feed_forward_proj="gated-gelu"), "bfloat16")
    ids = cached.text.words.batch(CAPTIONS)
    expected = np.asarray(jax.jit(network.apply)({"params": tower.params}, ids, ids != 0), np.float32)
    text = cached.text.batch(CAPTIONS)
    np.testing.assert_array_equal(text["ids"], ids)
    np.testing.assert_allclose(text["features"][ids != 0].astype(np.float32), expected[ids != 0], atol=0.05)
    assert not text["features"][ids == 0].any()


def test_the_captions_reach_the_loss_and_dropped_ones_are_the_null_text(cached):
    params, extra = jax.jit(cached.init)(jax.random.key(0))
    params, batch = perturb(params, 0.1), data(cached)
    loss = jax.jit(lambda batch: cached.loss(params, extra, cached.frozen(), batch, jax.random.key(1), 0)[0])
    assert loss(batch) != loss({**batch, "text": jax.tree.map(lambda leaf: np.roll(leaf, 1, 0), batch["text"])})
    null = cached.text.null()
    assert null["ids"].tolist() == [[1] + [0] * 11]  # </s> alone
    np.testing.assert_array_equal(null["features"], cached.text.batch([""])["features"])


def test_a_new_model_has_one_null_and_an_old_one_keeps_its_parameter(places, live, cached):
    """Guidance and dropout use T5(""): a learned null next to it would never get a gradient."""
    for system in (live, cached):
        assert not system.recipe.model.learned_null
        assert "null" not in jax.eval_shape(system.init, jax.random.key(0))[0]["denoiser"]["text"]

    def loss(params):
        return cached.loss(params, {}, cached.frozen(), data(cached), jax.random.key(1), 0)[0]

    params = perturb(jax.jit(cached.init)(jax.random.key(0))[0], 0.1)
    of_text = jax.jit(jax.grad(loss))(params)["denoiser"]["text"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_text))
    # A config saved before the key existed has an identified encoder and no `learned_null`.
    values = config.to_dict(cached.recipe)
    del values["model"]["learned_null"]
    old = TextToVideoSystem(config.build(TextToVideoSystem.Recipe, values))
    assert "null" in jax.eval_shape(old.init, jax.random.key(0))[0]["denoiser"]["text"]
    fresh = make_recipe(places, cache=places / "cache")
    assert fresh.completed(old.recipe).model.learned_null and not fresh.completed(cached.recipe).model.learned_null


@pytest.mark.parametrize("source", ["cached", pytest.param("live", marks=pytest.mark.slow)])
def test_evaluation_pairs_clips_with_other_captions_and_draws(source, request):
    system = request.getfixturevalue(source)
    params, extra = jax.jit(system.init)(jax.random.key(0))
    found = system.evaluate(perturb(params, 0.1), extra, system.frozen(), [data(system)])
    assert found.metrics["nelbo"] != found.metrics["nelbo_shuffled"] and len(found.videos) == 4


def test_an_interrupted_encoding_goes_on_with_other_processes(places, tmp_path, capsys):
    for process in (0, 1):
        assert run_encode(places, tmp_path / "c", f"--process_index={process}", "--process_count=2") == 0
    assert run_encode(places, tmp_path / "c") == 0
    added = [json.loads(line)["added"] for line in capsys.readouterr().out.splitlines()]
    assert sum(added[:2]) == len(CAPTIONS) + 1 and added[2] == 0
    one, other = ArrayCache(tmp_path / "c"), ArrayCache(places / "cache")
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(one[key].astype(np.float32), other[key].astype(np.float32), atol=0.05)


def test_another_encoder_or_limit_is_refused(places, live, tmp_path):
    other = published.write_t5(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="is needed; name the one that the model was trained with"):
        make(places, tower=other, tower_hash=live.recipe.text.tower_hash).frozen()
    with pytest.raises(UserError, match="is needed"):
        make(places, cache=places / "cache", tower_hash="0" * 16).text.frozen()
    with pytest.raises(UserError, match="is needed"):
        make(places, tower=places / "t5", limit=5, tower_hash=live.recipe.text.tower_hash).frozen()


def test_texts_that_the_cache_lacks_are_named_before_training(places, tmp_path):
    rows = [json.dumps({"file": "0.mp4", "caption": "a purple cow"})]
    (tmp_path / "clips.jsonl").write_text("\n".join(rows))
    values = text_to_video(places / "tokenizer", data={"manifest": str(tmp_path / "clips.jsonl")})
    values["text"] = {"cache": str(places / "cache")}
    system = TextToVideoSystem(config.build(TextToVideoSystem.Recipe, values))
    with pytest.raises(UserError, match=r"has no features of 'a purple cow'; run motionaura encode --text again"):
        system.check_data()
    make(places, cache=places / "cache").check_data()


def test_the_cache_of_something_else_is_refused(places, tmp_path):
    with pytest.raises(UserError, match="is no cache"):
        make(places, cache=tmp_path)
    copy = shutil.copytree(places / "cache", tmp_path / "copy")
    (copy / "cache.json").write_text('{"kind": "tokens", "dtype": "int32"}')
    with pytest.raises(UserError, match="holds no features of texts"):
        make(places, cache=copy)


def test_a_checkpoint_draws_prompts_that_no_cache_has(places, tmp_path):
    from motionaura_jax.pipelines.base import Settings
    from motionaura_jax.pipelines.prompts import Prompt
    from motionaura_jax.pipelines.text_to_video import Job, TextToVideo

    values = text_to_video(places / "tokenizer", data={"manifest": str(places / "clips.jsonl")})
    values["text"] = {"tower": str(places / "t5"), "cache": str(places / "cache")}
    save_untrained(tmp_path / "run", 1.0, **values)
    model = TextToVideo(tmp_path / "run")
    settings = Settings(size=model.size(), fps=8.0, seed=0, sample=model.recipe.sample, window=4, batch_size=2)
    jobs = [Job(prompt=Prompt(text=text)) for text in ("a red circle", "two green squares stay")]
    a, b = model.latents(jobs, settings)
    assert a.shape == b.shape and (a != b).any()
    model.check([job.prompt for job in jobs], settings.sample)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--text"], "needs either --text with --text_encoder, or --checkpoint"),
        (["--text_encoder=x"], "needs either"),
        (["--text", "--text_encoder=x", "--checkpoint=y"], "needs either"),
        (["--checkpoint=y", "--process_index=2", "--process_count=2"], "must be below --process_count=2"),
        (["--text", "--text_encoder=nowhere"], "nowhere: no such folder"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(places, tmp_path, capsys, flags, fault):
    flags = [*flags, f"--manifest={places / 'clips.jsonl'}", f"--output={tmp_path / 'out'}"]
    assert encode.main(flags) == 2
    assert fault in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_arithmetic_of_a_step_with_features_is_counted(cached):
    fresh = jax.eval_shape(lambda: state.create(cached, optimizer.build(cached.recipe.optimizer, 1), 0))
    counted = flops.ModelFlops(cached, fresh, cached.frozen())
    first, again = (counted.add(data(cached)) for _ in range(2))
    assert first == again > 0
