"""Hostile and damaged media: no decoder acts, hangs, or uses memory and time out of proportion; nothing but VideoError."""

import contextlib
import dataclasses
import io
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.latents import FileHashes
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.video import VideoError, probe, read_clip, read_video
from tests.data.videos import encode, flat_frames

FAULTS = Path(os.environ.get("MOTIONAURA_FAULTS", "../shared/faults"))


def refusal(path: Path | str) -> str:
    """Return the message with which every reader refuses `path`."""
    messages = set()
    uses: list[Callable[[Path | str], object]] = [
        probe,
        read_video,
        lambda file: read_clip(file, start=0, fps=8, num_frames=1),
    ]
    for use in uses:
        with pytest.raises(VideoError) as caught:
            use(path)
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    message.encode()
    return message


def test_postscript_under_the_name_of_an_image_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *command, **_: started.append(command))
    monkeypatch.setattr("shutil.which", lambda name, *_: name)
    Image.init()
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
    )
    assert "cannot be decoded as an image" in refusal(tmp_path / "a.jpg")
    assert not started


def damaged(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"BLP2" + struct.pack("<i", 7) + b"\0" * 200,
        b"DDS "
        + struct.pack("<7I", 124, 0x1007, 32, 32, 0, 0, 0)
        + b"\0" * 44
        + struct.pack("<2I", 32, 16)
        + b"\0" * 48,
        pytest.param(damaged("AVIF")[:-300] if "AVIF" in Image.SAVE or Image.init() else b"x", id="avif"),
        b"P6 999999999999999999999 1 255\n",
        damaged("PNG")[:60] + b"\xff" * 400,
        damaged("TIFF")[:40],
    ],
)
def test_images_of_other_formats_and_damaged_ones(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert "cannot be decoded as an image" in refusal(tmp_path / "a.png")


def test_titles_in_other_encodings_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXXcafe"
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in flat_frames(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"XXXXcafe", b"XXXXcaf\xe9"))
    assert len(read_video(path)[0]) == 4


