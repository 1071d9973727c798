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

from motionaura_jax.exporters.pytorch.modeling_quantizer import Quantizer
from motionaura_jax.exporters.pytorch.modeling_utils import Pretrained

Size = tuple[int, int, int]

_EXPANSION = 4
_INCEPTION_KERNELS = ((3, 3, 1), (3, 1, 3), (1, 3, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBQVAEConfig:
    """Architecture settings; level i has `channels[i]` channels at 1 / (stem_space * 2 ** i) of the input height and width.

    `stem` "patch" and "haar" start from patches of stem_time x stem_space x stem_space pixels, "conv" from a convolution.
    """

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
    # Older exports do not have these.
    stem: Literal["conv", "patch", "haar"] = "conv"
    stem_time: int = 1
    stem_space: int = 2

    @property
    def patch(self) -> Size:
        """Return the frames, rows and columns of a patch."""
        return (self.stem_time, self.stem_space, self.stem_space)

    @property
    def s_stride(self) -> int:
        """Return the pixels per latent cell along height and width."""
        return self.stem_space * 2 ** (len(self.channels) - 1)

    @property
    def time_factors(self) -> tuple[int, ...]:
        """Return the temporal stride between each level and the next; only the deepest stages shrink time."""
        stages, halvings = len(self.channels) - 1, int(math.log2(self.t_stride // self.stem_time))
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
            return depth_to_space(self.conv(x), self.factors)[:, :, self.surplus :]
        for axis, factor in zip((2, 3, 4), self.factors, strict=True):
            x = x.repeat_interleave(factor, axis)
        return self.conv(x[:, :, self.surplus :])


def depth_to_space(x: Tensor, factors: Size) -> Tensor:
    """Move channels ordered (time, height, width, channel) into blocks of `factors` frames, rows and columns."""
    b, _, t, h, w = x.shape
    rt, rh, rw = factors
    x = x.reshape(b, rt, rh, rw, -1, t, h, w).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return x.reshape(b, -1, t * rt, h * rh, w * rw)


def space_to_depth(x: Tensor, factors: Size) -> Tensor:
    """Undo `depth_to_space`."""
    b, c, t, h, w = x.shape
    rt, rh, rw = factors
    x = x.reshape(b, c, t // rt, rt, h // rh, rh, w // rw, rw).permute(0, 3, 5, 7, 1, 2, 4, 6)
    return x.reshape(b, -1, t // rt, h // rh, w // rw)


def to_patches(config: MBQVAEConfig, video: Tensor) -> Tensor:
    """Move the pixels of each patch into channels; causal: the first patch holds copies of the first frame."""
    if config.causal and config.stem_time > 1:
        video = torch.cat([video[:, :, :1]] * (config.stem_time - 1) + [video], dim=2)
    patches = space_to_depth(video, config.patch)
    return haar(patches, config.patch) if config.stem == "haar" else patches


def from_patches(config: MBQVAEConfig, patches: Tensor) -> Tensor:
    """Undo `to_patches`."""
    patches = haar(patches, config.patch) if config.stem == "haar" else patches
    return depth_to_space(patches, config.patch)[:, :, config.stem_time - 1 if config.causal else 0 :]


def haar(patches: Tensor, factors: Size) -> Tensor:
    """Replace the pixels of each patch by their orthonormal Haar wavelet packet, or the packet by pixels; in float32."""
    blocks = patches.float().unflatten(1, (*factors, -1))
    for axis, size in enumerate(factors, start=1):
        matrix = torch.ones(1, 1, device=patches.device)
        while len(matrix) < size:  # symmetric and orthogonal after scaling: its own inverse
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        blocks = (blocks.movedim(axis, -1) @ (matrix * size**-0.5)).movedim(-1, axis)
    return blocks.flatten(1, 4).to(patches.dtype)


class Encoder(nn.Module):
    """Encoder: stem, levels joined by strided convolutions, and a projection to `latent_dim` (appendix B.1)."""

    def __init__(self, config: MBQVAEConfig):
        super().__init__()
        channels = config.channels
        self.config = config
        if config.stem == "conv":
            self.stem = Conv3d(config, 3, channels[0], (1, 3, 3), (1, 2, 2))
        else:
            self.stem = Conv3d(config, 3 * math.prod(config.patch), channels[0], (1, 1, 1))
        self.levels = nn.ModuleList(map(Level, [config] * len(channels), channels, config.enc_mb, config.enc_inc))
        self.down = nn.ModuleList(
            Conv3d(config, channels[i], channels[i + 1], (3, 3, 3), (factor, 2, 2))
            for i, factor in enumerate(config.time_factors)
        )
        self.norm = GroupNorm(config, channels[-1])
        self.tail = Conv3d(config, channels[-1], config.z_channels, (3, 3, 3))
        self.project = Conv3d(config, config.z_channels, config.latent_dim, (1, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        x = video if self.config.stem == "conv" else to_patches(self.config, video)
        x = self.levels[0](self.stem(x))
        for down, level in zip(self.down, self.levels[1:], strict=True):
            x = level(down(x))
        return self.project(self.tail(F.silu(self.norm(x)))).float()


class Decoder(nn.Module):
    """Decoder: the mirrored encoder, with upsampling between levels and a transposed convolution or patches at the end."""

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
        self.config = config
        if config.stem == "conv":
            self.output = nn.ConvTranspose3d(channels[0], 3, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))
        else:
            self.output = Conv3d(config, channels[0], 3 * math.prod(config.patch), (1, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.levels[-1](self.head(self.project(z)))
        for up, level in zip(reversed(self.up), reversed(self.levels[:-1]), strict=True):
            x = level(up(x))
        x = self.output(F.silu(self.norm(x)))
        return (x if self.config.stem == "conv" else from_patches(self.config, x)).float()


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
