"""Classifier-free guidance: conditional and unconditional logits in one call.  Ho & Salimans 2022; Muse section 2.7."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import PyTree
from motionaura_jax.diffusion.categorical import Scalar
from motionaura_jax.diffusion.samplers import Denoise

Model = Callable[[Int[Array, "n t h w"], Float[Array, " n"], PyTree], Float[Array, "n t h w k"]]
"""`(x_t, m, cond) -> logits`, where every leaf of `cond` leads with the batch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strength w of the guidance, logits = (1 + w) l_cond - w l_uncond.  A pytree: `scale` is a leaf.

    Attributes:
      scale: largest w, at least 0; diffusers' `guidance_scale` is 1 + w.
      ramp: "linear" raises w from 0 at the first step of the sampler to `scale` at the last one, which keeps samples
        diverse early and faithful late; "constant" has `scale` from the first step on.

    Raises:
      UserError: unknown `ramp`.
    """

    scale: Scalar = 3.0
    ramp: Literal["linear", "constant"] = field(metadata={"static": True}, default="linear")

    def __post_init__(self) -> None:
        if self.ramp not in ("linear", "constant"):
            raise UserError(f"guidance: ramp={self.ramp!r} is neither 'linear' nor 'constant'")

    def weight(self, progress: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns w where `progress` of the steps is done: 0 at the first one, 1 at the last one."""
        return self.scale * (progress if self.ramp == "linear" else jnp.ones_like(progress))


def guided(model: Model, cond: PyTree, uncond: PyTree = None, guidance: Guidance | None = None) -> Denoise:
    """Returns the `denoise` of a sampler: `model` under `cond`, guided away from `uncond`.

    Args:
      model: called once per step; with guidance on 2 b samples, the conditional ones first.
      cond: pytree of arrays that lead with the batch, e.g. `Cond`.
      uncond: same structure; the learned null condition, or that of a negative prompt, which replaces it.  Leaves may
        lead with 1 instead of the batch.
      guidance: None computes the conditional half alone (half the work of w = 0, and the same logits).
    """
    if guidance is None:
        return lambda x, m, _: model(x, m, cond)
    both = jax.tree.map(lambda c, u: jnp.concatenate([c, jnp.broadcast_to(u, c.shape)]), cond, uncond)

    def denoise(
        x: Int[Array, "b t h w"], m: Float[Array, " b"], progress: Float[Array, ""]
    ) -> Float[Array, "b t h w k"]:
        logits = model(jnp.concatenate([x, x]), jnp.concatenate([m, m]), both).astype(jnp.float32)
        conditional, unconditional = jnp.split(logits, 2)
        w = guidance.weight(progress)
        return (1.0 + w) * conditional - w * unconditional

    return denoise
