"""Presets: each one builds, traces and has the documented size, without allocating anything."""

import dataclasses
import importlib.util
import json
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


@pytest.mark.parametrize("location", presets(), ids=lambda text: text.rsplit("/", 1)[1])
def test_a_preset_builds_and_traces(location, tokenizer, text_encoder, traced):
    needed = {
        f"--config.text.tower={text_encoder}": location.endswith("t5_xxl"),
        f"--config.tokenizer={tokenizer}": "text_to_video" in location,
        "--config.data.manifest=clips": "tokenizer.py:paper" in location,
    }
    values = config.read(location, [flag for flag, wanted in needed.items() if wanted])
    system_class = registry.system_class(values["system"])
    recipe = config.build(system_class.Recipe, values)
    assert config.build(system_class.Recipe, config.to_dict(recipe)) == recipe
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
    if "paper" not in location:  # tracing the loss of the paper's clips takes long; the others cover its parts
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
    assert build_model(config.read("configs/tokenizer.py:haar")) == build_model(
        config.read("configs/tokenizer.py:paper,haar")
    )


def build_model(values):
    return config.build(MBQVAEConfig, values["model"])


def test_the_papers_clips_do_not_come_from_rendered_scenes():
    with pytest.raises(UserError, match=r"config\.data\.buckets: 48 frames, but the rendered scenes have num_frames=8"):
        config.build(registry.system_class("mbq_vae").Recipe, config.read("configs/tokenizer.py:paper"))
