"""Files that are sound but unusual: headers that mislead, other dynamic ranges, fields, alpha, several streams."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorTrc

from motionaura_jax.data.video import VIDEO_SUFFIXES, VideoError, probe, read_clip, read_video
from tests.data.videos import encode, flat_frames, numbers

FPS = 10


def remux(source: Path, target: Path, *, shift: int = 0, options: dict[str, str] | None = None) -> Path:
    """Copy the packets of a video; their time stamps move by `shift` ticks."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = (packet.pts or 0) + shift, packet.dts + shift
                packet.stream = stream
                new.mux(packet)
    return target


def assert_plain(path: Path, expected: Sequence[int]) -> None:
    """Assert the timing of a file, that all of it is read, and that clips show the right frames."""
    info = probe(path)
    assert (info.frames, round(info.fps, 2), round(info.duration, 2)) == (len(expected), FPS, len(expected) / FPS)
    frames, rate = read_video(path)
    assert (numbers(frames), round(rate, 2)) == (list(expected), FPS)
    clip = read_clip(path, start=0.65, fps=FPS, num_frames=4)
    assert numbers(clip) == list(expected[6:10])


def test_an_edit_list_cuts_frames_off(tmp_path: Path) -> None:
    """The count of the header includes frames before the cut."""
    options = {"g": "30", "bf": "0"}
    whole = encode(tmp_path / "whole.mp4", flat_frames(28), options=options)
    cut = remux(whole, tmp_path / "cut.mp4", shift=-12 * 1024, options={"use_editlist": "1"})
    with av.open(str(cut)) as container:
        stream = container.streams.video[0]
        assert stream.frames == 28, "the file is not the one that this test is about"
    assert_plain(cut, range(12, 28))


def test_fragments_count_for_themselves(tmp_path: Path) -> None:
    options = {"movflags": "frag_keyframe"}
    path = encode(tmp_path / "a.mp4", flat_frames(28), options={"g": "7", "bf": "0"}, container_options=options)
    assert_plain(path, range(28))


@pytest.mark.parametrize("name", ["late.mkv", "late.webm"])
def test_matroska_states_the_end_not_the_length(tmp_path: Path, name: str) -> None:
    codec = "libx264" if name.endswith("mkv") else "libvpx-vp9"
    path = encode(tmp_path / name, flat_frames(28), codec=codec, stamps=range(100, 128))
    assert_plain(path, range(28))
    with pytest.raises(VideoError, match=r"lasts 2\.80 s, too short"):
        read_clip(path, start=2, fps=FPS, num_frames=20)


@pytest.mark.parametrize("suffix", [".mts", ".m2ts", ".3g2", ".vob", ".m2v", ".f4v", ".mxf"])
def test_suffixes_of_cameras_and_disks(tmp_path: Path, suffix: str) -> None:
    assert suffix in VIDEO_SUFFIXES
    codec = "mpeg2video" if suffix in (".vob", ".m2v", ".mxf") else "libx264"
    options = {"qscale": "2", "g": "5"} if codec == "mpeg2video" else {"g": "5"}
    written = tmp_path / ("a.ts" if suffix in (".mts", ".m2ts") else f"a{suffix}")
    path = encode(written, flat_frames(20), tick=Fraction(1, 25), codec=codec, options=options)
    path = path.rename(path.with_suffix(suffix))
    frames, rate = read_video(path)
    assert (numbers(frames), rate) == (list(range(20)), 25)
    assert numbers(read_clip(path, start=0.41, fps=25, num_frames=5)) == [10, 11, 12, 13, 14]


