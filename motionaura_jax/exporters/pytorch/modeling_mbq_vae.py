"""3D-MBQ-VAE, the video tokenizer of MotionAura (section 3.1, appendix B), in plain PyTorch.

Arrays are channels-first: video `(b, 3, T, H, W)` in [-1, 1], latents `(b, d, t, h, w)`, tokens `(b, t, h, w)`.

    vae = MBQVAE.from_pretrained("FOLDER")
    latent = vae.encode(video)
    video = vae.decode_tokens(latent.tokens, latent.size)
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionaura_jax.exporters.pytorch.modeling_utils import Pretrained

Size = tuple[int, int, int]

_EXPANSION = 4
_INCEPTION_KERNELS = ((3, 3, 1), (3, 1, 3), (1, 3, 3))
_FSQ_MARGIN = 1e-3
_CHUNK = 4096  # latent vectors compared with all codes at once; bounds memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBQVAEConfig:
    """Architecture settings; level i has `channels[i]` channels at 1 / 2 ** (i + 1) of the input height and width."""

    channels: tuple[int, ...]
    enc_mb: tuple[int, ...]
    enc_inc: tuple[int, ...]
    dec_mb: tuple[int, ...]
    dec_inc: tuple[int, ...]
    t_stride: int
    latent_dim: int
    z_channels: int
    causal: bool
    norm: Literal["group", "frame_gn"]
    se_pos: Literal["before", "after"]
    lead: Literal["full", "factor"]
    inception_width: float
    inception_final: int
    upsample: Literal["nearest", "subpixel"]
    mfi_hidden: int
    quantizer: Literal["vq", "vq_ema", "fsq", "lfq", "none"]
    codebook_size: int
    l2: bool
    fsq_levels: tuple[int, ...]

    @property
    def s_stride(self) -> int:
        """Return the pixels per latent cell along height and width."""
        return 2 ** len(self.channels)

    @property
    def time_factors(self) -> tuple[int, ...]:
        """Return the temporal stride between each level and the next; only the deepest stages shrink time."""
        stages, halvings = len(self.channels) - 1, int(math.log2(self.t_stride))
        return (1,) * (stages - halvings) + (2,) * halvings

    @property
    def per_frame(self) -> bool:
        """Return True if normalization statistics are computed per frame, which causal models require."""
        return self.causal or self.norm == "frame_gn"

    def latent_shape(self, frames: int, height: int, width: int) -> Size:
        """Return the token grid (t, h, w) of a video of this size."""
        time = 1 + -(-(frames - 1) // self.t_stride) if self.causal else -(-frames // self.t_stride)
        return (time, -(-height // self.s_stride), -(-width // self.s_stride))

    def padded_size(self, size: Size) -> Size:
        """Return the smallest encoder input >= `size` (frames, height, width); causal models need 1 + k * t_stride frames."""
        t, h, w = self.latent_shape(*size)
        return (1 + (t - 1) * self.t_stride if self.causal else t * self.t_stride, h * self.s_stride, w * self.s_stride)


class Conv3d(nn.Conv3d):
    """3-D convolution that pads time by repeating border frames (if causal, only the first) and space with zeros."""

    def __init__(
        self, config: MBQVAEConfig, inputs: int, outputs: int, kernel: Size, stride: Size = (1, 1, 1), groups: int = 1
    ):
        time, height, width = kernel
        super().__init__(inputs, outputs, kernel, stride, (0, height // 2, width // 2), groups=groups)
        self.before, self.after = (time - 1, 0) if config.causal else (time // 2, time // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = F.pad(x, (0, 0, 0, 0, self.before, self.after), mode="replicate")
        return super().forward(x)


class GroupNorm(nn.GroupNorm):
    """GroupNorm with at least 8 channels per group, over space-time; over each frame if causal or with `frame_gn`."""

    def __init__(self, config: MBQVAEConfig, channels: int):
        groups = math.gcd(32, channels)
        while groups > 1 and channels // groups < 8:
            groups //= 2
        super().__init__(groups, channels, eps=1e-6)
        self.per_frame = config.per_frame

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y.transpose(1, 2).flatten(0, 1) if self.per_frame else y
        y = F.group_norm(y, self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
        return y.unflatten(0, (len(x), -1)).transpose(1, 2) if self.per_frame else y


class SqueezeExcite(nn.Module):
    """Channel gate computed from channel means over space-time, or over each frame if `per_frame`."""

    def __init__(self, config: MBQVAEConfig, channels: int, hidden: int):
        super().__init__()
        self.axes = (3, 4) if config.per_frame else (2, 3, 4)
        self.reduce, self.expand = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.float().mean(self.axes, keepdim=True).to(x.dtype).movedim(1, -1)
        return x * self.expand(F.silu(self.reduce(pooled))).sigmoid().movedim(-1, 1)


class InvertedBottleneck(nn.Module):
    """Inverted bottleneck: GN, pointwise C to 4C, SiLU, squeeze-excitation, depthwise 3x3x3, SiLU, pointwise 4C to C."""

    def __init__(self, config: MBQVAEConfig, channels: int):
        super().__init__()
        hidden = _EXPANSION * channels
        self.gate_first = config.se_pos == "before"
        self.norm = GroupNorm(config, channels)
        self.expand = Conv3d(config, channels, hidden, (1, 1, 1))
        self.excite = SqueezeExcite(config, hidden, max(channels // 4, 1))
        self.depthwise = Conv3d(config, hidden, hidden, (3, 3, 3), groups=hidden)
        self.project = Conv3d(config, hidden, channels, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.expand(self.norm(x)))
        x = F.silu(self.depthwise(self.excite(x))) if self.gate_first else self.excite(F.silu(self.depthwise(x)))
        return self.project(x)


class MBConv(nn.Module):
    """Residual block: dense 3x3x3 (or 1x3x3 and 3x1x1), then an inverted bottleneck (appendix B.4)."""

    def __init__(self, config: MBQVAEConfig, channels: int):
        super().__init__()
        kernels = [(3, 3, 3)] if config.lead == "full" else [(1, 3, 3), (3, 1, 1)]
        self.norm = GroupNorm(config, channels)
        self.lead = nn.ModuleList(Conv3d(config, channels, channels, kernel) for kernel in kernels)
        self.bottleneck = InvertedBottleneck(config, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(x))
        for conv in self.lead:
            y = conv(y)
        return x + self.bottleneck(y)


class InceptionFusedMB(nn.Module):
    """Residual block of three planar 3-D branches, each with an inverted bottleneck, concatenated and fused (appendix B.5)."""

    def __init__(self, config: MBQVAEConfig, channels: int):
        super().__init__()
        width = max(int(channels * config.inception_width), 1)
        self.norm = GroupNorm(config, channels)
        self.branches = nn.ModuleList(Conv3d(config, channels, width, kernel) for kernel in _INCEPTION_KERNELS)
        self.bottlenecks = nn.ModuleList(InvertedBottleneck(config, width) for _ in _INCEPTION_KERNELS)
        self.fuse = Conv3d(config, 3 * width, channels, (config.inception_final,) * 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(x))
        planes = [branch(y) for branch in self.branches]
        mixed = [plane + bottleneck(plane) for plane, bottleneck in zip(planes, self.bottlenecks, strict=True)]
        return x + self.fuse(torch.cat(mixed, dim=1))


class Level(nn.Module):
    """Stage at one resolution: MBConv blocks, then Inception-Fused-MB blocks."""

    def __init__(self, config: MBQVAEConfig, channels: int, num_mb: int, num_inception: int):
        super().__init__()
        self.mb = nn.ModuleList(MBConv(config, channels) for _ in range(num_mb))
        self.inception = nn.ModuleList(InceptionFusedMB(config, channels) for _ in range(num_inception))

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.mb, *self.inception):
            x = block(x)
        return x


class Upsample(nn.Module):
    """Upsampling of space by 2 and time by `time_factor`; causal: 1 + k frames become 1 + time_factor * k."""

    def __init__(self, config: MBQVAEConfig, inputs: int, outputs: int, time_factor: int):
        super().__init__()
        self.factors = (time_factor, 2, 2)
        self.subpixel = config.upsample == "subpixel"
        # A causal model's first latent frame encodes a single frame, so drop its surplus copies.
        self.surplus = time_factor - 1 if config.causal else 0
        self.conv = Conv3d(config, inputs, outputs * math.prod(self.factors) if self.subpixel else outputs, (3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.subpixel:
            return self._depth_to_space(self.conv(x))[:, :, self.surplus :]
        for axis, factor in zip((2, 3, 4), self.factors, strict=True):
            x = x.repeat_interleave(factor, axis)
        return self.conv(x[:, :, self.surplus :])

    def _depth_to_space(self, x: Tensor) -> Tensor:
        b, _, t, h, w = x.shape
        rt, rh, rw = self.factors
        x = x.reshape(b, rt, rh, rw, -1, t, h, w).permute(0, 4, 5, 1, 6, 2, 7, 3)
        return x.reshape(b, -1, t * rt, h * rh, w * rw)


class Encoder(nn.Module):
    """Encoder: stem, levels joined by strided convolutions, and a projection to `latent_dim` (appendix B.1)."""

    def __init__(self, config: MBQVAEConfig):
        super().__init__()
        channels = config.channels
        self.stem = Conv3d(config, 3, channels[0], (1, 3, 3), (1, 2, 2))
        self.levels = nn.ModuleList(map(Level, [config] * len(channels), channels, config.enc_mb, config.enc_inc))
        self.down = nn.ModuleList(
            Conv3d(config, channels[i], channels[i + 1], (3, 3, 3), (factor, 2, 2))
            for i, factor in enumerate(config.time_factors)
        )
        self.norm = GroupNorm(config, channels[-1])
        self.tail = Conv3d(config, channels[-1], config.z_channels, (3, 3, 3))
        self.project = Conv3d(config, config.z_channels, config.latent_dim, (1, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        x = self.levels[0](self.stem(video))
        for down, level in zip(self.down, self.levels[1:], strict=True):
            x = level(down(x))
        return self.project(self.tail(F.silu(self.norm(x)))).float()


class Decoder(nn.Module):
    """Decoder: the mirrored encoder, with upsampling between levels and a final transposed convolution (appendix B.2)."""

    def __init__(self, config: MBQVAEConfig):
        super().__init__()
        channels = config.channels
        self.project = Conv3d(config, config.latent_dim, config.z_channels, (1, 1, 1))
        self.head = Conv3d(config, config.z_channels, channels[-1], (3, 3, 3))
        self.levels = nn.ModuleList(map(Level, [config] * len(channels), channels, config.dec_mb, config.dec_inc))
        self.up = nn.ModuleList(
            Upsample(config, channels[i + 1], channels[i], factor) for i, factor in enumerate(config.time_factors)
        )
        self.norm = GroupNorm(config, channels[0])
        self.output = nn.ConvTranspose3d(channels[0], 3, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.levels[-1](self.head(self.project(z)))
        for up, level in zip(reversed(self.up), reversed(self.levels[:-1]), strict=True):
            x = level(up(x))
        return self.output(F.silu(self.norm(x))).float()


class Quantizer(nn.Module):
    """Discrete bottleneck: nearest code (`vq`, `vq_ema`), rounding (`fsq`), signs (`lfq`), or identity (`none`)."""

    def __init__(self, config: MBQVAEConfig):
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


class MaskedFrameHead(nn.Module):
    """Classifier of the masked frame: spatial mean, two-layer MLP, `t_stride` logits per latent frame."""

    def __init__(self, config: MBQVAEConfig):
        super().__init__()
        self.first = config.t_stride - 1 if config.causal else 0
        self.hidden = nn.Linear(config.latent_dim, config.mfi_hidden)
        self.logits = nn.Linear(config.mfi_hidden, config.t_stride)

    def forward(self, z: Tensor) -> Tensor:
        pooled = z.mean((3, 4)).transpose(1, 2).to(self.hidden.weight.dtype)
        return self.logits(F.silu(self.hidden(pooled))).flatten(1)[:, self.first :].float()


class Latent(NamedTuple):
    """Encoded video: decoder input `values` `(b, d, t, h, w)`, `tokens` `(b, t, h, w)` or None, and `size` before padding."""

    values: Tensor
    tokens: Tensor | None
    size: Size


class MBQVAE(Pretrained):
    """Video tokenizer; `mask_fill` (3,) is the learned color that replaced masked pixels in training."""

    Config = MBQVAEConfig
    config: MBQVAEConfig

    def __init__(self, config: MBQVAEConfig):
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantizer, self.mfi_head = Quantizer(config), MaskedFrameHead(config)
        self.mask_fill = nn.Parameter(torch.zeros(3))

    def encode(self, video: Tensor) -> Latent:
        """Encode video `(b, 3, T, H, W)` in [-1, 1] of any size; borders are repeated to reach multiples of the strides."""
        size = (video.shape[2], video.shape[3], video.shape[4])
        values, tokens = self.quantizer(self.features(video))
        return Latent(values, tokens, size)

    def features(self, video: Tensor) -> Tensor:
        """Return the encoder output `(b, d, t, h, w)` in float32, before quantization."""
        frames, height, width = video.shape[2:]
        t, h, w = self.config.padded_size((frames, height, width))
        missing = (0, w - width, 0, h - height, 0, t - frames)
        return self.encoder(F.pad(video.to(self.dtype), missing, mode="replicate"))

    def decode(self, values: Tensor, size: Size | None = None) -> Tensor:
        """Decode `Latent.values` to video, clipped to [-1, 1] and cropped to `size` (frames, height, width)."""
        video = self.decoder(values.to(self.dtype)).clamp(-1.0, 1.0)
        return video if size is None else video[:, :, : size[0], : size[1], : size[2]]

    def decode_tokens(self, tokens: Tensor, size: Size | None = None) -> Tensor:
        """Decode tokens `(b, t, h, w)`; see `decode`."""
        return self.decode(self.quantizer.values(tokens), size)

    def mfi_logits(self, z: Tensor) -> Tensor:
        """Return logits `(b, frames)` over the index of the masked frame, from `features`."""
        return self.mfi_head(z)

    def forward(self, video: Tensor) -> Tensor:
        """Return the reconstruction of `video`."""
        latent = self.encode(video)
        return self.decode(latent.values, latent.size)
