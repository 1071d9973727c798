"""Decoding: the right frame at every instant, upright and square, and one clear line for every bad file."""

import gc
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from motionaura_jax.data.media import write_video
from motionaura_jax.data.video import VideoError, check_duration, probe, read_clip, read_video
from tests.data.videos import encode, expected_numbers, flat_frames, numbers

VARIABLE = [0, 3, 4, 5, 9, 10, 17, 18, 19, 20, 26, 27, 30, 38, 39, 40, 41, 50, 51, 55, 56, 60, 64, 65]


@pytest.fixture(scope="module")
def variable_rate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write H.264 with B pyramids and key frames every 7 frames; time stamps are VARIABLE, in twentieths of a second."""
    options = {"g": "7", "bf": "3", "b_strategy": "0", "preset": "fast", "qp": "10", "sc_threshold": "0"}
    path = tmp_path_factory.mktemp("video") / "variable.mp4"
    return encode(path, flat_frames(len(VARIABLE)), stamps=VARIABLE, tick=Fraction(1, 20), options=options)


@given(
    start=st.floats(0, 3.2),
    fps=st.sampled_from([3.0, 7.5, 10.0, 20.0, 24.0, 29.97, 60.0]),
    num_frames=st.integers(1, 9),
)
def test_clip_shows_the_frame_on_display_at_each_instant(
    variable_rate: Path, start: float, fps: float, num_frames: int
) -> None:
    instants = [start + k / fps for k in range(num_frames)]
    times = [stamp / 20 for stamp in VARIABLE]
    if instants[-1] >= probe(variable_rate).duration:
        with pytest.raises(VideoError, match=r"too short .*; lower data\.num_frames or raise data\.fps"):
            read_clip(variable_rate, start=start, fps=fps, num_frames=num_frames)
    elif min(abs(time - instant) for time in times for instant in instants) > 1e-4:
        clip = read_clip(variable_rate, start=start, fps=fps, num_frames=num_frames)
        assert numbers(clip) == expected_numbers(times, instants)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("open_groups.mp4", "libx264", "yuv420p", {"g": "6", "bf": "2", "x264-params": "open-gop=1"}),
        ("one_group.mov", "libx264", "yuv420p", {"g": "250", "bf": "3"}),
        ("ten_bit.mp4", "libx264", "yuv420p10le", {"g": "8"}),
        ("matroska.mkv", "libx264", "yuv420p", {"g": "8", "bf": "2"}),
        ("stream.ts", "libx264", "yuv420p", {"g": "8", "bf": "2"}),
        ("old.avi", "mpeg4", "yuv420p", {"g": "8", "bf": "2", "qscale": "2"}),
        ("still_coded.avi", "mjpeg", "yuvj420p", {"qscale": "2"}),
        ("program.mpg", "mpeg2video", "yuv420p", {"g": "8", "bf": "2", "qscale": "2"}),
        ("vp9.webm", "libvpx-vp9", "yuv420p", {"crf": "10", "cpu-used": "8"}),
        ("preview.gif", "gif", "rgb8", {}),
    ],
)
def test_every_container_seeks_to_the_right_frame(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str]
) -> None:
    count, fps = 26, 25
    path = encode(
        tmp_path / name, flat_frames(count), tick=Fraction(1, fps), codec=codec, pixels=pixels, options=options
    )
    whole, rate = read_video(path)
    assert (len(whole), round(rate, 3)) == (count, fps)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (count, 32, 48)
    assert info.duration == pytest.approx(count / fps, abs=0.05)
    for start in (0, 1, 6, 13, 21):
        clip = read_clip(path, start=start / fps, fps=fps, num_frames=4)
        np.testing.assert_array_equal(clip, whole[start : start + 4])


def test_resampling_keeps_speed(variable_rate: Path) -> None:
    frames, fps = read_video(variable_rate, fps=5)
    assert fps == 5
    assert numbers(frames) == expected_numbers([s / 20 for s in VARIABLE], [k / 5 for k in range(len(frames))])
    assert len(frames) / 5 == pytest.approx(probe(variable_rate).duration, abs=1 / 5)
    assert len(read_video(variable_rate, fps=5, max_frames=3)[0]) == 3


def test_streamed_file_without_duration_is_measured(tmp_path: Path) -> None:
    path = encode(tmp_path / "live.mkv", flat_frames(20), container_options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
    info = probe(path)
    assert (info.frames, info.fps, info.duration) == (20, pytest.approx(10), pytest.approx(2))
    assert numbers(read_clip(path, start=1.2, fps=5, num_frames=3)) == [12, 14, 16]


def corner_marked() -> np.ndarray:
    """Return frames that are white in the top left corner and gray in the top right."""
    frame = np.zeros((4, 32, 48, 3), np.uint8)
    frame[:, :16, :16], frame[:, :16, 32:] = 255, 128
    return frame


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_display_matrix_turns_and_mirrors(tmp_path: Path, turns: int, mirror: bool) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.set_display_rotation(90 * turns, hflip=mirror)

    path = encode(tmp_path / "turned.mp4", corner_marked(), options={"qp": "4"}, prepare=prepare)
    upright = corner_marked()[0]
    upright = np.rot90(upright, turns)
    upright = upright[:, ::-1] if mirror else upright
    info, clip = probe(path), read_clip(path, start=0.1, fps=10, num_frames=2)
    assert (info.height, info.width) == upright.shape[:2]
    assert clip.shape[1:] == upright.shape
    assert np.abs(clip[0].astype(int) - upright).mean() < 4
    small = read_clip(path, start=0, fps=10, num_frames=1, cover=(12, 12))
    assert small.shape[1:3] == ((18, 12) if turns % 2 else (12, 18))


def test_orientation_beside_exif_data_in_a_video(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(corner_marked()[0]).save(tmp_path / "frame.jpg", exif=exif, quality=95)
    with av.open(str(tmp_path / "camera.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for stamp in range(3):
            packet = av.Packet((tmp_path / "frame.jpg").read_bytes())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 10), stamp, stamp
            packet.is_keyframe = True
            container.mux(packet)
    frames, _ = read_video(tmp_path / "camera.avi")
    assert np.abs(frames[0].astype(int) - np.rot90(corner_marked()[0], -1)).mean() < 4


def test_sample_aspect_ratio_makes_pixels_square(tmp_path: Path) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = encode(tmp_path / "anamorphic.mp4", flat_frames(3), prepare=prepare)
    assert (probe(path).height, probe(path).width) == (32, 64)
    assert read_video(path)[0].shape == (3, 32, 64, 3)


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 16, 16, 4), np.uint8)
    rgba[:, :, 8:, 3] = 255  # black, transparent on the left
    path = encode(tmp_path / "alpha.mov", rgba, codec="qtrle", pixels="argb")
    Image.fromarray(rgba[0]).save(tmp_path / "alpha.png")
    for file in (path, tmp_path / "alpha.png"):
        frames, _ = read_video(file)
        assert frames[0, :, :8].min() == 255
        assert frames[0, :, 8:].max() == 0


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp", "a.jpg"])
def test_image_is_a_video_of_one_frame(tmp_path: Path, name: str) -> None:
    picture = corner_marked()[0, :, :33]
    Image.fromarray(picture).save(tmp_path / name, quality=95, lossless=True)
    info = probe(tmp_path / name)
    assert (info.frames, info.fps, info.duration, info.height, info.width) == (1, 1, 0, 32, 33)
    frames, fps = read_video(tmp_path / name)
    assert (frames.shape, fps) == ((1, 32, 33, 3), 1)
    assert np.abs(frames[0].astype(int) - picture).mean() < 2
    np.testing.assert_array_equal(read_clip(tmp_path / name, start=0, fps=8, num_frames=1), frames)
    with pytest.raises(VideoError, match=r"is a still image, too short for 5 frames; lower data\.num_frames"):
        read_clip(tmp_path / name, start=0, fps=8, num_frames=5)


def test_images_turned_by_exif_and_of_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(corner_marked()[0]).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_video(tmp_path / "turned.png")[0][0], np.rot90(corner_marked()[0], -1))
    assert probe(tmp_path / "turned.png").height == 48
    ramp = np.arange(256, dtype=np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_video(tmp_path / "deep.png")[0][0, ..., 1], ramp)


def test_one_frame_video_is_an_image(tmp_path: Path) -> None:
    path = encode(tmp_path / "one.mp4", flat_frames(1))
    assert (probe(path).frames, probe(path).fps, probe(path).duration) == (1, 1, 0)
    assert read_clip(path, start=0, fps=24, num_frames=1).shape == (1, 32, 48, 3)
    with pytest.raises(VideoError, match=r"one\.mp4: holds a single frame, too short for 2 frames"):
        read_clip(path, start=0, fps=24, num_frames=2)


def test_odd_sizes(tmp_path: Path) -> None:
    path = encode(tmp_path / "odd.mp4", flat_frames(3, 33, 47), pixels="yuv444p")
    assert read_video(path)[0].shape == (3, 33, 47, 3)


def test_probe_notices_a_changed_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", flat_frames(3))
    assert probe(path).frames == 3
    encode(path, flat_frames(9))
    assert probe(path).frames == 9


def test_check_duration_is_the_rule_of_read_clip(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", flat_frames(16))
    check_duration(probe(path), fps=10, num_frames=16)
    assert numbers(read_clip(path, start=0.05, fps=10, num_frames=16)) == list(range(16))
    with pytest.raises(VideoError, match=r"lasts 1\.60 s, too short for 17 frames at 10 fps"):
        check_duration(probe(path), fps=10, num_frames=17)


@pytest.mark.parametrize("arguments", [{"num_frames": 0}, {"fps": 0.0}, {"start": -1.0}, {"fps": float("nan")}])
def test_impossible_requests(variable_rate: Path, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need num_frames"):
        read_clip(variable_rate, **{"start": 0.0, "fps": 8.0, "num_frames": 2} | arguments)  # type: ignore[arg-type]


def test_reading_leaves_no_reference_cycles(variable_rate: Path) -> None:
    """A frame in a cycle would keep the decoder's memory until a full garbage collection."""
    probe(variable_rate)
    gc.collect()
    gc.disable()
    try:
        for start in (0.0, 1.3):
            read_clip(variable_rate, start=start, fps=10, num_frames=4, cover=(8, 8))
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_written_colors_come_back(tmp_path: Path) -> None:
    """Encoder and decoder agree on the color matrix and range."""
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 40]], np.uint8)
    frames = np.broadcast_to(colors[:, None, None], (6, 32, 32, 3)).copy()
    write_video(tmp_path / "colors.mp4", frames, 6)
    back, _ = read_video(tmp_path / "colors.mp4")
    assert np.abs(back.astype(int) - frames).max() <= 4


def test_real_clips(data_root: Path | None) -> None:
    if data_root is None:
        pytest.skip("no real clips here; set MOTIONAURA_DATA")
    rows = [json.loads(line) for line in (data_root / "clips.jsonl").read_text().splitlines()]
    for row in rows:
        path = next(p for p in (data_root / row["file"], data_root / "clips" / row["file"]) if p.exists())
        info = probe(path)
        assert (info.frames, info.width, info.height) == (row["frames"], row["width"], row["height"]), path
        assert info.fps == pytest.approx(row["fps"], rel=1e-3), path
    sparse = [row for row in rows if row["frames"] < 80][:4]
    for row in sparse:
        path = next(p for p in (data_root / row["file"], data_root / "clips" / row["file"]) if p.exists())
        whole, fps = read_video(path)
        first = len(whole) // 2
        clip = read_clip(path, start=(first + 0.25) / fps, fps=fps, num_frames=4)
        np.testing.assert_array_equal(clip, whole[first : first + 4])
