"""Low-rank adapters.  MotionAura section 4, "sketch-guided video inpainting", and D.5; Hu et al. 2021.

A frozen linear map L becomes L'(x) = L(x) + W_up GELU(W_down x).  W_up starts at zero, so training starts from the frozen
network; W_down is sampled with the mean and standard deviation of the frozen kernel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from motionaura_jax.models.layers.config import LoraConfig


def low_rank(
    module: nn.Module,
    name: str,
    config: LoraConfig,
    x: Float[Array, "b s i"],
    kernel: Float[Array, "w o"],
) -> Float[Array, "b s o"]:
    """Return W_up GELU(W_down x), with the parameters NAMElora_down and NAMElora_up of `module`.

    Args:
      kernel: the frozen kernel, with the same output width as the adapter.
    """
    down = module.param(f"{name}lora_down", _like(kernel), (x.shape[-1], config.rank))
    up = module.param(f"{name}lora_up", nn.initializers.zeros, (config.rank, kernel.shape[-1]))
    return up_project(config, x @ down.astype(x.dtype), up)


def up_project(config: LoraConfig, products: Float[Array, "b s r"], up: Float[Array, "r o"]) -> Float[Array, "b s o"]:
    """Return W_up GELU(products) in the precision of the products W_down x."""
    return activate(config, products) @ up.astype(products.dtype)


def activate(config: LoraConfig, products: Float[Array, "b s r"]) -> Float[Array, "b s r"]:
    """Apply the function between the two maps."""
    return nn.gelu(products) if config.activation == "gelu" else products


def _like(kernel: Array) -> nn.initializers.Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return kernel.mean() + kernel.std() * jax.random.normal(key, shape, dtype)

    return init
