"""Interface of diffusion processes, and the functions they share.

A process defines how clean latents are corrupted, what a denoiser predicts, and how its prediction is scored.  Nothing here
depends on whether latents are continuous or tokens; `absorbing` is a process over tokens.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num, Shaped

from motionaura_jax.ops.prediction import Prediction

Latents = Num[Array, "b t h w *c"]
Mask = Shaped[Array, "b t h w"]
Shape = tuple[int, ...]
Predict = Callable[[Latents, Float[Array, " b"]], Prediction]
"""`(x_t, level) -> prediction`: a denoiser under a fixed condition."""


class Process(Protocol):
    """Corruption of clean latents over time, from 0 (clean) to 1 (pure noise), and the loss that learns to undo it.

    `mask` is False at positions that stay clean and are left out of the loss, for inpainting and infilling.  None generates
    every position.
    """

    @property
    def metric(self) -> str:
        """Return the name of `loss_by_level` among the metrics of an evaluation."""

    def sample_time(self, key: Key[Array, ""], sample: Int[Array, " b"], batch_size: int) -> Float[Array, " b"]:
        """Sample training times in (0, 1]; arguments as in `stratified`."""

    def level(self, time: Float[Array, " b"], shape: Shape, mask: Mask | None = None) -> Float[Array, " b"]:
        """Return the noise level at `time`, which conditions the denoiser; `shape` is the shape of one sample.

        Training, held-out losses and samplers tell the denoiser the same level for the same latents, with a `mask` too.
        """

    def corrupt(
        self, x0: Latents, time: Float[Array, " b"], keys: Key[Array, " b"], mask: Mask | None = None
    ) -> tuple[Latents, Latents]:
        """Sample x_t and return it with the target of the loss; sample i depends on keys[i] alone."""

    def loss(
        self, prediction: Prediction, target: Latents, x_t: Latents, time: Float[Array, " b"], mask: Mask | None = None
    ) -> Float[Array, " b"]:
        """Return one loss per sample, float32, normalized within the sample."""

    def loss_by_level(
        self, predict: Predict, x0: Latents, keys: Key[Array, " b"], *, levels: int, mask: Mask | None = None
    ) -> Float[Array, "levels b"]:
        """Return the held-out loss at `levels` rising noise levels; equal keys mean equal noise."""

    def prior(self, shape: Shape, keys: Key[Array, " b"] | None = None) -> Latents:
        """Sample latents of `shape`, batch included, at time 1; a prior without randomness needs no keys."""

    def statistics(self, x_t: Latents) -> Mapping[str, Float[Array, ""]]:
        """Return statistics of corrupted latents for the training log, such as the masked share."""


def stratified(key: Key[Array, ""], sample: Int[Array, " b"], batch_size: int) -> Float[Array, " b"]:
    """Sample one time per sample so that the global batch has exactly one in each of `batch_size` equal parts of (0, 1].

    u_i = (permutation[sample_i] + offset) / batch_size.  Permutation and offset depend on `key` alone, so the time of a
    sample depends neither on its microbatch nor on its device.  Each u_i by itself is uniform.
    Kingma et al. 2021 (VDM), appendix I.1.

    Args:
      key: shared by all samples of the step (not the per-sample keys).
      sample: rows within the global batch, in [0, batch_size).
      batch_size: global batch size, over all devices and microbatches.
    """
    order_key, offset_key = jax.random.split(key)
    stratum = jax.random.permutation(order_key, batch_size)[sample]
    offset = 1.0 - jax.random.uniform(offset_key)  # in (0, 1]
    return (stratum + offset) / jnp.float32(batch_size)


def training_loss_by_level(
    process: Process,
    predict: Predict,
    x0: Latents,
    keys: Key[Array, " b"],
    *,
    levels: int,
    mask: Mask | None = None,
) -> Float[Array, "levels b"]:
    """Return the training loss at the midpoints of `levels` equal parts of time, as `loss_by_level` of most processes does."""

    def one(row: Array) -> Array:
        time = jnp.full(len(x0), (row + 0.5) / levels)
        noise = jax.vmap(jax.random.fold_in, (0, None))(keys, row)
        x_t, target = process.corrupt(x0, time, noise, mask)
        return process.loss(predict(x_t, process.level(time, x0.shape[1:], mask)), target, x_t, time, mask)

    return jax.lax.map(one, jnp.arange(levels))
