"""What a mesh asks of the denoiser and of the clips: whether tokens and heads divide over its axes."""

import logging
import math
from collections.abc import Mapping, Sequence

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig

logger = logging.getLogger(__name__)


def check_layout(model: SpectralTransformerConfig, sizes: Mapping[str, int], grid: Sequence[int]) -> None:
    """Checks a mesh with axes of `sizes` for clips of `grid` (t, h, w) tokens.

    Warns of heads that do not divide: their devices then all attend with every head.

    Raises:
      UserError: `sequence` does not divide the tokens, or the transform cannot be split along them.
    """
    devices, tokens = sizes.get("sequence", 1), math.prod(grid)
    if devices > 1 and model.spectral == "hartley3d":
        raise UserError(
            f"config.mesh.sequence={devices}: hartley3d transforms all axes of a clip at once and cannot share its tokens; "
            f"use sequence=1, or another model.spectral"
        )
    if tokens % devices:
        fitting = [str(count) for count in range(2, devices + 1) if tokens % count == 0]
        raise UserError(
            f"config.mesh.sequence={devices}: does not divide the {tokens} tokens of a clip "
            f"({' x '.join(map(str, grid))}); use {' or '.join(fitting[-2:]) or '1'}"
        )
    together = devices * sizes.get("tensor", 1)
    if model.heads % together:
        logger.warning(
            "%d heads do not divide over tensor x sequence = %d devices, which partly repeat each other's attention; "
            "choose a mesh where they do",
            model.heads,
            together,
        )
