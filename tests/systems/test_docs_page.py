"""The code of docs/systems.md: one folder and one line in the registry train, resume, export and estimate."""

import re
import sys

import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.exporters import base as exporters
from motionaura_jax.planning.measure import measure
from motionaura_jax.planning.questions import question
from motionaura_jax.scenes import dataset
from motionaura_jax.systems import registry
from motionaura_jax.systems.loading import load
from motionaura_jax.training import loop

PAGE = "docs/systems.md"


@pytest.fixture
def next_frame(tmp_path, monkeypatch, request):
    """Return config values of the system on the page, after writing and registering its files."""
    recipe, system, presets = re.findall(
        r"```python\n(.*?)```", (request.config.rootpath / PAGE).read_text(), re.DOTALL
    )
    (line,) = re.findall(
        r'^"next_frame": "motionaura_jax\.systems\.(.*)",$', (request.config.rootpath / PAGE).read_text(), re.M
    )
    folder = tmp_path / "next_frame"
    folder.mkdir()
    for name, text in {"__init__": "", "recipe": recipe, "system": system}.items():
        (folder / f"{name}.py").write_text(text.replace("motionaura_jax.systems.next_frame", "next_frame"))
    (tmp_path / "presets.py").write_text(presets)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.SYSTEMS, "next_frame", line)
    yield config.read(f"{tmp_path / 'presets.py'}:tiny", ["--config.train.steps=4", "--config.train.log_every=1"])
    for name in [name for name in sys.modules if name.split(".")[0] == "next_frame"]:
        del sys.modules[name]


def test_the_system_of_the_page_trains_resumes_exports_and_is_estimated(next_frame, tmp_path):
    easy = dataset.PRESETS["easy"]
    dataset.write_scenes(tmp_path / "clips", count=8, split="train", options=easy, num_frames=4, height=16, width=16)
    data = {"manifest": str(tmp_path / "clips"), "num_frames": 4, "height": 16, "width": 16, "held_out": 0.3}

    def fit(steps, workdir):
        # A constant rate, so that the number of steps does not change the first of them.
        optimizer = {**next_frame["optimizer"], "decay": "constant"}
        values = {**next_frame, "data": data, "optimizer": optimizer, "train": {**next_frame["train"], "steps": steps}}
        system = registry.system_class("next_frame")
        return loop.fit(system(config.build(system.Recipe, values)), tmp_path / workdir, override=True)

    fit(2, "run")
    assert fit(4, "run")["step"] == 4
    assert 0 < fit(4, "whole")["eval_loss"] < 1
    trained, resumed = load(tmp_path / "whole"), load(tmp_path / "run")
    np.testing.assert_array_equal(trained.params["map"]["kernel"], resumed.params["map"]["kernel"])

    exporters.export(str(tmp_path / "run"), tmp_path / "release", "release", exporters.Options())
    released = load(tmp_path / "release", "next_frame")
    np.testing.assert_array_equal(released.params["map"]["kernel"], trained.params["map"]["kernel"])
    assert released.extra["clips_seen"] == trained.extra["clips_seen"] == 4 * released.recipe.data.batch_size
    with pytest.raises(UserError, match="a next_frame cannot be exported in this format, only as release"):
        exporters.export(str(tmp_path / "run"), tmp_path / "torch", "pytorch", exporters.Options())

    estimate = measure(question({**next_frame, "data": data}))
    width = 3 * released.recipe.patch**2
    assert estimate.parameters == width * (width + 1) and estimate.peak > 4 * estimate.parameters
