"""Classifier-free guidance: conditional and unconditional logits in one call.  Ho & Salimans 2022; Muse section 2.7."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.diffusion.categorical import Scalar
from motionaura_jax.diffusion.schedules import Cosine, Schedule
from motionaura_jax.errors import UserError
from motionaura_jax.types import PyTree

Model = Callable[[Int[Array, "n t h w"], Float[Array, " n"], PyTree], Float[Array, "n t h w k"]]
"""`(x_t, m, cond) -> logits`, where every leaf of `cond` leads with the batch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strength w of the guidance, logits = (1 + w) l_cond - w l_uncond.  A pytree: `scale` is a leaf.

    Attributes:
      scale: largest w, at least 0; diffusers' `guidance_scale` is 1 + w.
      ramp: "linear" raises w from 0 to `scale` along the steps of the sampler, which keeps samples diverse early and
        faithful late; "constant" does not.
      schedule: of the sampler; "linear" reads the progress from it.

    Raises:
      UserError: unknown `ramp`.
    """

    scale: Scalar = 3.0
    ramp: Literal["linear", "constant"] = field(metadata={"static": True}, default="linear")
    schedule: Schedule = field(metadata={"static": True}, default_factory=Cosine)

    def __post_init__(self) -> None:
        if self.ramp not in ("linear", "constant"):
            raise UserError(f"guidance: ramp={self.ramp!r} is neither 'linear' nor 'constant'")

    def weight(self, m: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns w at masked fraction m."""
        progress = 1.0 - self.schedule.inverse(m) if self.ramp == "linear" else jnp.ones_like(m)
        return self.scale * progress


def guided(
    model: Model, cond: PyTree, uncond: PyTree = None, guidance: Guidance | None = None
) -> Callable[[Int[Array, "b t h w"], Float[Array, " b"]], Float[Array, "b t h w k"]]:
    """Returns the `denoise` of a sampler: `model` under `cond`, guided away from `uncond`.

    Args:
      model: called once per step; with guidance on 2 b samples, the conditional ones first.
      cond: pytree of arrays that lead with the batch, e.g. `Cond`.
      uncond: same structure; the learned null condition, or that of a negative prompt, which replaces it.  Leaves may
        lead with 1 instead of the batch.
      guidance: None computes the conditional half alone (half the work of w = 0, and the same logits).
    """
    if guidance is None:
        return lambda x, m: model(x, m, cond)
    both = jax.tree.map(lambda c, u: jnp.concatenate([c, jnp.broadcast_to(u, c.shape)]), cond, uncond)

    def denoise(x: Int[Array, "b t h w"], m: Float[Array, " b"]) -> Float[Array, "b t h w k"]:
        logits = model(jnp.concatenate([x, x]), jnp.concatenate([m, m]), both).astype(jnp.float32)
        conditional, unconditional = jnp.split(logits, 2)
        w = guidance.weight(m)[:, None, None, None, None]
        return (1.0 + w) * conditional - w * unconditional

    return denoise
