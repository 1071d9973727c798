"""Breakdown of the denoiser's forward pass: each part compiled and timed separately.

    python -m benchmarks.denoiser_parts [--rounds=15]

The network is that of `benchmarks.denoiser`; the time of a part of every block is multiplied by the number of blocks.
"Products" are the matrix products of a layer alone; the rest of a layer's time goes to transforms and data movement.
"Naive" uses full complex FFTs.  All cases are interleaved in this process; compare CPU seconds.
"""

import argparse
import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import denoiser
from benchmarks.timing import Timing, compile_case, interleave
from motionaura_jax.core import process
from motionaura_jax.models.denoisers.block import Mlp
from motionaura_jax.models.layers import spectral
from motionaura_jax.models.layers.attention import normalize
from motionaura_jax.models.layers.config import LoraConfig
from motionaura_jax.models.layers.embeddings import rotary_angles, rotary_positions, rotate
from motionaura_jax.ops.attention import attend
from motionaura_jax.ops.cross_entropy import linear_logits

Call = Callable[[], object]

WIDTH, HEADS, BLOCKS = (denoiser.SIZE[name] for name in ("width", "heads", "blocks"))
LENGTH = math.prod(denoiser.FORWARD_GRID)
FLOAT = jnp.dtype("float32")
LAYERS = ("q, k, v of self-attention", "output of self-attention", "q of cross-attention", "output of cross-attention")


def noise(*shape: int) -> jax.Array:
    """Return random normal numbers."""
    return jax.random.normal(jax.random.key(len(shape)), shape)


def layers(folded: bool) -> list[Any]:
    """Return the projection layers of both attentions, in the order of `LAYERS`."""
    if folded:
        into = [spectral.FoldedInput(names, WIDTH, half, FLOAT, HEADS) for names, half in (("qkv", True), ("q", False))]
        out: Any = spectral.FoldedOutput(WIDTH, True, FLOAT, HEADS)
    else:
        settings = "re_fft2", denoiser.FORWARD_GRID
        into = [spectral.SpectralInput(names, WIDTH, *settings, names == "q", FLOAT, HEADS) for names in ("qkv", "q")]
        out = spectral.SpectralOutput(WIDTH, *settings, FLOAT, HEADS)
    return [into[0], out, into[1], out]


def layer_cases(layer: Any, rows: int) -> tuple[Call, Call]:
    """Return calls of one layer and of its matrix products alone, on `rows` tokens or frequencies."""
    x = noise(1, LENGTH, WIDTH)
    params = layer.init(jax.random.key(0), x)["params"]
    kernels = [kernel for name, kernel in params.items() if name != "filter"]
    inputs = [noise(rows, len(kernel)) for kernel in kernels]
    products = lambda inputs, kernels: [a @ b for a, b in zip(inputs, kernels, strict=True)]  # noqa: E731
    whole = compile_case(lambda params, x: layer.apply({"params": params}, x), params, x)
    return whole.call, compile_case(products, inputs, kernels).call


def shared_cases() -> dict[str, tuple[int, Call]]:
    """Return the parts common to all forms: how often each runs, and a call."""
    x, text = (noise(1, length, HEADS, WIDTH // HEADS) for length in (LENGTH, denoiser.TEXT[0]))
    angle = rotary_angles(rotary_positions("flat1d", denoiser.FORWARD_GRID, signed=True), WIDTH // HEADS)
    turn = lambda x: rotate(normalize(x), angle)  # noqa: E731
    flat, mlp = noise(1, LENGTH, WIDTH), Mlp(4 * WIDTH, FLOAT, LoraConfig())
    model, params = denoiser.network("re_fft2", True)
    encode = lambda params, cond: model.apply({"params": params}, cond, method="encode_cond")  # noqa: E731
    return {
        "self-attention": (BLOCKS, compile_case(lambda q, k, v: attend(turn(q), turn(k), v), x, x + 1, x + 2).call),
        "cross-attention": (BLOCKS, compile_case(lambda q, k, v: attend(normalize(q), k, v), x, text, text + 1).call),
        "MLP": (BLOCKS, compile_case(mlp.apply, mlp.init(jax.random.key(0), flat), flat).call),
        "logits": (1, compile_case(linear_logits, flat, noise(denoiser.SIZE["vocab_size"], WIDTH)).call),
        "text": (1, compile_case(encode, params, denoiser.condition(1)).call),
    }


def cases() -> dict[str, tuple[int, Call]]:
    """Return all parts and both forward passes: how often each runs, and a call."""
    found = shared_cases()
    for form, rows, context in (
        ("folded", LENGTH // 2 + 1, contextlib.nullcontext()),
        ("naive", LENGTH, denoiser.naive_transforms()),
    ):
        with context:
            found[form] = (1, denoiser.forward_case("re_fft2", form == "folded"))
            for name, layer in zip(LAYERS, layers(form == "folded"), strict=True):
                whole, products = layer_cases(layer, rows)
                found |= {f"{form} {name}": (BLOCKS, whole), f"{form} {name}, products": (BLOCKS, products)}
    return found


def table(timings: Mapping[str, float]) -> str:
    """Format a table of CPU milliseconds per forward pass."""
    lines = ["| part | folded, ms | products | naive, ms | products |", "|---|---|---|---|---|"]
    rest = dict.fromkeys(("folded", "naive"), 0.0)
    for name in LAYERS:
        cells = [timings[f"{form} {name}{part}"] for form in rest for part in ("", ", products")]
        lines.append(f"| {name} | {' | '.join(f'{1e3 * cell:.0f}' for cell in cells)} |")
        rest = {"folded": rest["folded"] + cells[0], "naive": rest["naive"] + cells[2]}
    for name in (name for name in timings if name.split()[0] not in rest):
        lines.append(f"| {name} | {1e3 * timings[name]:.0f} | | {1e3 * timings[name]:.0f} | |")
        rest = {form: spent + timings[name] for form, spent in rest.items()}
    left = {form: timings[form] - spent for form, spent in rest.items()}
    lines.append(f"| norms, gates, copies | {1e3 * left['folded']:.0f} | | {1e3 * left['naive']:.0f} | |")
    lines.append(f"| whole pass | {1e3 * timings['folded']:.0f} | | {1e3 * timings['naive']:.0f} | |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    process.keep_freed_memory()  # as every command does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls per case (default: %(default)s)")
    found = cases()
    measured: Mapping[str, Timing] = interleave(
        {name: call for name, (_, call) in found.items()}, rounds=parser.parse_args().rounds
    )
    print(table({name: times * measured[name].cpu for name, (times, _) in found.items()}))


if __name__ == "__main__":
    main()
