"""Spectral transformer of MotionAura (section 3.3), which predicts clean video tokens from masked ones and a text.

Tokens are `(b, t, h, w)`, where `vocab_size` is the id of MASK; logits are `(b, t, h, w, vocab_size)`.

    transformer = SpectralTransformer.from_pretrained("FOLDER")
    transformer.fold()  # same outputs, faster; for inference only
    logits = transformer(tokens, masked_fraction, fps, text, text_mask)
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionaura_jax.exporters.pytorch.modeling_lora import LoraConfig, Mlp, projection, read_lora
from motionaura_jax.exporters.pytorch.modeling_spectral_layers import (
    Grid,
    SpectralInput,
    SpectralOutput,
    paired_order,
    spectrum,
)
from motionaura_jax.exporters.pytorch.modeling_utils import (
    CONFIG,
    Pretrained,
    layer_norm,
    read_settings,
    read_weights,
    rms_norm,
)

_FEATURES, _BASE = 256, 10000.0
_RANK = 256
_STDDEV = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralTransformerConfig(LoraConfig):
    """Architecture settings; see the fields of the same names in JAX.  `rope` is never "auto" here."""

    vocab_size: int
    width: int
    heads: int
    blocks: int
    mlp_ratio: float
    attention_ratio: float
    spectral: Literal["re_fft2", "hartley", "hartley3d", "seq_hartley", "filter", "none"]
    cross_spectral: bool
    residual: Literal["paper", "identity"]
    rope: Literal["flat1d", "signed", "axial", "sinusoidal"]
    abs_pos: bool
    adaln: Literal["single", "lowrank256", "perblock"]
    time_cond: bool
    text_dim: int
    text_len: int
    learned_null: bool = True
    head_norm: bool = False
    output_bias: bool = False

    @property
    def inner(self) -> int:
        """Return the total width of all attention heads."""
        return round(self.width * self.attention_ratio)

    @property
    def cross_kind(self) -> str:
        """Return the kind of the transform around cross-attention."""
        return self.spectral if self.cross_spectral else "none"

    @property
    def text_kind(self) -> str:
        """Return the kind of the text's transform; text has no grid, so it uses the frequencies of the flat sequence."""
        return "hartley" if self.cross_kind == "hartley3d" else self.cross_kind

    @property
    def modulation_count(self) -> int:
        """Return the number of modulation vectors of a block: shift and scale of three norms, plus the gates of `residual`."""
        return 9 if self.residual == "identity" else 7


Text = tuple[Tensor, Tensor | None]
"""Real and imaginary parts of a text's spectrum, shared by all blocks; without a transform, the text itself and None."""


class TextMemory(NamedTuple):
    """Text as cross-attention reads it: keys and values `(b, head, length, channel)` for each block, and a mask."""

    blocks: list[tuple[Tensor, Tensor]]
    mask: Tensor | None


def frequencies(count: int) -> Tensor:
    """Return `count` geometric frequencies from 1 to nearly 1 / 10000; float64 until the end, as phases amplify errors."""
    return (_BASE ** (-torch.arange(count, dtype=torch.float64) / count)).float()


