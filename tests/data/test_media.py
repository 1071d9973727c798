"""Written media: they play everywhere, read back, and never appear half-finished."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.media import (
    check_output,
    check_suffix,
    contact_sheet,
    moving_sheet,
    write_json,
    write_text,
    write_video,
)
from motionaura_jax.data.video import read_clip, read_video


def smooth_video(frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    """Return a smooth gray-blue wave that moves to the right."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    wave = 128 + 90 * np.sin((x - 2 * t) / 9) * np.cos(y / 11)
    return np.stack([wave, wave, 0.5 * wave + 60], axis=-1).round().astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


@pytest.mark.parametrize("fps", [8, 23.976, 29.97, 30000 / 1001])
def test_mp4_is_what_browsers_play(tmp_path: Path, fps: float) -> None:
    video = smooth_video()
    assert write_video(tmp_path / "a.mp4", video, fps) == [tmp_path / "a.mp4"]
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate or 0) == pytest.approx(fps, rel=1e-4)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    back, rate = read_video(tmp_path / "a.mp4")
    assert rate == pytest.approx(fps, rel=1e-4)
    assert back.shape == video.shape
    assert psnr(back, video) > 38


def test_odd_sizes_are_padded_by_the_edge(tmp_path: Path) -> None:
    video = smooth_video(height=33, width=47)
    write_video(tmp_path / "odd.mp4", video, 8)
    back, _ = read_video(tmp_path / "odd.mp4")
    assert back.shape == (6, 34, 48, 3)
    assert psnr(back, np.pad(video, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")) > 38


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_lossless_mp4_is_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    video = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", video, 8, lossless=True)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4")[0], video)


@pytest.mark.parametrize("fps", [8.0, 30.0])
def test_gif_keeps_time(tmp_path: Path, fps: float) -> None:
    video = smooth_video(12)
    write_video(tmp_path / "a.gif", video, fps)
    back, rate = read_video(tmp_path / "a.gif")
    assert len(back) == 12
    assert rate == pytest.approx(fps, rel=0.02)
    assert psnr(back, video) > 27
    assert psnr(read_clip(tmp_path / "a.gif", start=0, fps=fps, num_frames=12), video) > 27


@pytest.mark.parametrize("fps", [8.0, 29.97])
def test_webp_keeps_time_and_loops(tmp_path: Path, fps: float) -> None:
    video = smooth_video(12)
    write_video(tmp_path / "a.webp", video, fps)
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (12, (48, 32), 0)
        frames, durations = [], []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            durations.append(frame.info["duration"])
    assert sum(durations) == pytest.approx(12_000 / fps, abs=1)
    assert psnr(np.stack(frames), video) > 32
    with pytest.raises(UserError, match=r"b\.webp: a \.webp has at most 16383 pixels a side; write \.mp4 or \.png"):
        write_video(tmp_path / "b.webp", np.zeros((1, 2, 2**14, 3), np.uint8), fps)


def test_npz_and_png_are_exact(tmp_path: Path) -> None:
    video = smooth_video(3)
    write_video(tmp_path / "a.npz", video, 12.5)
    with np.load(tmp_path / "a.npz") as stored:
        np.testing.assert_array_equal(stored["video"], video)
        assert stored["fps"] == 12.5
    files = write_video(tmp_path / "new" / "a.png", video, 8)
    assert [file.name for file in files] == ["a_0000.png", "a_0001.png", "a_0002.png"]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), video)
    assert write_video(tmp_path / "one.png", video[:1], 8) == [tmp_path / "one.png"]


def test_suffix_is_checked(tmp_path: Path) -> None:
    assert check_suffix(tmp_path / "A.MP4") == ".mp4"
    with pytest.raises(
        UserError, match=r"a\.mp5: cannot write suffix '\.mp5'; did you mean '\.mp4'\?; end the name in"
    ):
        check_suffix("a.mp5")
    with pytest.raises(UserError, match="cannot write suffix ''"):
        write_video(tmp_path / "name", smooth_video(), 8)


def test_existing_files_are_kept_when_asked(tmp_path: Path) -> None:
    video = smooth_video(2)
    write_video(tmp_path / "a.png", video, 8)
    with pytest.raises(UserError, match=r"a_0000\.png: exists already; choose another name or remove it"):
        write_video(tmp_path / "a.png", video, 8, overwrite=False)
    write_video(tmp_path / "a.png", 255 - video, 8)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_0001.png")), 255 - video[1])


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (smooth_video().astype(np.float32), 8),
        (smooth_video()[0], 8),
        (smooth_video()[:0], 8),
        (smooth_video(), 0),
        (smooth_video(), float("inf")),
    ],
)
def test_impossible_videos(tmp_path: Path, frames: np.ndarray, fps: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        write_video(tmp_path / "a.mp4", frames, fps)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit makes a real write fail midway."""
    program = f"""
        import resource
        import numpy as np
        from motionaura_jax.data.media import write_video
        from motionaura_jax.core.errors import UserError
        video = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        for suffix in ("mp4", "gif", "webp", "npz", "png"):
            try:
                write_video({str(tmp_path / "a")!r} + "." + suffix, video, 8)
            except UserError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    said, lines = (
        "cannot be written (File too large); free disk space or write to another disk",
        done.stdout.splitlines(),
    )
    assert len(lines) == 5 and all(said in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_failure_keeps_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "former")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\); free disk space"):
        write_text(tmp_path / "a.txt", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "former")]


