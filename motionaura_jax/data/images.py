"""Reading of still images with Pillow."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from motionaura_jax.data.frames import over_background
from motionaura_jax.data.opening import VideoError, check_frame_size, media_errors

MAX_STILL_PIXELS = 2**26
"""Largest still image that is decoded (8192 x 8192)."""

# Damage that matters ends in a VideoError; Pillow's warnings about the rest would print source lines.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow opens a file by its content, whatever its name, and starts Ghostscript for PostScript.  Images whose suffix is that
# of another format on this list are common and harmless.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def read_still(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image, upright, as RGB.  Alpha is composited over white, and 16-bit gray loses its lower bits.

    Raises:
      VideoError: the file cannot be read, holds another format, is damaged or too large.
    """
    with media_errors(path), open(path, "rb") as file:
        try:
            with Image.open(file, formats=_FORMATS) as image:
                check_frame_size(path, image.height, image.width, MAX_STILL_PIXELS)
                ImageOps.exif_transpose(image, in_place=True)
                return _rgb(image)
        except (VideoError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise VideoError(path, f"exceeds the limit of {MAX_STILL_PIXELS} pixels", "scale it down") from error
        except Exception as error:  # Pillow's decoders raise exceptions of nearly every type
            raise VideoError(path, "cannot be decoded as an image", "replace it, or correct its suffix") from error


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return over_background(np.asarray(image if image.mode == "RGBA" else image.convert("RGBA")))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
