"""Diffusion as a trainable system: a process and a denoiser over latents of a frozen autoencoder, under conditions.

A system of its own says which process, denoiser, conditioners and sampler it has, and, if not all of a clip is to be
generated, which part (`example`, `start`).
"""

import abc
import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.conditioning.base import repeat
from motionaura_jax.core.recipe import ParamGroup
from motionaura_jax.core.trees import merge, partition
from motionaura_jax.core.types import Cond, PyTree
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.diffusion import sampling
from motionaura_jax.diffusion.process import Latents, Mask, Predict, Process
from motionaura_jax.models.autoencoders.geometry import Size
from motionaura_jax.models.denoisers.base import Denoiser
from motionaura_jax.parallel import constraints
from motionaura_jax.systems.base import Batch, Evaluation
from motionaura_jax.systems.diffusion_recipe import SampleConfig
from motionaura_jax.systems.latent import LatentSystem

_TIMES = 2**32 - 2  # the key of the times, which belong to the step; rows of a batch have smaller numbers
_EXAMPLE = 2**32 - 2  # the key of a sample for `example` and `start`
_KNOWN = 2**32 - 3  # the key of a sample for `trained_positions`


class DiffusionSystem(LatentSystem):
    """Base class of diffusion systems; see `systems.base.System`.

    `params` holds `denoiser` and the conditioners that train, by name.

    Attributes:
      control: condition that an evaluation exchanges between clips, to see whether the model reads it; empty for none.
    """

    control: ClassVar[str] = ""
    process: Process

    def __init__(self, recipe: Any, **parts: Any):
        """Build the parts of the recipe; see `LatentSystem`."""
        super().__init__(recipe, **parts)
        self.process = self.make_process()
        self.denoiser = self.make_denoiser()
        self._by_level = jax.jit(self._loss_by_level)
        self._preview = jax.jit(self._sample_and_decode, static_argnames="size")

    # The parts of a system.

    @abc.abstractmethod
    def make_process(self) -> Process:
        """Build the process that the recipe describes."""

    @abc.abstractmethod
    def make_denoiser(self) -> Denoiser:
        """Build the network that the recipe describes."""

    @abc.abstractmethod
    def make_sampler(self, settings: Any) -> sampling.Sampler:
        """Build the sampler that the settings of sampling name."""

    @property
    def dropout(self) -> Mapping[str, float]:
        """Return the share of training samples without a condition, by name; guidance leads away from these conditions."""
        return {}

    def example(self, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]) -> tuple[Latents, Mask | None, PyTree]:
        """Return clean latents, where they are to be generated (None: everywhere), and raw conditions by name.

        Args:
          keys: one per sample, for systems that choose at random what to generate.
        """
        return self.latents(frozen, batch), None, {name: batch[name] for name in self.conditioners}

    def trained_positions(self, mask: Mask | None, shape: Sequence[int], keys: Key[Array, " b"]) -> Mask | None:
        """Return where training corrupts latents of `shape`, given where `example` generates; by default the same.

        Evaluations keep the mask of `example`, so that their losses compare whatever a run trains on.
        """
        return mask

    def start(
        self, frozen: PyTree, rows: Batch, size: Size, keys: Key[Array, " b"]
    ) -> tuple[Latents, Mask | None, PyTree]:
        """Return latents from which an evaluation samples, positions to keep (None: no others), and raw conditions.

        Systems that generate a part of a clip read the rest from `rows`.
        """
        shape = (len(keys), *self.latent_shape(size))
        return self.process.prior(shape, keys), None, {name: rows[name] for name in self.conditioners}

    def previews(self, batch: Batch) -> tuple[Batch, list[str], bool]:
        """Choose what an evaluation samples from the first held-out batch.

        Returns:
          Rows with all that `start` reads, a name for each, and whether they are the first clips of the batch, which then
          stand left of their samples.
        """
        count = min(self.recipe.evaluate.pictures, len(batch["sample"]))
        rows = jax.tree.map(lambda leaf: leaf[:count], dict(batch))
        return rows, [str(index) for index in range(count)], True

    # Weights.

    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Return fresh weights; `extra` is empty."""
        condition_key, denoiser_key = jax.random.split(key)
        return {**self.conditioners.init(condition_key), "denoiser": self._initialized({}, denoiser_key)}, {}

    def param_groups(self) -> tuple[ParamGroup, ...]:
        """Freeze everything but the adapters, if the model has any."""
        added = self.recipe.added
        return (ParamGroup(pattern=f"^(?!.*{added})", scale=0.0),) if added else ()

    def extended(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        """Add adapters, which leave the outputs as they are at the start."""

        def fresh(denoiser: PyTree, key: Key[Array, ""]) -> PyTree:
            return partition({"denoiser": self._initialized(denoiser, key)}, self.recipe.added)[0]

        # The frozen weights stay where they are: nothing that this returns depends on them.
        return merge(params, jax.jit(fresh)(params["denoiser"], key))

    def check_mesh(self) -> None:
        """Check that the mesh can share clips of every bucket.

        Raises:
          UserError: it cannot; see `Denoiser.check_mesh`.
        """
        sizes = {"tensor": self.recipe.mesh.tensor, "sequence": self.recipe.mesh.sequence}
        for bucket in self.recipe.data.all_buckets():
            clip = (bucket.num_frames, bucket.height, bucket.width)
            self.denoiser.check_mesh(sizes, self.opened_autoencoder.geometry.latent_shape(*clip))

    # Training and evaluation.

    def loss(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[PyTree, Mapping[str, Array]]]:
        """Return the mean over clips of the loss of the process; times are stratified over the step."""
        keys = _keys(key, batch["sample"])
        x0, mask, raw = self.example(frozen, batch, _folded(keys, _EXAMPLE))
        mask = self.trained_positions(mask, x0.shape, _folded(keys, _KNOWN))
        corrupt_keys, drop_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        time = self.process.sample_time(jax.random.fold_in(key, _TIMES), batch["sample"], self._global_batch(batch))
        x_t, target = self.process.corrupt(x0, time, corrupt_keys, mask)
        dropped = self._dropped(drop_keys)
        cond = self.conditioners(params, frozen, self.conditioners.drop(raw, dropped))
        prediction = self._predictor(params, cond)(x_t, self.process.level(time, x0.shape[1:], mask))
        losses = self.process.loss(prediction, target, x_t, time, mask)
        shares = {
            f"dropped_{name}" if index else "dropped": w.mean() for index, (name, w) in enumerate(dropped.items())
        }
        return losses.mean(), ({}, {**self.process.statistics(x_t), **shares})

    def evaluate(self, params: PyTree, extra: PyTree, frozen: PyTree, batches: Iterable[Batch]) -> Evaluation:
        """Measure the loss on held-out clips at fixed noise, overall and by noise level, and sample at fixed seeds.

        With the metric of the process as M: `M_25` is the loss at up to 25 % of the noise, and so on; `M_shuffled` is the
        whole with the `control` condition of other clips, which is higher as soon as the model reads it.  A single clip
        has no other.
        """
        batches = [dict(batch) for batch in batches]
        others, clips = self._exchanged(batches)
        rows = [
            self._by_level(params, frozen, batch, other, index)
            for index, (batch, other) in enumerate(zip(batches, others, strict=True))
        ]
        true, shuffled = (np.concatenate(part, axis=1) for part in zip(*jax.device_get(rows), strict=True))
        name, by_level = self.process.metric, true.mean(axis=1)
        metrics = {name: float(true.mean())}
        metrics |= {f"{name}_shuffled": float(shuffled.mean())} if self.control and clips > 1 else {}
        metrics |= {
            f"{name}_{round(100 * (index + 1) / len(by_level))}": float(value) for index, value in enumerate(by_level)
        }
        videos = self._videos(params, frozen, batches[0])
        return Evaluation(metrics=metrics, videos=videos, fps=float(batches[0]["fps"][0]))

    # Sampling.

    def for_inference(self, params: PyTree) -> PyTree:
        """Return the parameters that `sample` takes."""
        return {**params, "denoiser": self.denoiser.for_inference(params["denoiser"])}

    def sample(
        self,
        params: PyTree,
        raw: PyTree,
        negative: PyTree,
        keys: Key[Array, " b"],
        x_init: Latents,
        sampler: Any,
        guidance: sampling.Weights | None,
        *,
        steps: int,
        known: Bool[Array, "b t h w"] | None = None,
    ) -> sampling.Samples:
        """Sample latents; jit it with `steps` static, then new conditions do not recompile.

        Args:
          params: from `for_inference`.
          raw, negative: conditions by name, and those to guide away from, as `Conditioners.read` returns them.
          keys: one per sample, on which alone the sample depends.
          x_init: latents that hold the prior at the positions to be sampled.
          known: positions of `x_init` that every step restores; processes over tokens keep them without it.
        """
        raw, negative, keys, x_init = constraints.batch((raw, negative, keys, x_init))
        if known is not None:
            sampler = sampling.Clamped(sampler=sampler, clean=x_init, known=known)
        return sampling.sample(self.denoise(params, raw, negative, guidance), sampler, keys, x_init, steps=steps)

    def denoise(
        self, params: PyTree, raw: PyTree, negative: PyTree, guidance: sampling.Weights | None
    ) -> sampling.Denoise:
        """Return the guided denoiser of a sampler, which reads conditions once for all steps; arguments as in `sample`."""
        network = self.denoiser.inference
        weights = {"params": constraints.gathered(params["denoiser"])}

        def under(conditions: PyTree) -> sampling.Model:
            cond = self.conditioners(params, {}, conditions)
            memory = network.apply(weights, cond, method="encode_cond")

            def model(x_t: Latents, level: Float[Array, " n"]) -> Array:
                x_t, level, scalars = constraints.batch((x_t, level, cond.scalars))
                prediction: Any = network.apply(weights, x_t, level, dataclasses.replace(cond, scalars=scalars), memory)
                return constraints.tokens(prediction.dense())

            return model

        if guidance is None:
            return sampling.guided(under(raw))
        alone = None if guidance.active(jnp.zeros(())) is True else under(raw)
        return sampling.guided(under(sampling.stacked(raw, negative)), guidance, alone)

    def without_conditions(self, frozen: PyTree, raw: PyTree, count: int) -> PyTree:
        """Return conditions to guide away from: null in place of those that training drops, the others unchanged."""
        null = {
            name: repeat(self.conditioners[name].read(frozen.get(name), self.conditioners[name].null()), count)
            for name in self.dropout
        }
        return {**raw, **null}

    # Inside.

    def _initialized(self, denoiser: PyTree, key: Key[Array, ""]) -> PyTree:
        """Return the parameters of the denoiser, with fresh ones in place of those that are missing."""
        _, filled = self.denoiser.apply(
            {"params": denoiser}, *self.denoiser.example(), rngs={"params": key}, mutable="params"
        )
        return filled["params"]

    def _global_batch(self, batch: Batch) -> int:
        """Return the clips in a whole step of this shape; `batch` may be a part of it."""
        if "video" not in batch:  # a latent cache holds clips of one shape, and a shape has one batch size
            return self.recipe.data.all_buckets()[0].batch_size
        shape: Sequence[int] = batch["video"].shape
        sizes = (
            b.batch_size for b in self.recipe.data.all_buckets() if (b.num_frames, b.height, b.width) == shape[1:4]
        )
        return max(sizes, default=shape[0])

    def _dropped(self, keys: Key[Array, " b"]) -> dict[str, Bool[Array, " b"]]:
        return {
            name: jax.vmap(functools.partial(jax.random.bernoulli, p=share))(self.conditioners.key_of(name, keys))
            for name, share in self.dropout.items()
        }

    def _predictor(self, params: PyTree, cond: Cond) -> Predict:
        """Return the denoiser under `cond`, in the form that training runs and gradients pass."""
        weights = {"params": constraints.gathered(self.denoiser.for_training(params["denoiser"]))}
        return lambda x_t, level: self.denoiser.training.apply(weights, x_t, level, cond)  # type: ignore[return-value]

    def _loss_by_level(
        self, params: PyTree, frozen: PyTree, batch: Batch, other: PyTree, index: Array
    ) -> tuple[Array, Array]:
        """Return levels by clips, with the conditions of the batch and with the `other` control condition."""
        batch, other = constraints.batch((dict(batch), other))
        keys = _keys(jax.random.fold_in(jax.random.key(self.recipe.seed), index), batch["sample"])
        x0, mask, raw = self.example(frozen, batch, _folded(keys, _EXAMPLE))

        def measure(raw: PyTree) -> Array:
            predict = self._predictor(params, self.conditioners(params, frozen, raw))
            return self.process.loss_by_level(predict, x0, keys, levels=self.recipe.sample.levels, mask=mask)

        true = measure(raw)
        return constraints.whole((true, measure({**raw, self.control: other}) if self.control else true))

    def _exchanged(self, batches: Sequence[Batch]) -> tuple[list[PyTree], int]:
        """Return the control condition of each batch, each clip with that of the clip before, and the number of clips."""
        sizes = [len(batch["sample"]) for batch in batches]
        if not self.control:
            return [()] * len(batches), sum(sizes)
        parts = [batch[self.control] for batch in batches]
        shifted = jax.tree.map(lambda *leaves: np.roll(np.concatenate(leaves), 1, axis=0), *parts)
        ends = np.cumsum(sizes).tolist()
        return [
            jax.tree.map(operator.itemgetter(slice(start, end)), shifted)
            for start, end in itertools.pairwise([0, *ends])
        ], sum(sizes)

    def _videos(self, params: PyTree, frozen: PyTree, batch: Batch) -> dict[str, np.ndarray]:
        rows, names, from_batch = self.previews(batch)
        if not names:
            return {}
        size = tuple(batch["video"].shape[1:4])
        sampled = to_uint8(np.asarray(self._preview(params, frozen, rows, size=size)))
        if from_batch:
            sampled = np.concatenate([to_uint8(np.asarray(batch["video"][: len(names)])), sampled], axis=3)
        return {f"{index}_{name}": video for index, (name, video) in enumerate(zip(names, sampled, strict=True))}

    def _sample_and_decode(self, params: PyTree, frozen: PyTree, rows: Batch, *, size: Size) -> Array:
        """Return videos of `size`, from the same keys at every evaluation."""
        rows = constraints.batch(dict(rows))
        settings: SampleConfig = self.recipe.sample
        autoencoder = frozen[self.recipe.autoencoder_role]
        count = len(rows["sample"])
        keys = _keys(jax.random.key(self.recipe.seed), jnp.arange(count))
        x_init, known, raw = self.start(frozen, rows, size, _folded(keys, _EXAMPLE))
        raw = self.conditioners.read(frozen, raw)
        samples = self.sample(
            self.for_inference(params),
            raw,
            self.without_conditions(frozen, raw, count),
            keys,
            x_init,
            self.make_sampler(settings),
            settings.guidance,
            steps=settings.num_inference_steps,
            known=known,
        )
        return constraints.whole(autoencoder.decode(self.latent(samples.x, size)))


def _keys(key: Key[Array, ""], sample: Int[Array, " b"]) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, sample)


def _folded(keys: Key[Array, " b"], data: int) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
