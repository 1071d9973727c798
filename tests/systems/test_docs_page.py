"""The code of docs/systems.md, trained and resumed as a user would."""

import re
import sys

import pytest

from motionaura_jax import train
from motionaura_jax.core import config
from motionaura_jax.scenes import dataset
from motionaura_jax.systems import base

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
    monkeypatch.setitem(base.SYSTEMS, "next_frame", line)
    yield config.read(f"{tmp_path / 'presets.py'}:tiny", ["--config.train.steps=4", "--config.train.log_every=1"])
    for name in [name for name in sys.modules if name.split(".")[0] == "next_frame"]:
        del sys.modules[name]


def test_the_system_of_the_page_trains_and_resumes(next_frame, tmp_path):
    easy = dataset.PRESETS["easy"]
    dataset.write_scenes(tmp_path / "clips", count=8, split="train", options=easy, num_frames=4, height=16, width=16)
    data = {"manifest": str(tmp_path / "clips"), "num_frames": 4, "height": 16, "width": 16, "held_out": 0.3}

    def fit(steps, workdir):
        values = {**next_frame, "data": data, "train": {**next_frame["train"], "steps": steps}}
        system = base.system_class("next_frame")
        return train.fit(system(config.build(system.Recipe, values)), tmp_path / workdir, override=True)

    fit(2, "run")
    assert fit(4, "run")["step"] == 4
    assert 0 < fit(4, "whole")["eval_loss"] < 1
