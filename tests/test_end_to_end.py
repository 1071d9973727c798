"""The commands as people run them: train on mp4 files, be killed, resume, reconstruct."""

import signal
import time

import numpy as np
import pytest

from motionaura_jax.data import scene_set
from motionaura_jax.data.video import read_video
from motionaura_jax.training.writers import read_metrics
from tests.processes import finish, start

SMALL = [
    "--config.model.channels=8,16",
    "--config.model.enc_mb=0,1",
    "--config.model.enc_inc=0,0",
    "--config.model.dec_mb=0,1",
    "--config.model.dec_inc=0,0",
    "--config.model.z_channels=16",
    "--config.model.codebook_size=32",
    "--config.data.num_frames=4",
    "--config.data.height=32",
    "--config.data.width=32",
    "--config.evaluate.clips=4",
]


@pytest.mark.slow
def test_train_kill_resume_reconstruct(root, tmp_path):
    videos = tmp_path / "videos"
    scene_set.write_scenes(
        videos, count=12, split="train", options=scene_set.PRESETS["easy"], num_frames=8, height=48, width=40, fps=8.0
    )
    (videos / "broken.mp4").write_bytes(b"\0" * 100)
    flags = [
        "--config=configs/tokenizer.py:tiny",
        *SMALL,
        f"--config.data.manifest={videos}",
        "--config.data.held_out=0.2",
        "--config.train.log_every=1",
        "--config.checkpoint.every=5",
        "--config.evaluate.every=1000",
    ]
    killed = [*flags, f"--workdir={tmp_path / 'killed'}", "--config.train.steps=40"]
    process = start("train", *killed, root=root)
    deadline = time.monotonic() + 400
    while not list((tmp_path / "killed" / "checkpoints").glob("[0-9]*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed = finish(start("train", *killed, root=root))
    whole = finish(start("train", *flags, f"--workdir={tmp_path / 'whole'}", "--config.train.steps=40", root=root))
    assert resumed["step"] == whole["step"] == 40
    assert resumed["loss"] == whole["loss"] and resumed["eval_psnr"] == whole["eval_psnr"]
    steps = [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 41))
    assert "broken.mp4" in (tmp_path / "killed" / "rejected.jsonl").read_text()

    source = next(videos.rglob("0*.mp4"))
    flags = [f"--checkpoint={tmp_path / 'killed'}", f"--input={source}", f"--output={tmp_path / 'r.mp4'}"]
    result = finish(start("reconstruct", *flags, root=root))
    frames, fps = read_video(tmp_path / "r.mp4")
    assert frames.shape == read_video(source)[0].shape and fps == 8.0
    assert np.isfinite(result["psnr"]) and result["psnr"] > 8


@pytest.mark.slow
def test_a_second_start_compiles_from_the_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    videos = tmp_path / "videos"
    scene_set.write_scenes(
        videos, count=6, split="train", options=scene_set.PRESETS["easy"], num_frames=4, height=32, width=32, fps=8.0
    )
    flags = ["--config=configs/tokenizer.py:tiny", *SMALL, f"--config.data.manifest={videos}", "--config.train.steps=1"]
    flags += ["--config.data.held_out=0.3"]
    finish(start("train", *flags, f"--workdir={tmp_path / 'a'}", root=root))
    programs = sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name.endswith("-cache"))
    finish(start("train", *flags, f"--workdir={tmp_path / 'b'}", root=root))
    assert programs and programs == sorted(p.name for p in (tmp_path / "cache").iterdir() if p.name.endswith("-cache"))
