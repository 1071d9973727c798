"""The paper's denoiser in eager PyTorch, as a user would write it, doing the same work as ours.  MotionAura 3.3.

Pre-AdLN, Re(fft2) -> attention with RoPE -> Re(ifft2), the same around cross-attention to text, MLP.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdaptiveNorm(nn.Module):
    """LayerNorm with scale and shift computed from the condition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.project = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.project(functional.silu(condition)).unsqueeze(1).chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


def rotate(x: Tensor) -> Tensor:
    """Apply rotary embedding to `(batch, head, position, channel)`."""
    length, width = x.shape[-2:]
    angle = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, width, 2) / width))
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2)


class Attention(nn.Module):
    """Multi-head attention to a context, or self-attention with rotated queries and keys."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(context_width, width), nn.Linear(context_width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        layers = ((self.query, x), (self.key, source), (self.value, source))
        query, key, value = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, y in layers)
        if context is None:
            query, key = rotate(query), rotate(key)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Transformer block of equations 2 to 5."""

    def __init__(self, width: int, heads: int, text_width: int, spectral: bool):
        super().__init__()
        self.spectral = spectral
        self.adapt = nn.ModuleList(AdaptiveNorm(width) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.self_attention = Attention(width, heads, width)
        self.cross_attention = Attention(width, heads, text_width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        into = (lambda y: torch.fft.fft2(y).real) if self.spectral else (lambda y: y)
        back = (lambda y: torch.fft.ifft2(y).real) if self.spectral else (lambda y: y)
        adapted = self.adapt[0](x, condition)
        z = self.norms[0](back(self.self_attention(into(adapted)))) + adapted
        crossed = back(self.cross_attention(into(z), into(text)))
        z = self.norms[1](crossed) + self.adapt[1](z, condition)
        return z + self.mlp(self.adapt[2](z, condition))


class TorchDenoiser(nn.Module):
    """Denoiser from token ids `(batch, position)` to logits `(batch, position, code)`; id `vocab_size` is MASK."""

    def __init__(self, *, vocab_size: int, width: int, heads: int, blocks: int, text_width: int, spectral: bool):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.condition = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads, text_width, spectral) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size)

    def forward(self, ids: Tensor, time: Tensor, text: Tensor) -> Tensor:
        phase = torch.outer(time.float(), 10000.0 ** (-torch.arange(128) / 128))
        condition = self.condition(torch.cat((phase.cos(), phase.sin()), -1))
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, text, condition)
        return self.head(self.norm(x))


def sample(model: TorchDenoiser, text: Tensor, *, length: int, vocab_size: int, steps: int, scale: float) -> Tensor:
    """Sample `length` tokens by confidence on the cosine schedule, with guidance as a batch of two."""
    ids = torch.full((1, length), vocab_size)
    both = torch.cat((text, torch.zeros_like(text)))
    for step in range(steps):
        masked = ids == vocab_size
        conditional, free = model(ids.expand(2, -1), torch.full((2,), steps - step), both).split(1)
        log_p = (free + scale * (conditional - free)).log_softmax(-1)
        drawn = torch.multinomial(log_p[0].exp(), 1)[:, 0][None]
        proposal = torch.where(masked, drawn, ids)
        noise = -torch.empty(1, length).exponential_().log() * 4.5 * (1 - (step + 1) / steps)
        score = (log_p.gather(-1, proposal[..., None].clamp(max=vocab_size - 1))[..., 0] + noise).where(
            masked, torch.inf
        )
        left = math.floor(length * math.cos(math.pi / 2 * (step + 1) / steps))
        ids = proposal.scatter(1, score.argsort(-1)[:, :left], vocab_size)
    return ids
