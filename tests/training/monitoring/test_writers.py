"""Metrics: they can be read back, and a failing disk gives a one-line error that names the file, without blocking."""

import errno
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from motionaura_jax.core.errors import UserError
from motionaura_jax.training import checkpoint, loop
from motionaura_jax.training.monitoring.writers import MetricWriter, read_metrics
from tests.training.test_guards import toy


def crc32c(data):
    """Compute CRC-32C bit by bit from its polynomial."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def checked(data, checksum):
    (found,) = struct.unpack("<I", checksum)
    plain = crc32c(data)
    assert found == ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return data


def events(folder):
    """Parse the events of all files by the definition of TFRecord."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", checked(data[:8], data[8:12]))
            found.append(Event.FromString(checked(data[12 : 12 + length], data[12 + length : 16 + length])))
            data = data[16 + length :]
    return found


def test_numbers_and_pictures_reach_tensorboard(tmp_path, caplog):
    Image.fromarray(np.full((2, 3, 3), 200, np.uint8)).save(tmp_path / "a.png")
    writer = MetricWriter(tmp_path, 3)
    writer.scalars(4, {"loss": 0.5, "odd": float("nan")})
    writer.picture(4, "held out", tmp_path / "a.png")
    writer.flush()
    version, start, row, picture = events(tmp_path / "tensorboard")
    assert not caplog.records  # the log reports non-finite steps separately
    writer.close()
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == SessionLog.START and start.step == 4
    assert [event.step for event in (row, picture)] == [4, 4]
    loss, odd = row.summary.value
    assert (loss.tag, loss.simple_value, odd.tag) == ("loss", 0.5, "odd") and np.isnan(odd.simple_value)
    assert (picture.summary.value[0].image.height, picture.summary.value[0].image.width) == (2, 3)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "loss": 0.5, "odd": None}]


class Full:
    """A file on a full disk."""

    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = close = write_event = write


@pytest.mark.parametrize(("part", "name"), [("_file", "metrics.jsonl"), ("_events", "tensorboard")])
def test_a_full_disk_names_the_file_and_closing_is_quiet(tmp_path, part, name):
    writer = MetricWriter(tmp_path, 0)
    setattr(writer, part, Full())
    with pytest.raises(UserError, match=rf"{name}.*: cannot be written \(No space left on device\); free space"):
        writer.scalars(1, {"loss": 1.0})
    Full.close = lambda self: self.write("")
    writer.close()


def test_a_full_disk_never_hangs(root, tmp_path):
    program = f"""
import pathlib, resource, signal, sys
from motionaura_jax.core import cli
from motionaura_jax.training.monitoring.writers import MetricWriter

def write():
    writer = MetricWriter(pathlib.Path({str(tmp_path)!r}), 0)
    writer._path, writer._file = pathlib.Path("/dev/null"), open("/dev/null", "w")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
    try:
        for step in range(200):
            writer.scalars(step, {{"loss": 1.0}})
    finally:
        writer.close()

sys.exit(cli.run(write, as_json=False))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/tensorboard: ") and done.stderr.count("\n") == 1


def test_the_writer_is_closed_though_the_last_save_fails(tmp_path, monkeypatch):
    closed, close, end = [], MetricWriter.close, checkpoint.Checkpoints.close
    monkeypatch.setattr(MetricWriter, "close", lambda self: closed.append("writer") or close(self))

    def fail(self):
        end(self)
        raise UserError("full")

    monkeypatch.setattr(checkpoint.Checkpoints, "close", fail)
    with pytest.raises(UserError, match="full"):
        loop.fit(toy(), tmp_path)
    assert closed == ["writer"]


def test_a_restart_in_the_same_second_keeps_the_events_of_before(tmp_path):
    for step in (1, 2):
        writer = MetricWriter(tmp_path, step - 1)
        writer.scalars(step, {"loss": 1.0})
        writer.close()
    assert [event.step for event in events(tmp_path / "tensorboard") if event.HasField("summary")] == [1, 2]


def test_rows_after_the_resumed_step_and_torn_ones_go(tmp_path):
    rows = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 4, "lo')
    MetricWriter(tmp_path, 2).close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
