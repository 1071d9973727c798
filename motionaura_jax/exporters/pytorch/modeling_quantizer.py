"""Quantizers of MotionAura's video tokenizer (section 3.1), in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn

_FSQ_MARGIN = 1e-3
_CHUNK = 4096  # latent vectors compared with all codes at once; bounds memory


class Quantizer(nn.Module):
    """Discrete bottleneck: nearest code (`vq`, `vq_ema`), rounding (`fsq`), signs (`lfq`), or identity (`none`)."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        if config.quantizer in ("vq", "vq_ema"):
            self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.latent_dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantize float32 encoder outputs `(b, d, t, h, w)`; return the decoder input and the codes, None for `none`."""
        if self.config.quantizer == "none":
            return z, None
        codes = self.codes(z.movedim(1, -1))
        return self.values(codes), codes

    def codes(self, z: Tensor) -> Tensor:
        """Return the codes `(...)` of channels-last vectors `(..., d)`."""
        kind = self.config.quantizer
        if kind == "fsq":
            sizes = self._levels(z)
            radix = torch.cat([sizes.new_ones(1), sizes[:-1].cumprod(0)])
            return ((self._fsq_bound(z).round().long() + sizes // 2) * radix).sum(-1)
        if kind == "lfq":
            return ((z > 0).long() << torch.arange(z.shape[-1], device=z.device)).sum(-1)
        book = self._unit(self.codebook.float())
        norms = book.square().sum(-1)
        # The nearest code maximizes 2 z.e - |e|^2, since |z|^2 is the same for all codes.
        parts = [(2 * (part @ book.T) - norms).argmax(-1) for part in self._unit(z).flatten(0, -2).split(_CHUNK)]
        return torch.cat(parts).reshape(z.shape[:-1])

    def values(self, codes: Tensor) -> Tensor:
        """Return the decoder input `(b, d, t, h, w)` for codes `(b, t, h, w)`."""
        kind = self.config.quantizer
        if kind == "fsq":
            sizes = self._levels(codes)
            radix = torch.cat([sizes.new_ones(1), sizes[:-1].cumprod(0)])
            values = (codes[..., None] // radix % sizes - sizes // 2) / (sizes // 2)
        elif kind == "lfq":
            values = 2.0 * (codes[..., None] >> torch.arange(self.config.latent_dim, device=codes.device) & 1) - 1.0
        elif kind == "none":
            raise ValueError("a tokenizer with quantizer 'none' has no codes; decode the continuous latents")
        else:
            values = self._unit(self.codebook.float())[codes]
        return values.float().movedim(-1, 1)

    def continuous(self, z: Tensor) -> Tensor:
        """Return the decoder input `(b, d, t, h, w)` in the limit of infinitely many codes."""
        z = z.movedim(1, -1)
        if self.config.quantizer == "fsq":
            z = self._fsq_bound(z) / (self._levels(z) // 2)
        elif self.config.quantizer in ("vq", "vq_ema"):
            z = self._unit(z)
        return z.movedim(-1, 1)

    def _unit(self, vectors: Tensor) -> Tensor:
        if not self.config.l2:
            return vectors
        return vectors * (vectors.square().sum(-1, keepdim=True) + 1e-12).rsqrt()

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.fsq_levels, device=like.device)

    def _fsq_bound(self, z: Tensor) -> Tensor:
        sizes = self._levels(z).float()
        half = (sizes - 1) * (1 + _FSQ_MARGIN) / 2
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)  # centers an even number of levels
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset
