"""Folding of the transform along the embedding into the attention kernels."""

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from motionaura_jax.core.types import PyTree
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.layers import spectral
from motionaura_jax.ops import fft

Kernel = Float[Array, "*n i o"]


def fold(params: PyTree, config: SpectralTransformerConfig, dtype: jnp.dtype | None = None) -> PyTree:
    """Return the parameters of `SpectralTransformer(config, folded=True)` equal to the given ones.

    With `dtype`, each device casts its part of the folded kernels, so that devices exchange them in that dtype.

    Folding is linear in the kernels and differentiable, so a training step may fold inside its loss.  Sampling folds once.
    Kernels of kinds outside `spectral.FOLDED_KINDS` stay unchanged.
    """
    flat = dict(traverse_util.flatten_dict(params))
    for layer, kind in (("self_attention", config.spectral), ("cross_attention", config.cross_kind)):
        if kind not in spectral.FOLDED_KINDS:
            continue
        path = ("trunk", "blocks", layer)
        weight = flat.pop((*path, "into", "filter"), None)
        names = ("q", "k", "v") if layer == "self_attention" else ("q",)
        # Fold only the adapter map next to the transform; the activation separates the other map from it.
        inputs, outputs = [part for name in names for part in (name, f"{name}_lora_down")], ["o", "o_lora_up"]
        folded = {
            ("into", name): _fold_input(flat.pop((*path, "into", name)), weight, kind)
            for name in inputs
            if (*path, "into", name) in flat
        }
        folded |= {
            ("out", name): _fold_output(flat.pop((*path, "out", name)), kind)
            for name in outputs
            if (*path, "out", name) in flat
        }
        for (module, name), (even, odd) in folded.items():
            if dtype is not None:
                axis = -2 if module == "into" else -1
                even, odd = (fft.split_as_dft(part.astype(dtype), axis) for part in (even, odd))
            flat |= {(*path, module, f"{name}_even"): even, (*path, module, f"{name}_odd"): odd}
    return traverse_util.unflatten_dict(flat)


def _fold_input(kernel: Kernel, weight: Float[Array, "*n 2 i"] | None, kind: str) -> tuple[Kernel, Kernel]:
    """Return E = Re(F diag(w) W) and O = -Im(F diag(w) W), for which T(x) W has rows re(u) E +- im(u) O.

    Without a learned weight, `re_fft2` reads only the point-even half of x.  There columns d and -d are conjugates, so
    columns 0..d/2 suffice.
    """
    if weight is not None:
        real, imaginary = (part[..., None] for part in jnp.moveaxis(weight, -2, 0))
        even, odd = fft.dft(real * kernel, -2, imaginary * kernel)
    else:
        even, odd = _weigh(*fft.dft(kernel, -2, half=kind == "re_fft2"), kind)
        if kind == "re_fft2":
            count = jnp.asarray(_multiplicity(kernel.shape[-2]))[:, None]
            even, odd = (_keep(count * part, -2, kernel.shape[-2]) for part in (even, odd))
    return even, -odd


def _fold_output(kernel: Kernel, kind: str) -> tuple[Kernel, Kernel]:
    """Return Re(W F w) / 2 and -Im(W F w) / 2, which multiply the sums and differences of rows n and -n."""
    half = kind != "hartley"  # columns 0..d/2 suffice
    even, odd = (0.5 * part for part in _weigh(*fft.dft(kernel, -1, half=half), kind))
    if half:
        even, odd = (_keep(part, -1, kernel.shape[-1]) for part in (even, odd))
    return even, -odd


def _weigh(real: Array, imaginary: Array, kind: str) -> tuple[Array, Array]:
    """Return the parts of a spectrum times the fixed weight of `kind`: 1 + i for Hartley, else 1."""
    return (real - imaginary, real + imaginary) if kind == "hartley" else (real, imaginary)


def _multiplicity(width: int) -> np.ndarray:
    """Return how many of the `width` columns each of the columns 0..width/2 stands for."""
    index = np.arange(width // 2 + 1)
    return np.where((index == 0) | (2 * index == width), 1.0, 2.0).astype(np.float32)


def _keep(x: Array, axis: int, width: int) -> Array:
    """Pad columns 0..width/2 with zeros to whole tiles."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, spectral.folded_width(width) - x.shape[axis])
    return jnp.pad(x, padding)
