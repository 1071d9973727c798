"""Encoding of videos as H.264.  Exported folders hold a copy of this module, so it imports no other one of ours."""

from fractions import Fraction
from os import PathLike, fspath

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream

# Without FULL_CHR_H_INT the YUV to RGB step is biased by -1.5 to -2.3 gray levels (measured on real clips).
KERNEL = int(Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
_BT709 = 1
_LIMITED_RANGE = 1


def encode_h264(
    path: str | PathLike[str],
    frames: np.ndarray,
    fps: float,
    *,
    lossless: bool = False,
    container_format: str | None = None,
) -> None:
    """Write uint8 RGB frames `(t, h, w, 3)` as yuv420p, BT.709, limited range, tagged so, with the index first.

    Args:
      path: output file; odd sizes are padded to even by repeating the edge.
      lossless: write lossless RGB of any size instead, which few players show.
      container_format: FFmpeg's name of the container; by default the suffix of `path` decides.
    """
    if not lossless:
        frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    # Without the prefix FFmpeg takes the part of a name before a colon for a protocol.
    name = f"file:{fspath(path)}"
    quick_start = name.endswith((".mp4", ".m4v", ".mov")) or container_format == "mp4"
    options = {"movflags": "+faststart"} if quick_start else {}
    with av.open(name, "w", format=container_format, options=options) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264rgb" if lossless else "libx264", rate=rate)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        stream.options = {"qp": "0"} if lossless else {"crf": "17"}
        if not lossless:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            if not lossless:
                frame = frame.reformat(
                    format="yuv420p",
                    interpolation=KERNEL,
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
