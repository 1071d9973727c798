"""Sizes of videos and of their latent grids, without jax, so that config files load in milliseconds."""

import dataclasses

Size = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Map from the size of a video to the size of its latent grid.

    Attributes:
      strides: frames, rows and columns per latent cell.
      causal: the first latent frame holds one video frame alone, so 1 + k * strides[0] frames make 1 + k latent ones.
      channels: values per latent cell.
    """

    strides: Size
    causal: bool = False
    channels: int = 1

    def latent_shape(self, frames: int, height: int, width: int) -> Size:
        """Return the latent grid (t, h, w) of a video of this size, padded up to whole cells."""
        time, rows, columns = self.strides
        t = 1 + -(-(frames - 1) // time) if self.causal else -(-frames // time)
        return (t, -(-height // rows), -(-width // columns))

    def padded_size(self, size: Size) -> Size:
        """Return the smallest (frames, height, width) >= `size` that fills whole latent cells."""
        t, h, w = self.latent_shape(*size)
        time, rows, columns = self.strides
        return (1 + (t - 1) * time if self.causal else t * time, h * rows, w * columns)

    def check(self, size: Size) -> None:
        """Raise ValueError unless (frames, height, width) fill whole latent cells."""
        if self.padded_size(size) != size:
            time, rows, columns = self.strides
            rule = f"1 + k * {time}" if self.causal else f"k * {time}"
            sides = f"multiples of {rows}" if rows == columns else f"multiples of {rows} and {columns}"
            raise ValueError(
                f"video of {size} (frames, height, width): frames must be {rule}, height and width {sides}; "
                f"call tiling.pad first"
            )
