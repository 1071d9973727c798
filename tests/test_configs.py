"""Every preset builds, traces and has the size that it promises, without allocating anything."""

import importlib.util
from pathlib import Path

import jax
import pytest

from motionaura_jax import config
from motionaura_jax.systems import base
from tests.systems.tiny import save_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def presets():
    """Every preset; one that names no sizes of its own is tried on the smallest."""
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
    """What every recipe but that of the tokenizer itself is given on the command line."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("location", presets(), ids=lambda text: text.rsplit("/", 1)[1])
def test_a_preset_builds_and_traces(location, tokenizer):
    needed = [f"--config.tokenizer={tokenizer}"] if "text_to_video" in location else []
    values = config.read(location, needed)
    system_class = base.system_class(values["system"])
    recipe = config.build(system_class.Recipe, values)
    system = system_class(recipe)
    params, extra = jax.eval_shape(system.init, jax.random.key(0))
    assert jax.tree.leaves(params)
    assert config.build(system_class.Recipe, config.to_dict(recipe)) == recipe
    if "paper" not in location:  # tracing the loss of the paper's clips takes long; its parts are those of the others
        loss = jax.eval_shape(
            system.loss, params, extra, jax.eval_shape(system.frozen), dict(system.batch_spec()), jax.random.key(0), 0
        )
        assert loss[0].shape == ()
