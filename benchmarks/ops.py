"""Benchmark of our numeric kernels against the library calls they replace, as a markdown table.

    python -m benchmarks.ops [--only depthwise,conv3d,transpose,nearest,attention] [--rounds 7]

Convolutions and attention are timed forward and backward (all gradients), the nearest-code search forward only.  The bar
applies to the cpu ratio.  "difference" is the maximum deviation of ours from the library's result over the maximum value;
for codes, the share that differs.  Compile seconds are ours; temporary memory is ours / library.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarks.timing import Compiled, compile_case, interleave, ratio
from motionaura_jax.ops.attention import attend
from motionaura_jax.ops.conv3d import conv3d
from motionaura_jax.ops.depthwise import depthwise_conv3d
from motionaura_jax.ops.nearest import nearest_code
from motionaura_jax.ops.upsample import conv_transpose_1x4x4

COLUMNS = (
    "case",
    "ours, wall ms",
    "library, wall ms",
    "wall ratio",
    "cpu ratio",
    "bar",
    "difference",
    "compile, cpu s",
    "temp MiB",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Two functions of the same arguments, and the minimum speedup in CPU seconds that ours should reach."""

    name: str
    ours: Callable
    library: Callable
    args: tuple[jax.Array, ...]
    bar: float


def forward_backward(function: Callable) -> Callable:
    """Return a function (arguments, output gradient) -> output and the gradients of all arguments."""

    def run(*args):
        *inputs, grad = args
        output, pullback = jax.vjp(function, *inputs)
        return output, *pullback(grad)

    return run


def convolution(
    name: str, function: Callable, shape: tuple[int, ...], kernel: tuple[int, ...], bar: float, dtype=jnp.float32
) -> Case:
    """Build a convolution case with random inputs of `dtype` and a float32 kernel."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape, dtype)
    weights = jax.random.normal(keys[1], kernel)
    library = functools.partial(function, impl="lax")
    grad = jax.random.normal(keys[2], jax.eval_shape(library, x, weights).shape, dtype)
    size = "x".join(map(str, shape))
    return Case(
        name=f"{name} {size}{'' if dtype == jnp.float32 else ' bf16'}",
        ours=forward_backward(function),
        library=forward_backward(library),
        args=(x, weights, grad),
        bar=bar,
    )


def depthwise_cases() -> Iterator[Case]:
    """Yield depthwise 3x3x3 cases at the sizes of the tokenizer's levels."""
    window = (3, 3, 3)
    for shape in ((1, 8, 32, 32, 128), (8, 8, 32, 32, 128), (2, 8, 16, 16, 256)):
        yield convolution("depthwise", depthwise_conv3d, shape, (*window, shape[-1]), 20)
    yield convolution("depthwise", depthwise_conv3d, (1, 8, 32, 32, 128), (*window, 128), 20, jnp.bfloat16)


def conv3d_cases() -> Iterator[Case]:
    """Yield the dense convolutions of residual, Inception and downsampling layers; the bar applies up to 128 channels."""
    for channels, side, bar in ((32, 32, 2), (64, 32, 2), (128, 32, 2), (256, 16, 1)):
        yield convolution("conv 3x3x3", conv3d, (1, 8, side, side, channels), (3, 3, 3, channels, channels), bar)
    for window, bar in (((3, 3, 1), 2), ((1, 3, 3), 2), ((1, 1, 1), 1)):
        name = "conv " + "x".join(map(str, window))
        yield convolution(name, conv3d, (1, 8, 32, 32, 64), (*window, 64, 64), bar)
    down = functools.partial(conv3d, strides=(2, 2, 2))
    yield convolution("conv 3x3x3 stride 2", down, (1, 8, 32, 32, 64), (3, 3, 3, 64, 128), 2)
    yield convolution("conv 3x3x3", conv3d, (1, 8, 32, 32, 64), (3, 3, 3, 64, 64), 2, jnp.bfloat16)


def transpose_cases() -> Iterator[Case]:
    """Yield the decoder's last layer."""
    yield convolution("transposed 1x4x4", conv_transpose_1x4x4, (4, 8, 32, 32, 16), (1, 4, 4, 16, 3), 10)


def nearest_cases() -> Iterator[Case]:
    """Yield searches of 16384 vectors among 8192 codes."""
    for dim, bar in ((32, 3), (256, 2)):
        keys = jax.random.split(jax.random.key(dim))
        yield Case(
            name=f"nearest 16384 x 8192, dim {dim}",
            ours=nearest_code,
            library=functools.partial(nearest_code, impl="argmin"),
            args=(jax.random.normal(keys[0], (16384, dim)), jax.random.normal(keys[1], (8192, dim))),
            bar=bar,
        )


def attention_cases() -> Iterator[Case]:
    """Yield attention with heads of 64 channels: the demo's batch, and longer clips at batch 1."""
    for batch, tokens, heads in ((16, 256, 4), (1, 1024, 8), (1, 2560, 8)):
        keys = jax.random.split(jax.random.key(tokens), 4)
        yield Case(
            name=f"attention {batch}x{tokens}x{heads}x64",
            ours=forward_backward(attend),
            library=forward_backward(jax.nn.dot_product_attention),
            args=tuple(jax.random.normal(key, (batch, tokens, heads, 64)) for key in keys),
            bar=1,
        )


CASES = {
    "depthwise": depthwise_cases,
    "conv3d": conv3d_cases,
    "transpose": transpose_cases,
    "nearest": nearest_cases,
    "attention": attention_cases,
}


def largest_difference(ours: object, library: object) -> float:
    """Return the largest difference between two results: relative to the maximum value, or the share of integers that differ."""

    def one(a: jax.Array, b: jax.Array) -> float:
        if jnp.issubdtype(a.dtype, jnp.integer):
            return float((a != b).mean())
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return float(jnp.abs(a - b).max() / jnp.abs(b).max())

    return max(one(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(library), strict=True))


def row(case: Case, rounds: int) -> str:
    """Time one case and return its row of the table."""
    compiled: dict[str, Compiled] = {
        "ours": compile_case(case.ours, *case.args),
        "library": compile_case(case.library, *case.args),
    }
    timings = interleave({name: each.call for name, each in compiled.items()}, rounds=rounds)
    faster = ratio(timings["library"], timings["ours"])
    temp = " / ".join(f"{each.temp_bytes / 2**20:.0f}" for each in compiled.values())
    difference = largest_difference(compiled["ours"].call(), compiled["library"].call())
    return (
        f"| {case.name} | {1e3 * timings['ours'].wall:.1f} | {1e3 * timings['library'].wall:.1f} | {faster.wall:.1f} "
        f"| {faster.cpu:.1f} | {case.bar:g} | {difference:.1e} | {compiled['ours'].compile_cpu:.2f} | {temp} |"
    )


def main() -> None:
    """Print the table, each row once it has been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="comma-separated groups (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls per case (default: %(default)s)")
    options = parser.parse_args()
    groups = options.only.split(",")
    if unknown := set(groups) - set(CASES):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    print(f"{jax.default_backend()}, jax {jax.__version__}; times are medians of {options.rounds} rounds\n\n{HEADER}")
    for group in groups:
        for case in CASES[group]():
            print(row(case, options.rounds), flush=True)


if __name__ == "__main__":
    main()
