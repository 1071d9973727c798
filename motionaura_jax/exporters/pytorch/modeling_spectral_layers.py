"""Linear maps into and out of a spectral domain, plain and folded.  MotionAura section 3.3, equations 2 to 5.

A transform is T(x) = Re(w * F x).  F is the unitary Fourier transform over the axes of its kind.  The weight w is 1 for
`re_fft2`, 1 + i for the Hartley kinds, and learned for `filter` and in cross-attention.  Plain layers apply T to the
activations.  Folded layers merge the transform along the embedding into their kernels: they compute the same values with
half of the products and only the transform along the sequence.
"""

import torch
from torch import Tensor, nn

from motionaura_jax.exporters.pytorch.modeling_lora import AdaptedLinear, LoraConfig, projection

Grid = tuple[int, int, int]

FOLDED_KINDS = ("re_fft2", "hartley", "filter")


def spectrum(x: Tensor, kind: str, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the real and imaginary parts of F x for x `(b, s, d)`, over the axes of `kind`; computed in float32."""
    if kind == "hartley3d":
        bins = torch.fft.fftn(x.float().unflatten(1, grid), dim=(1, 2, 3, 4), norm="ortho").flatten(1, 3)
    else:
        bins = torch.fft.fftn(x.float(), dim=(1,) if kind == "seq_hartley" else (1, 2), norm="ortho")
    return bins.real.to(x.dtype), bins.imag.to(x.dtype)


def transform(x: Tensor, kind: str, grid: Grid, weight: Tensor | None = None) -> Tensor:
    """Return Re(w * F x), with a learned weight w (2, d) or the fixed weight of `kind`.

    The transforms of the orthogonal (Hartley) kinds are their own inverses.  `filter` without a weight is Re(F x), which
    maps back from the learned transform.
    """
    if kind == "none":
        return x
    real, imaginary = spectrum(x, kind, grid)
    if weight is not None:
        return weight[0] * real - weight[1] * imaginary
    return real if kind in ("re_fft2", "filter") else real - imaginary


def paired_order(length: int) -> Tensor:
    """Return the bins in the order of folded layers: 0, 1, ..., length // 2, -1, -2, ..."""
    return torch.cat([torch.arange(length // 2 + 1), torch.arange(length - 1, length // 2, -1)])


def mirror(x: Tensor, axis: int) -> Tensor:
    """Reverse indices along `axis`: u -> -u mod n."""
    return x.flip(axis).roll(1, axis)


class SpectralInput(nn.Module):
    """Projections `to_NAME` of T(x), one for each of `names`; the parameter `filter` (2, d) is a learned weight."""

    is_folded = False

    def __init__(self, names: tuple[str, ...], width: int, inner: int, kind: str, learned: bool, lora: LoraConfig):
        super().__init__()
        self.names, self.kind = names, kind
        self.filter = nn.Parameter(torch.empty(2, width)) if learned else None
        for name in names:
            self.add_module(f"to_{name}", projection(name, width, inner, lora))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        y = transform(x, self.kind, grid, self.filter)
        return tuple(self.get_submodule(f"to_{name}")(y) for name in self.names)

    def folded(self) -> nn.Module:
        """Return the equivalent folded layer, or this layer if its kind has no folded form."""
        if self.kind not in FOLDED_KINDS:
            return self
        weight = None if self.filter is None else self.filter.detach()
        return FoldedInput([self.get_submodule(f"to_{name}") for name in self.names], weight, self.kind)


class SpectralOutput(nn.Module):
    """Projection `to_out` of the attention output, followed by the transform back from the spectral domain."""

    def __init__(self, inner: int, width: int, kind: str, lora: LoraConfig):
        super().__init__()
        self.kind = kind
        self.to_out = projection("o", inner, width, lora)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return transform(self.to_out(x), self.kind, grid)

    def folded(self) -> nn.Module:
        """Return the equivalent folded layer, or this layer if its kind has no folded form."""
        if self.kind not in FOLDED_KINDS:
            return self
        return FoldedOutput(self.to_out, self.kind)


class FoldedInput(nn.Module):
    """`SpectralInput` with the transform along the embedding folded in: bins u and -u are re(u) E +- im(u) O.

    re and im are the parts of the transform of x along the sequence.  If the weight is 1 (`half`), columns 0..d/2 of the
    point-even half (x[s, d] + x[-s, -d]) / 2 suffice.  Output rows are in `paired_order`.  The first map of an adapter is
    folded like the projections.
    """

    is_folded = True

    def __init__(self, projections: list[nn.Linear], weight: Tensor | None, kind: str):
        super().__init__()
        adapted = {index: to for index, to in enumerate(projections) if isinstance(to, AdaptedLinear)}
        kernels = [to.weight.detach() for to in (*projections, *(to.lora_A for to in adapted.values()))]
        self.sizes, kernel = [len(part) for part in kernels], torch.cat(kernels).T
        self.adapted = [(index, to.lora) for index, to in adapted.items()]
        self.ups = nn.ModuleList(to.lora_B for to in adapted.values())
        width = len(kernel)
        self.half = weight is None and kind == "re_fft2"
        wide = kernel.float()
        if weight is not None:
            real, imaginary = (part[:, None].float() for part in weight)
        else:
            real, imaginary = 1.0, 1.0 if kind == "hartley" else 0.0
        bins = torch.fft.fft(real * wide, dim=0, norm="ortho") + 1j * torch.fft.fft(
            imaginary * wide, dim=0, norm="ortho"
        )
        if self.half:
            index = torch.arange(width // 2 + 1, device=kernel.device)
            alone = (index == 0) | (2 * index == width)
            bins = torch.where(alone, 1.0, 2.0)[:, None] * bins[: width // 2 + 1]
        self.register_buffer("even", bins.real.to(kernel.dtype).contiguous(), persistent=False)
        self.register_buffer("odd", -bins.imag.to(kernel.dtype).contiguous(), persistent=False)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Map tokens `(b, s, d)` to one `(b, s, n)` per projection, rows in `paired_order`."""
        length, wide = x.shape[1], x.float()
        if self.half:
            wide = _fold_columns(wide)
        bins = torch.fft.rfft(wide, dim=1, norm="ortho")
        a, b = bins.real.to(x.dtype) @ self.even, bins.imag.to(x.dtype) @ self.odd
        parts = torch.cat([a + b, (a - b)[:, 1 : (length + 1) // 2]], dim=1).split(self.sizes, dim=-1)
        projected = [*parts[: len(parts) - len(self.ups)]]
        for (index, lora), up, hidden in zip(self.adapted, self.ups, parts[len(projected) :], strict=True):
            projected[index] = projected[index] + up(lora.activate(hidden))
        return tuple(projected)


class FoldedOutput(nn.Module):
    """`SpectralOutput` with the transform along the embedding folded in; its input rows are in `paired_order`.

    Rows n and -n enter as sum and difference.  Except for the Hartley transform the result is point-symmetric: columns
    0..d/2 are computed and the others mirrored.  The second map of an adapter is folded like the projection.
    """

    is_folded = True

    def __init__(self, to_out: nn.Linear, kind: str):
        super().__init__()
        kernel = to_out.weight.detach().T
        self.adapted = isinstance(to_out, AdaptedLinear)
        if isinstance(to_out, AdaptedLinear):
            self.down, self.lora = to_out.lora_A, to_out.lora
            kernel = torch.cat([kernel, to_out.lora_B.weight.detach().T])
        self.width, self.half = kernel.shape[-1], kind != "hartley"
        bins = 0.5 * torch.fft.fft(kernel.float(), dim=-1, norm="ortho")
        bins = bins[:, : self.width // 2 + 1] if self.half else bins * (1 + 1j)
        self.register_buffer("even", bins.real.to(kernel.dtype).contiguous(), persistent=False)
        self.register_buffer("odd", -bins.imag.to(kernel.dtype).contiguous(), persistent=False)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map rows `(b, s, n)` in `paired_order` to tokens `(b, s, d)`."""
        if self.adapted:
            x = torch.cat([x, self.lora.activate(self.down(x))], dim=-1)
        length, kept = x.shape[1], x.shape[1] // 2 + 1
        own = [x[:, kept - 1 : kept]] if length % 2 == 0 else []  # bins 0 and length / 2 are their own mirror images
        positive, negative = x[:, :kept], torch.cat([x[:, :1], x[:, kept:], *own], dim=1)
        real, imaginary = (positive + negative) @ self.even, (positive - negative) @ self.odd
        bins = torch.complex(real.float(), imaginary.float())
        out = torch.fft.irfft(bins, n=length, dim=1, norm="ortho").to(x.dtype)
        return _unfold_columns(out, self.width) if self.half else out


def _fold_columns(x: Tensor) -> Tensor:
    """Return columns 0..d/2 of the point-even half of x `(b, s, d)`; the others are their reflection."""
    kept = x.shape[-1] // 2 + 1
    reflected = torch.cat([x[..., :1], x[..., x.shape[-1] - kept + 1 :].flip(-1)], dim=-1)
    return 0.5 * (x[..., :kept] + mirror(reflected, 1))


def _unfold_columns(columns: Tensor, width: int) -> Tensor:
    """Complete a point-symmetric array from its columns 0..width/2."""
    others = columns[..., 1 : width - width // 2].flip(-1)
    return torch.cat([columns, mirror(others, 1)], dim=-1)
