"""SiLU, x sigmoid(x), whose backward pass keeps only its input.

Differentiated as written, it keeps the input and the sigmoid.  At four times the width of a network (3D-MBConv, MotionAura,
appendix B.4) a CPU waits for that memory, and computing the sigmoid again is cheaper than reading it.
"""

import jax
from jaxtyping import Array, Float

from motionaura_jax.ops.dispatch import choose, on_cpu

IMPLEMENTATIONS = ("recompute", "plain")


def silu(x: Float[Array, "..."], *, impl: str = "auto") -> Float[Array, "..."]:
    """Return x sigmoid(x).

    Args:
      x: values, fp32 or bf16.
      impl: 'recompute', without forward-mode derivative; 'plain', the library's function; 'auto' is 'recompute' on CPU.

    Raises:
      UserError: unknown `impl`.
    """
    chosen = choose("silu impl", impl, IMPLEMENTATIONS, auto="recompute" if on_cpu() else "plain")
    return _recompute(x) if chosen == "recompute" else jax.nn.silu(x)


@jax.custom_vjp
def _recompute(x: Array) -> Array:
    return jax.nn.silu(x)


def _forward(x: Array) -> tuple[Array, Array]:
    return _recompute(x), x


def _backward(x: Array, grad: Array) -> tuple[Array]:
    sigmoid = jax.nn.sigmoid(x)
    return (grad * (sigmoid * (1 + x * (1 - sigmoid))),)


_recompute.defvjp(_forward, _backward)
