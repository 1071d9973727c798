"""Commands refuse an output that cannot be written, and numbers that cannot fit, before they open or compute anything."""

import numpy as np
import pytest

from motionaura_jax.core import cli, memory
from motionaura_jax.data.media import write_video

RECONSTRUCT = ["reconstruct", "--checkpoint=gone", "--input=clip.mp4"]
TRAIN = ["train", "--config=configs/tokenizer.py:tiny", "--workdir=w"]
ESTIMATE = ["estimate", "--config=configs/tokenizer.py:tiny"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder that holds a file called `file`, with little memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "total", lambda: 2**30)
    (tmp_path / "file").touch()
    return tmp_path


def refusal(words, capsys):
    """Run a command; return its one line, and check that it left nothing."""
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


@pytest.mark.parametrize(
    "words",
    [
        [*RECONSTRUCT, "--output=file/o.mp4"],
        ["encode", "--checkpoint=gone", "--manifest=gone", "--output=file/o"],
        ["export", "--checkpoint=gone", "--output=file/o"],
        ["demo", "--output=file/o"],
        ["train", "--config=configs/tokenizer.py:tiny", "--workdir=file/o"],
    ],
    ids=lambda words: words[0],
)
def test_a_folder_that_cannot_be_made_is_refused_first(words, capsys, folder):
    assert "cannot be written (not a directory); choose a folder" in refusal(words, capsys)
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "words", [["encode", "--checkpoint=gone", "--manifest=gone", "--output=file"], ["demo", "--output=file"]]
)
def test_a_file_is_no_output_folder(words, capsys):
    assert "file: is not a folder" in refusal(words, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "--manifest=m", "--output=o", "--height=1000000000"], "must be at least 1 and at most 16384"),
        (["encode", "--manifest=m", "--output=o", "--fps=1e300"], "must be at least 0.01 and at most 1000"),
        (["encode", "--manifest=m", "--output=o", "--limit=1000000"], "must be at least 1 and at most 16384"),
        ([*RECONSTRUCT, "--output=o.mp4", "--max_frames=" + "9" * 5000], "is not a valid number"),
        (["export", "--checkpoint=c", "--output=o", f"--max_shard_bytes={10**30}"], "must be at least 1"),
        (["demo", "--prompts=1000000000"], "must be at least 2 and at most 10000"),
        (["demo", "--seeds=1000000000"], "must be at least 1 and at most 1000"),
        ([*TRAIN, "--start_timeout=1000000000000"], "must be at least 1 and at most 1000000"),
        ([*TRAIN, "--config.data.height=8000000"], "config.data.height=8000000: must be at least 1 and at most 16384"),
        ([*TRAIN, "--config.model.channels=1,1,1,1000000000"], "at most 1048576"),
        ([*TRAIN, "--config.data.batch_size=60000"], "config.data.batch_size=60000: needs at least"),
        ([*ESTIMATE, "--mesh=data:1000000000"], "write each axis once with its number of devices, from 1 to 65536"),
        ([*ESTIMATE, "--mesh=data:50000"], "an estimate is possible for at most 4096"),
        ([*ESTIMATE, "--mesh=data:" + "9" * 5000], "write each axis once"),
        ([*ESTIMATE, "--config.model.dec_mb=1000000000,1,1"], "at most 1024"),
    ],
    ids=lambda value: value[-1][:40] if isinstance(value, list) else "",
)
def test_a_number_beyond_its_limit_is_one_line(words, message, capsys, folder):
    assert message in refusal(words, capsys)
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_video_beyond_the_memory_is_refused_before_it_is_read(capsys, folder, monkeypatch):
    write_video(folder / "clip.mp4", np.zeros((6, 16, 16, 3), np.uint8), 8)
    monkeypatch.setattr(memory, "total", lambda: 4 * 16 * 16 * 30)
    line = refusal([*RECONSTRUCT, "--output=o.mp4"], capsys)
    assert line.startswith("error: --max_frames=6: needs at least") and line.endswith(
        "the largest value that fits is 4"
    )
