"""Training on tokens written by `encode`: equal to live encoding, no video decoding, a one-line error for a foreign cache."""

import itertools
import json
import logging
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax import encode
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.data import clips, fields, latents
from motionaura_jax.data.array_cache import ArrayCache
from motionaura_jax.data.loader import Loader
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.data.media import write_video
from motionaura_jax.data.preflight import NoUsableFile
from motionaura_jax.scenes import dataset
from motionaura_jax.systems.loading import load_autoencoder
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.training import loop
from motionaura_jax.training.data import TrainingData
from tests.systems import tiny

SHAPE = {name: tiny.SIZE[name] for name in ("num_frames", "height", "width")}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a tokenizer, captioned clips of exactly the training shape (a single window each), and their tokens."""
    folder = tmp_path_factory.mktemp("latents")
    tiny.save_untrained(folder / "tokenizer", 0.1, system="mbq_vae", model=tiny.TOKENIZER, data=tiny.SIZE)
    dataset.write_scenes(folder / "clips", count=9, split="train", options=dataset.PRESETS["easy"], fps=8.0, **SHAPE)
    assert run_encode(folder, folder / "clips", folder / "tokens") == 0
    return folder


def run_encode(places, manifest, output, *flags):
    paths = [f"--checkpoint={places / 'tokenizer'}", f"--manifest={manifest}", f"--output={output}"]
    return encode.main([*paths, "--batch_size=3", "--json", *flags])


def make(places, manifest="clips", *, data=None, **settings):
    data = {"manifest": str(places / manifest), "held_out": 0.2, "threads": 0, **(data or {})}
    values = tiny.text_to_video(places / "tokenizer", data=data, evaluate={"clips": 2})
    return TextToVideoSystem(config.build(TextToVideoSystem.Recipe, {**values, **settings}))


def cached(places, manifest="clips", folder="tokens", **settings):
    return make(places, manifest, latent_cache=str(places / folder), **settings)


def batches(system, workdir, count=3):
    data = TrainingData(system.recipe, workdir, fields=system.fields)
    return list(itertools.islice(data.batches(0), count))


def test_training_reads_the_tokens_of_live_encoding(places, tmp_path):
    live, ahead = make(places), cached(places)
    tokenizer = live.frozen()["tokenizer"]
    tokens_of = jax.jit(lambda tokenizer, video: tokenizer.encode(video).tokens)
    kinds = set()
    for one, other in zip(batches(live, tmp_path), batches(ahead, tmp_path), strict=True):
        assert "video" not in other and other["tokens"].dtype == np.int32
        np.testing.assert_array_equal(other["tokens"], tokens_of(tokenizer, one["video"]))
        np.testing.assert_array_equal(other["index"], one["index"])
        assert other["caption"] == one["caption"]
        kinds |= set(other["tokens"].ravel().tolist())
    assert len(kinds) > 1
    spec, arrays = ahead.batch_spec(), ahead.to_arrays(other)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), dict(spec))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), dict(arrays))


def test_memory_and_disk_train_the_same(places, tmp_path):
    memory, disk = make(places, token_cache=16), cached(places)
    params, extra = jax.jit(memory.init)(jax.random.key(0))
    params = tiny.perturb(params, 0.1)

    def losses(system):
        loss = jax.jit(lambda batch: system.loss(params, extra, {}, batch, jax.random.key(3), jnp.int32(0))[0])
        return [float(loss(system.to_arrays(batch))) for batch in batches(system, tmp_path)]

    assert losses(memory) == losses(disk)


def test_the_window_is_the_middle_of_each_file(places, tmp_path):
    """For longer and wider files, the tokens are those of the clips that evaluation uses."""
    rng = np.random.default_rng(0)
    for number in range(4):
        frames = rng.integers(0, 256, (11, 20, 30, 3), dtype=np.uint8)
        write_video(tmp_path / "clips" / f"{number}.mp4", frames, 8)
    assert run_encode(places, tmp_path / "clips", tmp_path / "tokens") == 0
    system, records = (
        cached(places, manifest=tmp_path / "clips", folder=tmp_path / "tokens"),
        read_manifest(tmp_path / "clips"),
    )
    buckets = system.recipe.data.all_buckets()
    middle = Loader(records, buckets, seed=0, fps=8, crop="center").batch(0)
    ahead = Loader(records, buckets, fields=system.fields, seed=0, fps=8).batch(0)
    tokens_of = jax.jit(lambda tokenizer, video: tokenizer.encode(video).tokens)
    np.testing.assert_array_equal(ahead["tokens"], tokens_of(system.frozen()["tokenizer"], middle["video"]))


def test_no_video_is_decoded_but_held_out_ones(places, tmp_path):
    system = cached(places)
    data = TrainingData(system.recipe, tmp_path, fields=system.fields)
    assert all("video" in batch and "tokens" not in batch for batch in data.evaluation)
    fail = lambda *_, **__: pytest.fail("a video was opened")  # noqa: E731
    with mock.patch.object(fields, "read_clip", fail), mock.patch.object(clips, "probe", fail):
        assert len(list(itertools.islice(data.batches(0), 4))) == 4
    assert data.describe().startswith("8 files to train on, 1 held out")


def test_a_plan_needs_no_cache(places):
    system = TextToVideoSystem.planned(config.to_dict(make(places).recipe) | {"latent_cache": "nowhere"})
    assert "tokens" in system.batch_spec() and "video" not in system.batch_spec()


def test_files_are_hashed_once_and_found_wherever_they_are(places, tmp_path):
    shutil.copytree(places / "clips", tmp_path / "clips")
    folder = shutil.copytree(places / "tokens", tmp_path / "tokens")
    recipe, records = make(places).recipe, read_manifest(tmp_path / "clips")

    def load():
        field = latents.CachedLatents(folder, "tokens", recipe.latent_space, recipe.data.shapes).field
        return [field.load(record, recipe.data.shapes[0]) for record in records]

    before = load()
    with mock.patch.object(latents, "file_content", lambda path: pytest.fail("a file was read again")):
        np.testing.assert_array_equal(before, load())
    for damage in ("{", "[1]"):
        (folder / "files.json").write_text(damage)
        np.testing.assert_array_equal(before, load())
    records[0].path.write_bytes(records[1].path.read_bytes())
    np.testing.assert_array_equal(before[1], load()[0])


@pytest.mark.slow
def test_a_whole_run_trains_and_evaluates(places, tmp_path):
    evaluate = {"clips": 2, "every": 2, "pictures": 0}
    system = cached(places, train={"steps": 2, "log_every": 1}, evaluate=evaluate)
    result = loop.fit(system, tmp_path / "run")
    assert result["step"] == 2 and np.isfinite([result["loss"], result["eval_nelbo"]]).all()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (
            {"height": 24},
            r"holds clips of 4 frames of 16x16 at 8 fps, but .* 4 frames of 16x24 at 8 fps; run motionaura",
        ),
        ({"num_frames": 8}, r"trains on 8 frames .* run motionaura encode --checkpoint=AUTOENCODER --num_frames=8 "),
        ({"fps": 4.0}, r"at 4 fps; run motionaura encode .* --fps=4 again with another --output"),
        ({"buckets": ({**tiny.SIZE}, {**tiny.SIZE, "fps": 12.0})}, "at 12 fps; run motionaura encode"),
    ],
)
def test_a_cache_of_other_clips_is_refused_before_training(places, data, fault):
    with pytest.raises(UserError, match=fault):
        cached(places, data=data).check_data()


def test_a_cache_of_another_tokenizer_or_kind_is_refused(places, tmp_path):
    with pytest.raises(UserError, match="is no cache; make one with motionaura encode"):
        cached(places, folder=tmp_path / "none").check_data()
    copy = shutil.copytree(places / "tokens", tmp_path / "copy")
    meta = json.loads((copy / "cache.json").read_text())
    for change, fault in [
        ({"model": "0" * 16}, r"holds tokens of latent space 0{16}, but this run has \w+; run motionaura encode"),
        ({"kind": "text"}, "holds no tokens of clips, but text; run motionaura encode"),
    ]:
        (copy / "cache.json").write_text(json.dumps(meta | change))
        with pytest.raises(UserError, match=fault):
            cached(places, folder=copy).check_data()


def test_clips_that_the_cache_lacks_are_refused_but_not_files_that_cannot_be_used(places, tmp_path, caplog):
    """`encode` also skips bad files; training replaces them as it does without a cache."""
    shutil.copytree(places / "clips", tmp_path / "clips")
    broken, short = tmp_path / "clips" / "videos" / "x.mp4", tmp_path / "clips" / "videos" / "y.mp4"
    broken.write_bytes(b"no video")
    write_video(short, np.zeros((2, 16, 16, 3), np.uint8), 8)
    with caplog.at_level(logging.WARNING):
        assert run_encode(places, tmp_path / "clips", tmp_path / "tokens") == 0
    assert sum("left out" in line for line in caplog.messages) == 2
    # Training uses all clips of the manifest.
    arguments = {"manifest": tmp_path / "clips", "evaluate": {"clips": 1, "manifest": str(places / "clips")}}
    live, ahead = make(places, **arguments), cached(places, folder=tmp_path / "tokens", **arguments)
    data = TrainingData(ahead.recipe, tmp_path / "run", fields=ahead.fields)
    assert data.rejected_count == 2 and "probed cannot be used" in data.describe()
    for one, other in zip(batches(live, tmp_path / "other", 6), itertools.islice(data.batches(0), 6), strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
    new = tmp_path / "clips" / "videos" / "z.mp4"
    write_video(new, np.zeros((4, 16, 16, 3), np.uint8), 8)
    with pytest.raises(UserError, match=r"lacks videos/z\.mp4, .*; run motionaura encode --checkpoint again with"):
        TrainingData(ahead.recipe, tmp_path / "run", fields=ahead.fields)
    assert run_encode(places, tmp_path / "clips", tmp_path / "tokens") == 0
    again = cached(places, folder=tmp_path / "tokens", **arguments)
    assert TrainingData(again.recipe, tmp_path / "run", fields=again.fields).rejected_count == 2


def test_a_cache_of_bad_files_alone_does_not_train(places, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(b"no video")
    system = cached(places, manifest=tmp_path)
    with pytest.raises(NoUsableFile, match=r"none of \d files can be used, the first: "):
        TrainingData(system.recipe, tmp_path / "run", fields=system.fields)


def test_encoding_continues_with_another_number_of_processes(places, tmp_path, capsys):
    for process in (0, 1):
        share = (f"--process_index={process}", "--process_count=2")
        assert run_encode(places, places / "clips", tmp_path, *share) == 0
    assert run_encode(places, places / "clips", tmp_path) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(result["added"] for result in results[:2]) == 9 and results[2]["added"] == 0
    assert results[2]["clips"] == 9 and results[2]["num_frames"] == 4
    one, other = ArrayCache(tmp_path), ArrayCache(places / "tokens")
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_an_autoencoder_without_a_codebook_gives_continuous_latents(places, tmp_path):
    plain = {**tiny.TOKENIZER, "quantizer": "none"}
    system = tiny.save_untrained(tmp_path / "plain", 0.1, system="mbq_vae", model=plain, data=tiny.SIZE)
    flags = [f"--checkpoint={tmp_path / 'plain'}", f"--manifest={places / 'clips'}", f"--output={tmp_path / 'latents'}"]
    assert encode.main([*flags, "--batch_size=9"]) == 0
    autoencoder, _ = load_autoencoder(tmp_path / "plain")
    data, records = system.recipe.data, read_manifest(places / "clips")
    field = latents.CachedLatents(tmp_path / "latents", "latents", autoencoder.latent_space, data.shapes).field
    batch = Loader(records, data.all_buckets(), fields=(field, "video"), seed=0, fps=8).batch(0)
    expected = jax.jit(lambda autoencoder, video: autoencoder.encode(video).values)(autoencoder, batch["video"])
    np.testing.assert_allclose(batch["latents"], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="holds no tokens of clips, but latents; run motionaura encode"):
        cached(places, folder=tmp_path / "latents").check_data()


def test_a_clip_shape_that_fits_no_file_is_an_error(places, tmp_path, capsys):
    assert (
        run_encode(places, places / "clips", tmp_path / "tokens", "--height=16384", "--width=16384", "--num_frames=8")
        == 2
    )
    assert "exceed the limit of" in capsys.readouterr().err
    assert run_encode(places, places / "clips", tmp_path / "tokens", "--num_frames=400") == 2
    assert "none of 9 files can be encoded, the first: " in capsys.readouterr().err
