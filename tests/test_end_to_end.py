"""The commands as users run them, on video files: killed trainings resume bit for bit, and their results work."""

import numpy as np
import pytest

from motionaura_jax.data.video import read_video
from motionaura_jax.scenes import dataset
from tests import compilation
from tests.processes import finish, kill, start
from tests.systems import tiny
from tests.test_faults import assert_equal_runs, saved

STEPS = 30


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Return twelve captioned clips and one broken file, all larger and longer than the training clips."""
    folder = tmp_path_factory.mktemp("videos")
    size = {"num_frames": 8, "height": 48, "width": 40}
    dataset.write_scenes(folder, count=12, split="train", options=dataset.PRESETS["easy"], fps=8.0, **size)
    (folder / "broken.mp4").write_bytes(b"\0" * 100)
    return folder


def flags_of(values, prefix="--config"):
    """Return settings as command-line flags."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flags_of(value, f"{prefix}.{key}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{prefix}.{key}={text}"


def train(name, videos, **settings):
    """Return the flags of a training run whose resume must restore accumulation and an average."""
    settings = {
        **settings,
        "data": {"manifest": videos, **tiny.SIZE, "held_out": 0.2},
        "train": {"steps": STEPS, "log_every": 1, "accumulation": 2, "ema_decay": 0.99},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 1000, "clips": 2, "pictures": 0},
    }
    return ["train", f"--config=configs/{name}.py:tiny", *flags_of(settings)]


def kill_and_resume(command, workdir, root):
    """Kill a training run after its eighth step and rerun it to the end."""
    kill(start(*command, f"--workdir={workdir}", root=root), lambda: saved(workdir) >= 8)
    assert saved(workdir) < STEPS
    assert finish(start(*command, f"--workdir={workdir}", root=root))["step"] == STEPS


def run_whole(command, workdir, root):
    assert finish(start(*command, f"--workdir={workdir}", root=root))["step"] == STEPS


@pytest.mark.slow
def test_train_kill_resume_reconstruct(root, videos, tmp_path, monkeypatch):
    """Later starts find all programs in the cache."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    killed, whole, output = tmp_path / "killed", tmp_path / "whole", tmp_path / "r.mp4"
    command = train("tokenizer", videos, model=tiny.TOKENIZER)
    kill_and_resume(command, killed, root)
    programs = sorted(path.name for path in (tmp_path / "cache").glob("*-cache"))
    run_whole(command, whole, root)
    assert programs and programs == sorted(path.name for path in (tmp_path / "cache").glob("*-cache"))
    assert_equal_runs(killed, whole)
    assert "broken.mp4" in (killed / "rejected.jsonl").read_text()

    source = next(videos.rglob("0*.mp4"))
    flags = [f"--checkpoint={killed}", f"--input={source}", f"--output={output}"]
    result = finish(start("reconstruct", *flags, root=root))
    frames, fps = read_video(output)
    assert frames.shape == read_video(source)[0].shape and fps == 8.0
    assert np.isfinite(result["psnr"]) and result["psnr"] > 8


@pytest.mark.slow
def test_train_kill_resume_sample(root, videos, tmp_path, monkeypatch):
    for name, value in compilation.QUICKLY.items():  # three starts take less time than optimized compilation
        monkeypatch.setenv(name, value)
    model = tiny.text_to_video(tiny.save_tokenizer(tmp_path / "weights"))
    sections = {name: model[name] for name in ("tokenizer", "sample")}
    sections |= {"model": {**model["model"], "vocab_size": 16}}
    sections |= {"text": {"encoder": model["text"]["encoder"], "max_missing": 0.1}}  # the broken file has no caption
    command = train("text_to_video", videos, **sections)
    killed, whole, output = tmp_path / "killed", tmp_path / "whole", tmp_path / "out.mp4"
    kill_and_resume(command, killed, root)
    run_whole(command, whole, root)
    assert_equal_runs(killed, whole)

    flags = [f"--checkpoint={killed}", "--prompt=a large red circle moves up", f"--output={output}"]
    finish(start("sample", *flags, root=root))
    frames, fps = read_video(output)
    assert frames.shape == (4, 16, 16, 3) and fps == 8.0
