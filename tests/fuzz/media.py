"""Small valid media files, 64x64 and a few frames long, in every suffix and the codecs that this installation encodes."""

import io
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image, features

from motionaura_jax.data.video import VIDEO_SUFFIXES

SIZE, FRAMES = 64, 6
DISGUISED = "disguised-"
"""Start of the names of files whose suffix is not that of their format; readers may refuse them."""
os.environ.setdefault("SVT_LOG", "1")  # errors only

# (suffix, container, codec, pixel format, options of the container)
_VIDEOS = (
    (".mp4", "mp4", "libx264", "yuv420p", {}),
    (".mp4", "mp4", "mpeg4", "yuv420p", {"movflags": "+faststart"}),
    (".mp4", "mp4", "libx264", "yuv420p", {"movflags": "empty_moov+frag_keyframe"}),
    (".mp4", "mp4", "libx265", "yuv420p", {}),
    (".mp4", "mp4", "libsvtav1", "yuv420p", {}),
    (".m4v", "mp4", "libx264", "yuv420p", {"movflags": "+faststart"}),
    (".mov", "mov", "prores_ks", "yuv422p10le", {}),
    (".mov", "mov", "qtrle", "rgb24", {}),
    (".mov", "mov", "png", "rgba", {}),
    (".mov", "mov", "mjpeg", "yuvj420p", {}),
    (".mov", "mov", "cfhd", "yuv422p10le", {}),
    (".3gp", "3gp", "h263", "yuv420p", {}),
    (".mkv", "matroska", "libx264", "yuv420p", {}),
    (".mkv", "matroska", "ffv1", "yuv420p", {}),
    (".mkv", "matroska", "utvideo", "yuv420p", {}),
    (".mkv", "matroska", "snow", "yuv420p", {}),
    (".webm", "webm", "libvpx", "yuv420p", {}),
    (".webm", "webm", "libvpx-vp9", "yuv420p", {}),
    (".webm", "webm", "libvpx-vp9", "yuva420p", {}),
    (".avi", "avi", "mpeg4", "yuv420p", {}),
    (".avi", "avi", "msmpeg4", "yuv420p", {}),
    (".avi", "avi", "huffyuv", "yuv422p", {}),
    (".avi", "avi", "cinepak", "rgb24", {}),
    (".avi", "avi", "magicyuv", "yuv420p", {}),
    (".flv", "flv", "flv", "yuv420p", {}),
    (".flv", "flv", "libx264", "yuv420p", {}),
    (".flv", "flv", "flashsv", "bgr24", {}),
    (".gif", "gif", "gif", "rgb8", {}),
    (".mpg", "mpeg", "mpeg1video", "yuv420p", {}),
    (".mpeg", "mpeg", "mpeg2video", "yuv420p", {}),
    (".mpg", "mpeg2video", "mpeg2video", "yuv420p", {}),
    (".ts", "mpegts", "mpeg2video", "yuv420p", {}),
    (".ts", "mpegts", "libx264", "yuv420p", {}),
    (".wmv", "asf", "wmv2", "yuv420p", {}),
    (".wmv", "asf", "msmpeg4", "yuv420p", {}),
    # Suffixes that cameras and disks use.
    (".mts", "mpegts", "libx264", "yuv420p", {}),
    (".m2ts", "mpegts", "mpeg2video", "yuv420p", {}),
    (".vob", "vob", "mpeg2video", "yuv420p", {}),
    (".m2v", "mpeg2video", "mpeg2video", "yuv420p", {}),
    (".3g2", "3g2", "libx264", "yuv420p", {}),
    (".f4v", "f4v", "libx264", "yuv420p", {}),
    (".mxf", "mxf", "mpeg2video", "yuv420p", {}),
    # Videos under the suffix of another container.
    (".mp4", "matroska", "libx264", "yuv420p", {}),
    (".avi", "mpegts", "mpeg2video", "yuv420p", {}),
    (".ogv", "ogg", "libvpx", "yuv420p", {}),
)
_CODEC_OPTIONS = {
    "libx264": {"crf": "40"},
    "libx265": {"crf": "40", "x265-params": "log-level=none"},
    "libvpx-vp9": {"crf": "40"},
    "snow": {"strict": "-2"},
}
# Formats of Pillow by the suffix that users give such files; the others are read by content under a wrong suffix.
_STILLS = {
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_OTHERS = ("AVIF", "BLP", "DDS", "DIB", "EPS", "GIF", "ICNS", "ICO", "IM", "JPEG2000", "MPO", "MSP", "PCX", "PDF",
              "PPM", "QOI", "SGI", "SPIDER", "TGA", "XBM")  # fmt: skip


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of one file per suffix, codec and format that readers take and FFmpeg can write here."""
    frames = _frames()
    for number, (suffix, container, codec, pixels, options) in enumerate(_VIDEOS):
        data = encode(frames, container, codec, pixels, options) if suffix in VIDEO_SUFFIXES else b""
        if data:
            yield f"{number:02d}-{codec.removeprefix('lib')}{suffix}", data
    for name, data in _images(frames):
        yield name, data


def encode(frames: np.ndarray, container: str, codec: str, pixels: str, options: dict[str, str]) -> bytes:
    """Return a file with these RGB frames at 8 or 25 frames per second, or nothing if FFmpeg cannot write it."""
    width, height = (128, 96) if codec == "h263" else (SIZE, SIZE)  # H.263 knows a few sizes only
    rate = 25 if "mpeg" in container or container in ("mxf", "vob") else 8
    with tempfile.NamedTemporaryFile() as target:
        try:
            with av.open(target.name, "w", format=container, options=options) as file:
                stream = file.add_stream(codec, rate=rate, options=_CODEC_OPTIONS.get(codec, {}))
                assert isinstance(stream, VideoStream)
                stream.width, stream.height, stream.pix_fmt = width, height, pixels
                stream.codec_context.thread_count = 1
                for number, array in enumerate(frames):
                    frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                    frame = frame.reformat(width=width, height=height, format=pixels)
                    frame.pts, frame.time_base = number, Fraction(1, rate)
                    file.mux(stream.encode(frame))
                file.mux(stream.encode(None))
        except (av.FFmpegError, ValueError):
            return b""
        return Path(target.name).read_bytes()


def _frames() -> np.ndarray:
    """Return moving gradients: some detail, small files."""
    y, x = np.mgrid[:SIZE, :SIZE]
    waves = [np.stack([x * 3 + 8 * k, y * 3, 60 * np.sin((x + y + 4 * k) / 9) + 128], -1) for k in range(FRAMES)]
    return np.asarray(waves).astype(np.uint8)


def _images(frames: np.ndarray) -> Iterator[tuple[str, bytes]]:
    picture = Image.fromarray(frames[0])
    for suffix, kind in _STILLS.items():
        yield f"still{suffix}", _saved(picture, kind)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    yield "turned.jpg", _saved(picture, "JPEG", exif=exif)
    yield "alpha.png", _saved(picture.convert("RGBA"), "PNG")
    yield "palette.png", _saved(picture.quantize(16), "PNG", transparency=0)
    yield "deep.png", _saved(Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE)), "PNG")
    yield "moving.png", _saved(picture, "PNG", save_all=True, append_images=[Image.fromarray(frames[1])])
    yield "moving.webp", _saved(picture, "WEBP", save_all=True, append_images=[Image.fromarray(frames[1])])
    yield "pages.tif", _saved(picture, "TIFF", save_all=True, append_images=[Image.fromarray(frames[1])])
    for method in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4") if features.check("libtiff") else ():
        yield (
            f"{method}.tif",
            _saved(picture.convert("1") if method == "group4" else picture, "TIFF", compression=method),
        )
    for kind in _OTHERS:
        mode = {"BLP": "P", "MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
        data = _saved(picture.quantize(16) if mode == "P" else picture.convert(mode), kind)
        if data:
            yield f"{DISGUISED}{kind.lower()}.png", data
    for kind, mode in (("DXT1", "RGBA"), ("DXT5", "RGBA"), ("BC5", "RGB")):
        yield f"{DISGUISED}{kind.lower()}.png", _saved(picture.convert(mode), "DDS", pixel_format=kind)
    yield f"{DISGUISED}jpeg.mpg", _saved(picture, "JPEG")


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    try:
        picture.save(target, kind, **options)  # type: ignore[arg-type]
    except (OSError, KeyError, ValueError):
        return b""
    return target.getvalue()