def sinusoid(x: Tensor, features: int) -> Tensor:
    """Return cosines and sines `(..., features)` of x `(...)` at geometric frequencies from 1 to nearly 1 / 10000."""
    phase = x.float()[..., None] * frequencies((features + 1) // 2).to(x.device)
    return torch.cat([phase.cos(), phase.sin()], dim=-1)[..., :features]


def positions(config: SpectralTransformerConfig, grid: Grid, folded: bool) -> Tensor:
    """Return token coordinates `(s, 1 or 3)`: index, signed frequency, or (t, h, w)."""
    axial = config.rope == "axial"
    axes = [torch.arange(size) for size in (grid if axial else (math.prod(grid),))]
    if config.rope == "signed" or (axial and config.spectral == "hartley3d"):
        axes = [torch.where(index > len(index) // 2, index - len(index), index) for index in axes]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return place[paired_order(len(place))] if folded else place


def rotary_angles(coordinates: Tensor, head_dim: int) -> Tensor:
    """Return rotation angles `(s, head_dim / 2)`; three coordinates share the head's channels as t:h:w = 2:1:1."""
    side = 2 * round(head_dim / 8)
    sizes = (head_dim - 2 * side, side, side) if coordinates.shape[-1] == 3 else (head_dim,)
    parts = [coordinates[:, i, None].float() * frequencies(size // 2) for i, size in enumerate(sizes) if size]
    return torch.cat(parts, dim=-1)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x[i], x[i + d/2]) of `(b, s, head, d)` by angles given as cosines and sines `(s, 1, d/2)`."""
    cos, sin = turn
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class ScalarEmbedding(nn.Module):
    """Embedding of one number per sample, `(b,)` to `(b, d)`: sinusoid, Linear, SiLU, Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(_FEATURES, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid(x, _FEATURES).to(self.linear_1.weight.dtype))))


class Modulation(nn.Module):
    """Modulation of one block: shifts, scales and gates `(b, 1, d)` computed from the condition."""

    def __init__(self, config: SpectralTransformerConfig):
        super().__init__()
        self.count, width = config.modulation_count, config.modulation_count * config.width
        self.kind = config.adaln
        if self.kind == "single":
            self.table = nn.Parameter(torch.empty(width))
        else:
            if self.kind == "lowrank256":
                self.down = nn.Linear(config.width, _RANK, bias=False)
            self.up = nn.Linear(_RANK if self.kind == "lowrank256" else config.width, width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return one vector `(b, 1, d)` for each shift, scale and gate, from a condition `(b, c)`."""
        if self.kind == "single":
            vectors = condition + self.table
        else:
            hidden = F.silu(condition)
            vectors = self.up(self.down(hidden) if self.kind == "lowrank256" else hidden)
        return vectors[:, None].chunk(self.count, dim=-1)


class Attention(nn.Module):
    """Self- or cross-attention in the spectral domain, from the transform of the input to the transform back.

    Queries and keys are normalized to unit mean square; `gain` (heads,) scales the logits of each head.
    """

    def __init__(self, config: SpectralTransformerConfig, kind: str, *, cross: bool):
        super().__init__()
        learned = kind == "filter" or (cross and kind != "none")
        names = ("q",) if cross else ("q", "k", "v")
        self.heads = config.heads
        self.input = SpectralInput(names, config.width, config.inner, kind, learned, config)
        self.output = SpectralOutput(config.inner, config.width, kind, config)
        self.gain = nn.Parameter(torch.empty(config.heads))

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        turn: tuple[Tensor, Tensor] | None = None,
        context: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the update of x `(b, s, d)`; `turn`: cosines, sines of rotation; `context`: keys, values `(b, heads, l, c)`."""
        query, *own = (part.unflatten(-1, (self.heads, -1)) for part in self.input(x, grid))
        query = rms_norm(query) * self.gain[:, None]
        if context is None:
            key, value = rms_norm(own[0]), own[1]
            if turn is not None:
                query, key = rotate(query, turn), rotate(key, turn)
            context = (key.transpose(1, 2), value.transpose(1, 2))
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), *context, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(-2), grid)

    def fold(self) -> None:
        """Merge the transform along the embedding, if any, into the kernels."""
        self.input, self.output = self.input.folded(), self.output.folded()


class TextProjection(nn.Module):
    """Projection `to_NAME` of the text, after a learned transform if cross-attention is spectral."""

    def __init__(self, config: SpectralTransformerConfig, name: str):
        super().__init__()
        learned = config.text_kind != "none"
        self.name = name
        self.filter = nn.Parameter(torch.empty(2, config.width)) if learned else None
        self.add_module(f"to_{name}", projection(name, config.width, config.inner, config))

    def forward(self, text: Text) -> Tensor:
        real, imaginary = text
        seen = real if self.filter is None else self.filter[0] * real - self.filter[1] * imaginary
        return self.get_submodule(f"to_{self.name}")(seen)


class KeysValues(nn.Module):
    """Key and value projections of one block's cross-attention."""

    def __init__(self, config: SpectralTransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.key, self.value = TextProjection(config, "k"), TextProjection(config, "v")

    def forward(self, text: Text) -> tuple[Tensor, Tensor]:
        key, value = (part(text).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.key, self.value))
        return rms_norm(key), value


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention to text and MLP, each after an adaptive norm (equations 2 to 5)."""

    def __init__(self, config: SpectralTransformerConfig):
        super().__init__()
        width, hidden = config.width, round(config.mlp_ratio * config.width)
        self.modulation = Modulation(config)
        self.self_attention = Attention(config, config.spectral, cross=False)
        self.context = KeysValues(config)
        self.cross_attention = Attention(config, config.cross_kind, cross=True)
        self.mlp = Mlp(width, hidden, config)
        self.paper = config.residual == "paper"
        if self.paper:
            self.self_norm, self.cross_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self,
        z: Tensor,
        grid: Grid,
        condition: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        context: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """Return the updated tokens `(b, s, d)`; `condition` is `(b, c)`, and the others are as in `Attention.forward`."""
        vectors = self.modulation(condition)
        adapted = self._adapt(z, vectors[0], vectors[1])
        attended = self.self_attention(adapted, grid, turn)
        if self.paper:
            z = self._norm(self.self_norm, attended) + adapted
            crossed = self._norm(self.cross_norm, self.cross_attention(z, grid, None, context, mask))
            z = crossed + self._adapt(z, vectors[2], vectors[3])
            return z + vectors[6] * self.mlp(self._adapt(z, vectors[4], vectors[5]))
        z = z + vectors[6] * attended
        adapted = self._adapt(z, vectors[2], vectors[3])
        z = z + vectors[7] * self.cross_attention(adapted, grid, None, context, mask)
        return z + vectors[8] * self.mlp(self._adapt(z, vectors[4], vectors[5]))

    def _adapt(self, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return (layer_norm(z) * (1 + scale) + shift).to(z.dtype)

    def _norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return layer_norm(x, norm.weight, norm.bias).to(x.dtype)


class SpectralTransformer(Pretrained):
    """Denoiser for token grids of any size."""

    Config = SpectralTransformerConfig
    config: SpectralTransformerConfig

    def __init__(self, config: SpectralTransformerConfig):
        super().__init__(config)
        width = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.mask_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(3, _FEATURES, width)) if config.abs_pos else None
        self.fps_embedding = ScalarEmbedding(width)
        self.time_embedding = ScalarEmbedding(width) if config.time_cond else None
        single = config.adaln == "single"
        self.condition_projection = nn.Linear(width, config.modulation_count * width) if single else None
        self.null_text = nn.Parameter(torch.empty(config.text_len, width)) if config.learned_null else None
        self.text_projection = nn.Linear(config.text_dim, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.head_norm, self.head = nn.LayerNorm(width), nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width) if config.head_norm else None
        self.output_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.output_bias else None
        self.is_folded = False

    @classmethod
    def adapted(cls, folder: Path, adapter: str | Path, base_hash: str, torch_dtype: torch.dtype) -> Self:
        """Load the network in `folder` together with an adapter; see `read_lora`."""
        settings, weights = read_settings(folder / CONFIG), read_weights(folder)
        if settings.get("lora_rank"):
            raise ValueError(f"{folder}: has adapters already")
        more, tensors = read_lora(adapter, base_hash)
        return cls.filled({**settings, **more}, {**weights, **tensors}, torch_dtype)

    def fold(self) -> "SpectralTransformer":
        """Fold the attention kernels in place: same outputs, faster, but not trainable."""
        if not self.is_folded:
            for block in self.blocks:
                block.self_attention.fold()
                block.cross_attention.fold()
            self.is_folded = True
        return self

    def forward(
        self,
        tokens: Tensor,
        masked_fraction: Tensor,
        fps: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        memory: TextMemory | None = None,
    ) -> Tensor:
        """Return float32 logits over the codes at every position.

        Args:
          tokens: `(b, t, h, w)` in [0, vocab_size]; vocab_size is MASK.
          masked_fraction: `(b,)` in [0, 1], the expected share of masked tokens at this step.
          fps: `(b,)`, frames per second.
          text, text_mask: see `encode_text`.
          memory: result of `encode_text`, in place of `text`.
        """
        grid: Grid = tuple(tokens.shape[1:])
        memory = self.encode_text(text, text_mask, len(tokens)) if memory is None else memory
        condition = self._condition(masked_fraction, fps)
        z, turn = self._embed(tokens).flatten(1, 3), self._turn(grid, tokens.device)
        for block, context in zip(self.blocks, memory.blocks, strict=True):
            z = block(z, grid, condition, turn, context, memory.mask)
        z = layer_norm(z, self.head_norm.weight, self.head_norm.bias).to(z.dtype)
        z = F.gelu(self.head(z), approximate="tanh")
        z = layer_norm(z, norm.weight, norm.bias).to(z.dtype) if (norm := self.output_norm) else z
        logits = F.linear(z, self.token_embedding.weight).float().unflatten(1, grid)
        return logits if self.output_bias is None else logits + self.output_bias.float()

    def encode_text(self, text: Tensor | None, mask: Tensor | None, batch: int = 1) -> TextMemory:
        """Compute the keys and values of a text once for all sampling steps.

        Args:
          text: features `(b, l, text_dim)`, l up to `text_len`; None stands for `batch` null texts.
          mask: `(b, l)`, True at content; a sample with no content gets the null text.
        """
        config = self.config
        if text is None:
            text = torch.zeros(batch, 0, config.text_dim, dtype=self.dtype, device=self.device)
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask.bool()
        missing = config.text_len - text.shape[1]
        text, mask = F.pad(text, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        given = mask.any(dim=-1, keepdim=True)
        content = self.text_projection(text.to(self.dtype)) * mask[..., None]
        content = content if self.null_text is None else torch.where(given[..., None], content, self.null_text)
        plain = config.text_kind == "none"
        seen: Text = (content, None) if plain else spectrum(content, config.text_kind, (1, 1, 1))
        # The transform mixes padding into every bin, where no mask can remove it.  So padding is zero and all bins are visible.
        visible = None if config.cross_kind != "none" else (mask | ~given)[:, None, None]
        return TextMemory([block.context(seen) for block in self.blocks], visible)

    def _embed(self, tokens: Tensor) -> Tensor:
        config, grid = self.config, tokens.shape[1:]
        z = self.token_embedding(tokens.clamp(max=config.vocab_size - 1))
        z = torch.where((tokens == config.vocab_size)[..., None], self.mask_embedding, z)
        if config.rope == "sinusoidal":
            place = torch.arange(math.prod(grid), device=tokens.device)
            z = z + _STDDEV * 2**0.5 * sinusoid(place, config.width).unflatten(0, grid)
        if self.position_embedding is not None:
            axes = [sinusoid(torch.arange(size, device=tokens.device), _FEATURES) for size in grid]
            t, h, w = (axis @ table.float() for axis, table in zip(axes, self.position_embedding, strict=True))
            z = z + (t[:, None, None] + h[:, None] + w)
        return z.to(self.dtype)

    def _condition(self, masked_fraction: Tensor, fps: Tensor) -> Tensor:
        condition = self.fps_embedding(64 * torch.log2(fps.float()))
        if self.time_embedding is not None:
            condition = condition + self.time_embedding(1000 * masked_fraction.float())
        return condition if self.condition_projection is None else self.condition_projection(F.silu(condition))

    def _turn(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor] | None:
        if self.config.rope == "sinusoidal":
            return None
        paired = self.is_folded and self.blocks[0].self_attention.input.is_folded
        place = positions(self.config, grid, paired)
        angle = rotary_angles(place, self.config.inner // self.config.heads).to(device)[:, None]
        return angle.cos(), angle.sin()
