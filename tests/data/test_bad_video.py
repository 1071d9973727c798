"""Unusable and partly usable files: a one-line error each, never a traceback."""

import errno
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from motionaura_jax.core.errors import UserError
from motionaura_jax.data import images, opening, video
from motionaura_jax.data.video import VideoError, probe, read_clip, read_video
from tests.data.videos import encode, flat_frames


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_without_frames(path: Path) -> Path:
    with av.open(str(path), "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        container.start_encoding()
    return path


def write_cut_header(path: Path) -> Path:
    whole = encode(path, flat_frames(20)).read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])  # the index of an .mp4 is at the end
    return path


def write_playlist(path: Path) -> Path:
    encode(path.with_name("part.ts"), flat_frames(20))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\npart.ts\n#EXT-X-ENDLIST\n")
    return path


def write(data: bytes) -> Callable[[Path], Path]:
    def apply(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return apply


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("name", "make", "fault"),
    [
        ("missing.mp4", lambda path: path, "no such file; check the path"),
        ("zero.mp4", write(b""), r"is empty \(0 bytes\); copy"),
        ("folder.mp4", make_folder, "is a folder, not a video; "),
        ("notes.txt", write(b"x"), r"suffix '\.txt' is not that of a video or image; use one of: "),
        ("text.mp4", write(b"plain text " * 99), r"cannot be decoded \(Invalid data.*; the file is damaged"),
        ("text.png", write(b"plain text " * 99), "cannot be decoded as an image; replace it"),
        ("sound.mp4", write_audio, r"has no video stream \(streams: audio\); "),
        ("hollow.mp4", write_without_frames, "(holds no frame that can be decoded|cannot be decoded)"),
        ("cut.mp4", write_cut_header, "(cannot be decoded|has no video stream)"),
        ("list.mp4", write_playlist, "cannot be decoded"),
        ("list.ts", write_playlist, "cannot be decoded"),
        ("script.mp4", write(b"ffconcat version 1.0\nfile '/etc/passwd'\n"), "cannot be decoded"),
    ],
)
def test_bad_file_gives_one_line_with_file_fault_and_remedy(
    tmp_path: Path, name: str, make: Callable[[Path], Path], fault: str
) -> None:
    path = make(tmp_path / name)
    for use in (probe, read_video, lambda file: read_clip(file, start=0, fps=8, num_frames=2)):
        with pytest.raises(VideoError, match=fault) as caught:
            use(path)
        assert isinstance(caught.value, UserError)
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value) == f"{path}: {caught.value.fault}; {caught.value.remedy}"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://host/a.mp4", "rtsp://host/a.mp4", "concat:/a.mp4|/b.mp4", "file:///a.mp4"])
def test_only_local_paths_are_opened(address: str) -> None:
    with pytest.raises(VideoError, match="is a network address; download"):
        probe(address)


def test_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "secret.mp4", flat_frames(2))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # file modes do not stop root
    with pytest.raises(VideoError, match=r"cannot be read \(Permission denied\); check its permissions"):
        probe(path)


def test_file_cut_off_in_the_middle_serves_up_to_the_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
    path = encode(tmp_path / "cut.mp4", frames, options={"g": "5"}, container_options={"movflags": "+faststart"})
    whole, _ = read_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = read_clip(path, start=0.3, fps=10, num_frames=6)
    np.testing.assert_array_equal(clip, whole[3:9])
    rest, _ = read_video(path)
    assert 10 < len(rest) < 30
    np.testing.assert_array_equal(rest[:10], whole[:10])
    with pytest.raises(VideoError, match=r"of the 4\.00 s its header promises; the file is damaged or cut off"):
        read_clip(path, start=3, fps=10, num_frames=6)


def test_limits_apply_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mp4", flat_frames(20))
    monkeypatch.setattr(video, "MAX_CLIP_PIXELS", 32 * 48 * 10)
    with pytest.raises(VideoError, match="20 frames of 48x32 exceed the limit of 15360 pixels; ask for fewer"):
        read_video(path)
    assert len(read_video(path, max_frames=10)[0]) == 10
    assert len(read_clip(path, start=0, fps=10, num_frames=20, cover=(8, 8))) == 20
    monkeypatch.setattr(opening, "MAX_FRAME_PIXELS", 1000)
    monkeypatch.setattr(images, "MAX_STILL_PIXELS", 1000)
    huge = encode(tmp_path / "huge.mp4", flat_frames(2))
    Image.new("RGB", (48, 32)).save(tmp_path / "huge.png")
    for file in (huge, tmp_path / "huge.png"):
        with pytest.raises(VideoError, match="48x32 exceeds the limit of 1000 pixels; scale it down"):
            probe(file)