def test_names_that_are_not_text(tmp_path: Path) -> None:
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    encode(tmp_path / "a.mp4", flat_frames(4)).rename(latin)
    assert len(read_video(latin)[0]) == 4
    assert "cannot be read" in refusal(f"{tmp_path}/\ud800.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")).write_bytes(b"x")
    assert r"\udce9.png: cannot be decoded" in refusal(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png"))


def test_a_codec_without_a_decoder(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", flat_frames(4))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert "is in a codec without a decoder; convert it" in refusal(path)


def test_frames_with_one_time_stamp(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", flat_frames(1))
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.webm"), "w") as target:
        del source
        stream = target.add_stream("libvpx", rate=1000)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        packets = [
            packet
            for frame in flat_frames(6)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        ]
        for packet in [*packets, *stream.encode(None)]:
            packet.pts = packet.dts = 0
            packet.duration = 0
            target.mux(packet)
    assert "frames with one time stamp; convert it again" in refusal(tmp_path / "b.webm")


def test_a_file_of_which_no_frame_decodes(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mpg", flat_frames(1), codec="mpeg2video", options={"qscale": "2"}).read_bytes()
    slices = whole.index(b"\x00\x00\x01\x01")
    (tmp_path / "a.mpg").write_bytes(whole[: slices + 5] + b"\xff" * 60 + whole[slices + 65 :])
    assert "holds no frame that can be decoded" in refusal(tmp_path / "a.mpg")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_devices_do_not_hang(tmp_path: Path, make: Callable[[Path], None]) -> None:
    for name in ("a.mp4", "a.png"):
        make(tmp_path / name)
        assert "is a pipe or device, not a file; save the video as a file" in refusal(tmp_path / name)
    with pytest.raises(UserError, match="is a pipe or device"):
        FileHashes(tmp_path).content(Record(path=tmp_path / "a.mp4", caption=None, id="a.mp4"))


def bomb(path: Path, side: int, frames: int = 30) -> Path:
    """Write a GIF of under 2 KB with a large canvas and frames of one pixel."""
    pixel = b"!\xf9\x04\x01\x0a\x00\x00\x00,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0"
    path.write_bytes(b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0\0\0\0\xff\xff\xff" + pixel * frames + b";")
    return path


def test_a_canvas_out_of_proportion_is_refused_before_decoding(tmp_path: Path) -> None:
    start = time.thread_time()
    assert "8192x8192 exceeds the limit of 16777216 pixels; scale it down" in refusal(bomb(tmp_path / "a.gif", 8192))
    assert time.thread_time() - start < 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_reading_stays_under_a_gigabyte(tmp_path: Path) -> None:
    """The largest GIF that is read, in a process of its own."""
    path = bomb(tmp_path / "a.gif", 4096)
    program = f"""
from motionaura_jax.data.video import VideoError, read_clip, read_video
path = {str(path)!r}
assert read_clip(path, start=0, fps=10, num_frames=2, cover=(64, 64)).shape == (2, 64, 64, 3)
assert len(read_video(path, max_frames=4)[0]) == 4
try:
    read_video(path)
except VideoError as error:
    assert "30 frames of 4096x4096 exceed the limit of " in str(error) and " for a file of 710 bytes; ask" in str(error)
else:
    raise AssertionError("read")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1e9  # `getrusage` would count the memory of the process that started it


def test_frames_beyond_the_count_of_the_header_are_not_cut_off_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from motionaura_jax.data import video

    path = encode(tmp_path / "a.mp4", flat_frames(20))
    info = dataclasses.replace(probe(path), frames=5)
    monkeypatch.setattr(video, "probe", lambda _: info)
    assert len(read_video(path)[0]) == 20
    monkeypatch.setattr(video, "PIXELS_PER_BYTE", 0)
    monkeypatch.setattr(video, "MAX_WHOLE_PIXELS", 10 * 32 * 48)
    assert len(read_video(path, max_frames=10)[0]) == 10
    with pytest.raises(VideoError, match="11 frames of 48x32 exceed the limit of 15360 pixels for a file of"):
        read_video(path)


def test_decoding_stops_after_its_share_of_pixels_and_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from motionaura_jax.data import opening

    path = encode(tmp_path / "a.mp4", flat_frames(20))
    probe(path)
    monkeypatch.setattr(opening, "PIXELS_PER_BYTE", 0)
    monkeypatch.setattr(opening, "MAX_DECODED_PIXELS", 10 * 32 * 48)
    assert len(read_video(path, max_frames=5)[0]) == 5
    with pytest.raises(VideoError, match=r"too many large frames before the wanted ones .*; scale it down, or encode"):
        read_video(path)
    monkeypatch.undo()
    monkeypatch.setattr(opening, "MAX_DECODE_SECONDS", -1.0)
    for use in (read_video, lambda file: read_clip(file, start=0.5, fps=8, num_frames=2)):
        with pytest.raises(VideoError, match=r"takes more than -?\d+ s to decode; scale it down"):
            use(path)


def test_positions_outside_the_file_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """PyAV prints tracebacks of callbacks that fail; here the length of an object leads far beyond the file."""
    path = encode(tmp_path / "a.wmv", flat_frames(12), codec="wmv2")
    data = bytearray(path.read_bytes())
    place = data.index(b"\x11\xa3\xa4\x00\xa0\xc9\x03\x48\xf6") + 12
    data[place : place + 4] = b"\xff" * 4
    path.write_bytes(data)
    with contextlib.suppress(VideoError):
        read_video(path)
    assert capfd.readouterr().err == ""


def test_strange_shapes(tmp_path: Path) -> None:
    """Pixels of 1000:1 would make frames that no memory holds; such ratios are damage, and are not applied."""
    wide = encode(
        tmp_path / "a.mkv",
        flat_frames(3),
        prepare=lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", 1000),
    )
    assert (probe(wide).height, probe(wide).width) == (32, 48)
    Image.new("RGB", (1000, 4)).save(tmp_path / "thin.png")
    assert "1000x4 is too narrow" in refusal(tmp_path / "thin.png")


@pytest.mark.skipif(not FAULTS.is_dir(), reason="no collection of faulty files here; set MOTIONAURA_FAULTS")
def test_collected_files_end_in_frames_or_in_one_line() -> None:
    """Files that once escaped as tracebacks."""
    files = [path for folder in ("files", "fuzz") for path in sorted((FAULTS / folder).iterdir())]
    assert files
    start, unusable = time.thread_time(), 0
    for path in files:
        for use in (probe, read_video, lambda file: read_clip(file, start=0, fps=8, num_frames=1, cover=(64, 64))):
            try:
                use(path)
            except VideoError as error:
                unusable += 1
                assert "\n" not in str(error)
                assert not any(bug in str(error) for bug in ("AttributeError", "ZeroDivision", "NameError"))
    assert unusable > len(files)
    assert time.thread_time() - start < 20
