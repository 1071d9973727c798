"""Training, sampling, evaluating and encoding where PyTorch cannot be imported."""

import json
import os
import subprocess
import sys

import pytest

from motionaura_jax.scenes import dataset
from tests import compilation
from tests.models import published
from tests.test_demo import DENOISER, SIZE, TOKENIZER

SCRIPT = """
import importlib.util, json, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] == "torch" else find(name, *rest)
assert importlib.util.find_spec("torch") is None
from motionaura_jax.core import cli
for name, *flags in json.loads(sys.argv[1]):
    assert cli.main([name, *flags]) == 0, name
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_the_whole_pipeline_runs_without_torch(root, tmp_path):
    scenes = dataset.PRESETS["easy"]
    size = {"num_frames": 4, "height": 16, "width": 16}
    dataset.write_scenes(tmp_path / "videos", count=4, split="train", options=scenes, fps=8.0, **size)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    published.write_t5(tmp_path / "t5")
    keys = [
        "data.manifest=videos",
        "data.held_out=0.5",
        "train.steps=1",
        "evaluate.clips=2",
        *SIZE[:3],
        "data.batch_size=2",
    ]
    text = [
        "text.cache=features",
        "text.limit=9",
        "model.text_len=12",
        "sample.prompts=a red circle",
        "tokenizer=tokenizer",
    ]
    text += [key for key in DENOISER if "text" not in key]

    def train(name, keys):
        flags = [f"--config.{key}" for key in keys]
        return ["train", f"--config={root / 'configs' / name}.py:tiny", *flags]

    commands = [
        [*train("tokenizer", [*keys, *TOKENIZER]), "--workdir=tokenizer"],
        ["encode", "--checkpoint=tokenizer", "--manifest=videos", "--output=tokens", "--batch_size=2"],
        ["encode", "--text", "--text_encoder=t5", "--manifest=videos", "--output=features", "--limit=9"],
        [*train("text_to_video", [*keys, *text]), "--workdir=model"],
        ["sample", "--checkpoint=model", "--prompt=a red circle", "--output=out.mp4"],
        ["export", "--checkpoint=model", "--text_encoder=t5", "--format=pytorch", "--no_check", "--output=there"],
    ]
    commands[2].append("--prompts_file=prompts.txt")
    environment = {**os.environ, **compilation.QUICKLY, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eval_nelbo" in (tmp_path / "model" / "metrics.jsonl").read_text()
    assert (tmp_path / "out.mp4").stat().st_size > 500
    assert (tmp_path / "there" / "text_encoder" / "model.safetensors").is_file()