def test_unwritable_place(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match=r"cannot be written .*; check the folder's permissions"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_text_and_json(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"caption": "größer", "steps": [1, 2]})
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8").startswith('{\n  "caption": "größer"')


def test_contact_sheet_shows_evenly_spaced_frames(tmp_path: Path) -> None:
    levels = np.arange(0, 250, 10, dtype=np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (25, 24, 40, 3))
    rows = [("input", video), ("a very long label that is wider than one frame", video[:1])]
    assert contact_sheet(rows, tmp_path / "sheet.png", columns=4) == tmp_path / "sheet.png"
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    middle = sheet[20 + 12, 20::44, 0]
    assert middle[:4].tolist() == [0, 80, 160, 240]
    assert (sheet[:20] < 100).any(), "the label is drawn"
    with pytest.raises(UserError, match="a contact sheet is a PNG image"):
        contact_sheet(rows, tmp_path / "sheet.mp4")
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([], tmp_path / "sheet.png")


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_moving_sheet_plays_all_videos_together(tmp_path: Path, suffix: str) -> None:
    levels = np.array([0, 80, 160, 240], np.uint8)
    long = np.broadcast_to(levels[:, None, None, None], (4, 24, 48, 3))
    label = (
        "a label of so many words that it needs more than three lines of the width of a tile, and then some words more"
    )
    rows = [("one", long), (label, long[:2]), ("three", long[:, :, :16])]
    path = moving_sheet(rows, tmp_path / f"sheet{suffix}", fps=8.0, columns=2)
    with Image.open(path) as image:
        assert image.n_frames == 4 and image.width == 2 * 192 + 3 * 8
        frames = []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")).astype(int))
        assert frame.info["duration"] == pytest.approx(125 + 500, abs=5)
    second_row = 8 + 96 + 3 * 16 + 16
    for corner, shown in (((8, 8), levels), ((8, 208), levels[[0, 1, 1, 1]]), ((second_row, 8), levels)):
        middle = [float(frame[corner[0] + 48, corner[1] + 16].mean()) for frame in frames]
        assert np.abs(np.array(middle) - shown).max() < 8
    assert np.abs(frames[3][second_row + 48, 8 + 100] - (24, 26, 31)).max() < 8, "a narrow video leaves the ground"
    assert (frames[0][8 + 96 : second_row, 208:] > 150).any(), "the label is drawn"


def test_moving_sheets_refuse_what_they_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a moving sheet is an animation; end the name in \.webp or \.gif"):
        moving_sheet([("a", smooth_video())], tmp_path / "a.png", 8.0)
    with pytest.raises(ValueError, match="at least one row"):
        moving_sheet([], tmp_path / "a.webp", 8.0)


def test_taken_names_and_wrong_suffixes_are_refused_before_any_work(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "b_0000.png").write_bytes(b"x")
    for name in ("a.mp4", "b.png"):
        with pytest.raises(UserError, match="exists already"):
            check_output(tmp_path / name, overwrite=False)
        check_output(tmp_path / name, overwrite=True)
    check_output(tmp_path / "c.gif", overwrite=False)
    with pytest.raises(UserError, match="cannot write suffix"):
        check_output(tmp_path / "c.avi", overwrite=True)


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video = smooth_video()
    for name in ("12:30.mp4", "exp:/a.mp4", "12:30.gif", "a:b.png", "-c.mp4", "100%d.mp4"):
        files = write_video(name, video, 8)
        assert all(file.exists() for file in files)
        assert len(read_video(files[0])[0]) in (1, 6)


def test_both_writers_write_one_color(tmp_path: Path) -> None:
    """The exported `export_to_video` and `write_video`: equal bytes, equal tags, and the color that was written."""
    pytest.importorskip("torch")
    from motionaura_jax.exporters.pytorch.pipeline_motionaura import export_to_video

    patch = np.broadcast_to(np.array([200, 60, 30], np.uint8), (4, 720, 1281, 3))
    write_video(tmp_path / "ours.mp4", patch, 8)
    export_to_video(patch.copy(), tmp_path / "exported.mp4", 8)
    assert (tmp_path / "ours.mp4").read_bytes() == (tmp_path / "exported.mp4").read_bytes()
    with av.open(str(tmp_path / "exported.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
    back, _ = read_video(tmp_path / "exported.mp4")
    assert back.shape == (4, 720, 1282, 3)
    np.testing.assert_allclose(back[2, 300, 600], [200, 60, 30], atol=2)