def test_a_sound_file_is_told_as_such(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp3"), "w") as container:
        stream = container.add_stream("libmp3lame", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = (tmp_path / "a.mp3").rename(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"has no video stream \(a sound file\); remove it or give a video file"):
        probe(path)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_alpha_of_vp8_and_vp9_is_composited_over_white(tmp_path: Path, codec: str) -> None:
    red = np.zeros((6, 48, 64, 4), np.uint8)
    red[..., 0], red[:, :, :32, 3] = 255, 255
    path = encode(
        tmp_path / "a.webm",
        red,
        codec=codec,
        pixels="yuva420p",
        options={"crf": "4", "b": "2M", "auto-alt-ref": "0"},
        prepare=lambda stream: stream.metadata.update({"alpha_mode": "1"}),
    )
    for frames in (read_video(path)[0], read_clip(path, start=0.2, fps=10, num_frames=2)):
        np.testing.assert_allclose(frames[1, 24, 8], [255, 0, 0], atol=12)
        np.testing.assert_allclose(frames[1, 24, 56], [255, 255, 255], atol=12)


def test_interlaced_frames_are_not_combed(tmp_path: Path) -> None:
    """Both fields of a frame differ here, as they do where something moves."""
    frames = np.zeros((6, 64, 64, 3), np.uint8)
    frames[:, ::2] = 40
    frames[:, 1::2] = 200
    options = {"flags": "+ildct+ilme", "qscale": "2"}
    path = encode(tmp_path / "a.mpg", frames, tick=Fraction(1, 25), codec="mpeg2video", options=options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame, "the file is not the one that this test is about"
    for cover in (None, (16, 16), (64, 64)):
        clip = read_clip(path, start=0, fps=25, num_frames=3, cover=cover)
        np.testing.assert_allclose(clip.astype(int), 40, atol=3)
        assert clip.shape[1:3] == (cover or (64, 64))


@pytest.mark.parametrize(
    ("transfer", "white"), [(ColorTrc.SMPTE2084, 0.58), (ColorTrc.ARIB_STD_B67, 0.75)], ids=["pq", "hlg"]
)
def test_high_dynamic_range_is_mapped_to_the_standard_range(tmp_path: Path, transfer: ColorTrc, white: float) -> None:
    """`white` is the level of 203 cd/m2 (BT.2408)."""

    def tag(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, ColorPrimaries.BT2020
        context.colorspace, context.color_range = 9, 1

    seen = []
    for level in (0, white / 2, white, 1):
        gray = np.full((2, 32, 32, 3), round(255 * level), np.uint8)
        path = encode(
            tmp_path / f"{level}.mp4", gray, pixels="yuv420p10le", options={"qp": "1", "bf": "0"}, prepare=tag
        )
        picture = read_clip(path, start=0, fps=10, num_frames=1, cover=(16, 16))[0]
        assert np.ptp(picture.reshape(-1, 3), axis=1).max() <= 2, "gray stays gray"
        seen.append(int(picture[8, 8, 1]))
    assert seen == sorted(seen)
    assert seen[0] < 4
    assert 40 < seen[1] < 160
    assert 225 < seen[2] < 245
    assert seen[3] > 250


def test_variable_rates_keep_their_time(tmp_path: Path) -> None:
    """Ten frames in 1.0 s, then one every 0.3 s: at the average rate frame 10 would come at 1.6 s."""
    stamps = [*range(10), *range(10, 40, 3)]
    path = encode(tmp_path / "a.mp4", flat_frames(len(stamps)), stamps=stamps)
    frames, rate = read_video(path)
    shown = numbers(frames)
    for number, stamp in enumerate(stamps):
        position = min(int(np.floor(stamp / FPS * rate + 1 - 1e-6)), len(shown) - 1)
        assert abs(shown[position] - number) <= 1, (number, position, rate)
    assert shown.index(10) / rate == pytest.approx(1.0, abs=1 / rate)
    assert len(read_video(path, max_frames=5)[0]) == 5


def test_the_stream_marked_default_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        streams[1].disposition = Disposition.default
        for index in range(5):
            for stream, level in zip(streams, (50, 200), strict=True):
                frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert read_video(tmp_path / "a.mkv")[0].mean() == pytest.approx(200, abs=2)
