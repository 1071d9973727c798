"""Settings and presets of the spectral transformer.  No jax imports.  MotionAura table 2, section 3.3."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.limits import Checked, Codes, Depth, Length, Natural, Ratio, Width
from motionaura_jax.models.layers.config import LoraConfig

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralTransformerConfig(Checked):
    """Settings of the spectral transformer.  The defaults are our recommendation; `FAITHFUL` restores the paper's block.

    Attributes:
      vocab_size: number of codes K of the tokenizer; MASK is id K.
      width: embedding width d.
      heads, blocks: attention heads per block, number of blocks.
      mlp_ratio: hidden width of the MLP over d.
      attention_ratio: width of all heads together over d.
      spectral: transform around attention: `re_fft2` as in the paper, the invertible Hartley kinds, `filter` with a
        learned weight for each embedding frequency, or `none`, the ablation without FFT.
      cross_spectral: learned transforms around cross-attention (equation 4); text padding is then zero, not masked.
      residual: `paper` computes LN(T^-1(A)) + AdLN(z) (equations 3 and 5); `identity` adds gated updates to z.
      rope: `flat1d` (0..S-1, as in the paper), `signed` (frequencies), `axial` (t, h, w), `sinusoidal` (no rotation,
        flat positions added to the embedding: ablation D.4), `auto` (`axial` with the grid, else `signed`).
      abs_pos: adds absolute t, h, w positions to the embedding.
      qk_gain: initial gain of normalized query-key products; None for 12 / sqrt(head width), which bounds logits by 12.
      adaln: source of shift, scale and gate: one shared projection plus a table per block, a rank-256 projection
        per block, or a full one per block.
      time_cond: condition the network on the masked fraction; the frame rate always conditions it.
      learned_null: have a learned text in place of a missing one.  Without it a missing text is zero everywhere; a frozen
        text encoder has its own null, the empty text, so new runs with one leave the parameter out.
      head_norm: normalize the features of the head before their products with the table, as BERT and MAGVIT do.
      output_bias: add a learned bias to the logits of each code, as BERT and MAGVIT do.
      text_dim, text_len: width of text features and number of text positions.
      lora: adapters; if enabled, only they train.
      remat: what the backward pass recomputes: nothing (`none`), each block (`full`), or each block except its matrix
        products, which are kept on the device (`dots`) or in host memory (`offload`).
      folded_training: train in the folded form, in which sampling always runs: the same values and gradients with less
        work on long sequences (`denoisers.fold`).  Every step folds the kernels.
      loss_chunk: number of codes whose logits the loss computes at a time, to save memory; 0 computes all at once.
      scan: compile one block and loop over it; False unrolls all blocks. The parameters are the same.
      dtype: compute precision; parameters, FFT, softmax, norms and logits are float32.
      matmul_precision: precision of float32 products where the device offers less by default: TPUs round to bfloat16, GPUs
        from Ampere on to TensorFloat-32.  Products in bfloat16 are not affected.

    Raises:
      UserError: a value is not among the choices, or values contradict each other.
    """

    vocab_size: Codes
    width: Width
    heads: Width
    blocks: Depth
    mlp_ratio: Ratio = 4.0
    attention_ratio: Ratio = 1.0
    spectral: Literal["re_fft2", "hartley", "hartley3d", "seq_hartley", "filter", "none"] = "re_fft2"
    cross_spectral: bool = True
    residual: Literal["paper", "identity"] = "identity"
    rope: Literal["auto", "flat1d", "signed", "axial", "sinusoidal"] = "auto"
    abs_pos: bool = True
    qk_gain: float | None = None
    adaln: Literal["single", "lowrank256", "perblock"] = "single"
    time_cond: bool = True
    learned_null: bool = True
    head_norm: bool = False
    output_bias: bool = False
    text_dim: Width = 4096
    text_len: Length = 192
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    remat: Literal["none", "dots", "full", "offload"] = "none"
    folded_training: bool = False
    loss_chunk: Natural = 1024
    scan: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner % (2 * self.heads):
            raise UserError(
                f"SpectralTransformerConfig.heads={self.heads}: {self.inner} attention channels "
                f"(width x attention_ratio) do not split into {self.heads} heads of even width"
            )
        if self.lora.rank >= (channels := min(self.width, self.inner)):
            raise UserError(
                f"SpectralTransformerConfig.lora.rank={self.lora.rank}: must be below the {channels} channels it adapts"
            )
        grid_kind = self.spectral in ("none", "hartley3d")
        if (self.rope == "axial" and not grid_kind) or (self.rope == "signed" and self.spectral == "none"):
            raise UserError(
                f"SpectralTransformerConfig.rope={self.rope}: does not fit the tokens of "
                f"spectral={self.spectral}; use auto"
            )

    @property
    def inner(self) -> int:
        """Return the width of all attention heads together."""
        return round(self.width * self.attention_ratio)

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.inner // self.heads

    @property
    def initial_gain(self) -> float:
        """Return the initial value of the learned gain of query-key products."""
        return 12.0 / self.head_dim**0.5 if self.qk_gain is None else self.qk_gain

    @property
    def rotary(self) -> str:
        """Return `rope` with `auto` resolved."""
        if self.rope != "auto":
            return self.rope
        return "axial" if self.spectral in ("none", "hartley3d") else "signed"

    @property
    def cross_kind(self) -> str:
        """Return the transform around cross-attention, or `none`."""
        return self.spectral if self.cross_spectral else "none"

    def check_mesh(self, sizes: Mapping[str, int], grid: Sequence[int]) -> None:
        """Check a mesh with axes of `sizes` for clips of `grid` (t, h, w) tokens.

        Warn if the heads do not divide over the devices: some devices then repeat the attention of others.

        Raises:
          UserError: `sequence` does not divide the tokens, or the transform cannot be split along them.
        """
        devices, tokens = sizes.get("sequence", 1), math.prod(grid)
        if devices > 1 and self.spectral == "hartley3d":
            raise UserError(
                f"config.mesh.sequence={devices}: hartley3d transforms all axes of a clip at once and cannot share its "
                f"tokens; use sequence=1, or another model.spectral"
            )
        if tokens % devices:
            fitting = [str(count) for count in range(2, devices + 1) if tokens % count == 0]
            raise UserError(
                f"config.mesh.sequence={devices}: does not divide the {tokens} tokens of a clip "
                f"({' x '.join(map(str, grid))}); use {' or '.join(fitting[-2:]) or '1'}"
            )
        together = devices * sizes.get("tensor", 1)
        if self.heads % together:
            logger.warning(
                "%d heads do not divide over tensor x sequence = %d devices, which partly repeat each other's attention; "
                "choose a mesh where they do",
                self.heads,
                together,
            )


FAITHFUL: Mapping[str, Any] = {"spectral": "re_fft2", "residual": "paper", "rope": "flat1d", "abs_pos": False}
"""Overrides that turn any preset into the block described in the paper; see docs/fidelity.md."""

_S: dict[str, Any] = {"vocab_size": 8192, "width": 1760, "heads": 16, "blocks": 17}
_M: dict[str, Any] = {"vocab_size": 8192, "width": 2048, "heads": 16, "blocks": 28}
_L: dict[str, Any] = {"vocab_size": 8192, "width": 2240, "heads": 32, "blocks": 37}
_L_WIDE: dict[str, Any] = {**_L, "width": 4096}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"vocab_size": 512, "width": 128, "heads": 4, "blocks": 4, "text_dim": 64, "text_len": 32},
    # Published parameter counts, heads and depth; widths that reproduce the counts.
    "S": _S,
    "M": _M,
    "L": _L,
    # Published widths; only M has the published parameter count as well.
    "S_paper_width": {**_S, "width": 1024},
    "M_paper_width": _M,
    "L_paper_width": _L_WIDE,
    # Published widths and parameter counts; attention or MLP sized to fit.
    "S_paper_width_fat": {**_S, "width": 1024, "mlp_ratio": 20.0},
    "L_paper_width_slim": {**_L_WIDE, "attention_ratio": 0.25, "mlp_ratio": 1.25},
}
"""`vocab_size` is the size that the published parameter counts were fitted at; a recipe takes it from its tokenizer."""


def preset(name: str, **overrides: Any) -> SpectralTransformerConfig:
    """Return a named preset with fields replaced.

    Raises:
      UserError: no such preset (with the nearest name), or values that do not fit.
    """
    if name not in PRESETS:
        raise UserError(f"unknown denoiser preset {name!r}{nearest(name, PRESETS)}")
    return SpectralTransformerConfig(**{**PRESETS[name], **overrides})
