"""Presets: each one builds and traces, without allocating anything."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import jax
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.denoisers.config import PRESETS as MODELS
from motionaura_jax.systems import registry
from tests.models.published import write_t5
from tests.systems.tiny import save_tokenizer

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("paper_16", "paper_32", "paper_48", "paper_64")
OUTSIDE_THE_LOSS = {"data", "sample", "train", "optimizer", "evaluate", "checkpoint"}


def presets():
    """Return every preset; one without sizes is combined with the smallest."""
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, preset in module.PRESETS.items():
            found.append(f"{path}:{name}" if "model.channels" in preset else f"{path}:tiny,{name}")
    return found


def read(location, tokenizer="runs/tokenizer", text_encoder=""):
    """Return system and recipe of a preset, with the paths that it leaves open."""
    needed = {
        f"--config.text.tower={text_encoder}": location.endswith(("t5_xxl", *STAGES)) and text_encoder,
        "--config.loss.perceptual_weights=squeezenet.npz": location.endswith("perceptual"),
        f"--config.tokenizer={tokenizer}": "text_to_video" in location,
        "--config.data.manifest=clips": "tokenizer.py:paper" in location,
    }
    values = config.read(location, [flag for flag, wanted in needed.items() if wanted])
    system_class = registry.system_class(values["system"])
    return system_class, config.build(system_class.Recipe, values)


@pytest.mark.parametrize("location", presets(), ids=lambda text: text.rsplit("/", 1)[1])
def test_a_preset_builds_and_comes_back_as_it_was_saved(location):
    system_class, recipe = read(location)
    assert config.build(system_class.Recipe, config.to_dict(recipe)) == recipe


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Return an untrained tokenizer, which every recipe except its own needs."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    """Return a small T5 in place of the published one, which would have to be downloaded."""
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def traced():
    """Return the structures that this module has traced."""
    return set()


def shallow(recipe):
    """Keep one tokenizer block of each kind per level: more of the same only take longer to trace."""
    if not isinstance(recipe.model, MBQVAEConfig):
        return recipe
    names = ("enc_mb", "enc_inc", "dec_mb", "dec_inc")
    blocks = {name: tuple(min(count, 1) for count in getattr(recipe.model, name)) for name in names}
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **blocks))


def traced_presets():
    """Return all presets; only those of the demo are traced by default, since others trace parts with own tests."""
    for location in presets():
        yield location if location.endswith((":demo", ",demo")) else pytest.param(location, marks=pytest.mark.slow)


@pytest.mark.parametrize("location", [*traced_presets()], ids=lambda text: text.rsplit("/", 1)[1])
def test_a_preset_traces(location, tokenizer, text_encoder, traced):
    system_class, recipe = read(location, tokenizer, text_encoder)
    system = system_class(shallow(recipe))
    spec = dict(system.batch_spec())
    # Presets that differ only in sampling, the optimizer or the schedule of a run trace the same programs.
    parts = {key: value for key, value in config.to_dict(system.recipe).items() if key not in OUTSIDE_THE_LOSS}
    structure = json.dumps([parts, str(spec), "paper" in location], default=str)
    if structure in traced:
        return
    traced.add(structure)
    params, extra = jax.eval_shape(system.init, jax.random.key(0))
    assert jax.tree.leaves(params)
    # Tracing the loss of the paper's clips takes long, and `perceptual` needs weights; tests of its parts cover both.
    if "paper" not in location and "perceptual" not in location:
        inputs = (system.frozen(), spec, jax.random.key(0), 0)
        loss = jax.eval_shape(system.loss, params, extra, *inputs)
        assert loss[0].shape == ()


@pytest.mark.parametrize("name", MODELS)
def test_every_size_of_the_denoiser_is_a_preset(name):
    model = config.read(f"configs/text_to_video.py:{name}", ["--config.tokenizer=runs/tokenizer"])["model"]
    assert MODELS[name].items() <= model.items()


def test_the_three_readings_of_the_papers_tokenizer():
    read = {name: config.read(f"configs/tokenizer.py:{name}") for name in ("paper", "paper_f1", "paper_text")}
    paper, other_sizes, other_rate = (build_model(values) for values in read.values())
    assert (paper.t_stride, paper.dec_mb) == (4, (2, 2, 2, 7))
    assert (other_sizes.t_stride, other_sizes.dec_mb) == (4, (1, 1, 3, 9))
    assert dataclasses.replace(other_rate, t_stride=4) == paper and other_rate.t_stride == 1
    assert all(values["loss"] == read["paper"]["loss"] for values in read.values())


@pytest.mark.parametrize("size", ["tiny", "small", "base", "paper"])
def test_patches_take_the_place_of_the_first_level(size):
    """Weights change, latents keep their grid."""
    whole = build_model(config.read(f"configs/tokenizer.py:{size}"))
    for kind, more in (("patch", ""), ("haar", ",causal")):
        model = build_model(config.read(f"configs/tokenizer.py:{size},{kind}{more}"))
        assert (model.stem, model.patch, model.strides) == (kind, (2, 4, 4), whole.strides)
        assert (model.channels, model.dec_mb) == (whole.channels[1:], whole.dec_mb[1:])
    demo = build_model(config.read("configs/tokenizer.py:demo"))
    assert build_model(config.read("configs/tokenizer.py:demo,haar")).strides == demo.strides
    paper = build_model(config.read("configs/tokenizer.py:paper,haar", ["--config.model.remat=none"]))
    assert build_model(config.read("configs/tokenizer.py:haar")) == paper


def build_model(values):
    return config.build(MBQVAEConfig, values["model"])


def test_the_papers_clips_do_not_come_from_rendered_scenes():
    with pytest.raises(UserError, match=r"config\.data\.buckets: 48 frames, but the rendered scenes have num_frames=8"):
        config.build(registry.system_class("mbq_vae").Recipe, config.read("configs/tokenizer.py:paper"))


def recipe_of(location, *flags):
    values = config.read(f"configs/{location}", flags)
    return config.build(registry.system_class(values["system"]).Recipe, values)


@pytest.mark.parametrize(("name", "hits"), [("small", 1), ("base", 8), ("base,images", 8), ("paper", 256)])
def test_a_step_of_a_tokenizer_hits_each_code(name, hits):
    """Batches of 64 to 256 clips or of that many tokens, several frame rates, terms of the field."""
    recipe = recipe_of(f"tokenizer.py:{name}", "--config.data.manifest=clips")
    for bucket in recipe.data.all_buckets():
        grid = recipe.model.geometry.latent_shape(bucket.num_frames, bucket.height, bucket.width)
        assert bucket.batch_size * math.prod(grid) / recipe.model.codebook_size >= hits
        assert recipe.train.microbatches(bucket.batch_size // 8) * recipe.train.microbatch * 8 >= bucket.batch_size
    assert {8.0, 16.0, 24.0} <= set(recipe.data.rates)
    assert bool(recipe.loss.adversarial) == ("paper" not in name)


def test_the_stages_of_the_paper_have_its_text_encoder_and_sizes_and_rates():
    for stage, frames, clips in zip(STAGES, (16, 32, 48, 64), (512, 256, 256, 128), strict=True):
        recipe = recipe_of(f"text_to_video.py:L,{stage}", "--config.tokenizer=runs/tokenizer")
        assert recipe.text.tower == "google/t5-v1_1-xxl" and recipe.model.text_dim == 4096
        shapes = {(shape.num_frames, shape.height, shape.width) for shape in recipe.data.shapes}
        assert len(shapes) == 5 and {shape[0] for shape in shapes} == {frames}
        assert all(size % 16 == 0 for shape in shapes for size in shape[1:])
        assert {bucket.batch_size for bucket in recipe.data.all_buckets()} == {clips}
        assert len(recipe.data.all_buckets()) == 15 and set(recipe.data.rates) == {8.0, 16.0, 24.0}


def test_images_are_clips_of_one_frame():
    for location in ("tokenizer.py:base,images", "text_to_video.py:S,images"):
        recipe = recipe_of(location, *["--config.tokenizer=runs/tokenizer"] * ("text" in location))
        assert {bucket.num_frames for bucket in recipe.data.all_buckets()} == {1, 16}
    system = registry.system_class("mbq_vae")(shallow(recipe_of("tokenizer.py:small")))
    spec = {**system.batch_spec(), "video": jax.ShapeDtypeStruct((64, 1, 128, 128, 3), "float32")}
    params, extra = jax.eval_shape(system.init, jax.random.key(0))
    assert jax.eval_shape(system.loss, params, extra, {}, spec, jax.random.key(0), 0)[0].shape == ()
