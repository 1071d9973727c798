"""The 3D-MBQ-VAE tokenizer as a trainable system.  MotionAura section 3.1, Eq. 1 as corrected in docs/fidelity.md."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Checked, NonNegative, Share
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.metrics.frame import psnr, ssim
from motionaura_jax.models.autoencoders import codebook, quantizers
from motionaura_jax.models.autoencoders.config import DiscriminatorConfig, MaskConfig, MBQVAEConfig
from motionaura_jax.models.autoencoders.discriminators import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from motionaura_jax.models.autoencoders.masking import mask_strength, mask_video
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE, init_tokenizer, masked_frame_index_loss
from motionaura_jax.models.autoencoders.padding import crop, pad_to_multiple
from motionaura_jax.models.features import squeezenet
from motionaura_jax.models.features.perceptual import FeatureNetwork
from motionaura_jax.parallel import constraints
from motionaura_jax.parallel.mesh import batch_shards
from motionaura_jax.systems.base import Batch, Evaluation, System

PREPARATION_VECTORS = 65536  # encoder outputs that the k-means start looks at


@dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """Weights of Eq. 1 and of the optional terms.

    Attributes:
      l1: of the mean absolute error; 0 is the paper.
      mfi: of the masked-frame-index loss; 1 is the paper.
      perceptual: of the distance between features of a frozen network; 0 is the paper.
      perceptual_weights: file of that network: SqueezeNet, unless the system is given another one.
      adversarial: of the generator term; 0 is the paper.
      adversarial_start: fraction of training after which the discriminator takes part.
      r1: of the gradient penalty on real clips.
    """

    l1: NonNegative = 0.2
    mfi: NonNegative = 0.05
    perceptual: NonNegative = 0.0
    perceptual_weights: str = ""
    adversarial: NonNegative = 0.0
    adversarial_start: Share = 0.2
    r1: NonNegative = 10.0


@dataclass(frozen=True, kw_only=True)
class MBQVAERecipe(Recipe):
    """A tokenizer training run."""

    model: MBQVAEConfig = field(default_factory=MBQVAEConfig)
    masking: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mesh.sequence > 1:
            raise UserError(
                f"config.mesh.sequence={self.mesh.sequence}: a tokenizer has no sequence of tokens to split; give these "
                f"devices to --config.mesh.fsdp or --config.mesh.data"
            )
        if self.loss.perceptual and not self.loss.perceptual_weights:
            raise UserError(
                "config.loss.perceptual_weights: name the file (SqueezeNet: .npz) that the perceptual loss reads"
            )


class MBQVAESystem(System):
    """Pure functions around one recipe; see `systems.base.System`.

    `params` holds `tokenizer` and, where the adversarial weight is not zero, `discriminator`.  `perceptual` is the network
    of the perceptual loss.
    """

    Recipe = MBQVAERecipe
    fields = ("video",)

    def __init__(self, recipe: MBQVAERecipe, *, perceptual: FeatureNetwork = squeezenet.NETWORK):
        super().__init__(recipe)
        self._perceptual = perceptual
        self._network = MBQVAE(recipe.model)
        self._discriminator = Discriminator(recipe.discriminator)
        self._reconstruct = jax.jit(self._reconstruct_both_ways)

    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes of the first bucket's batch."""
        bucket = self.recipe.data.all_buckets()[0]
        video = (bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, 3)
        return {
            "video": jax.ShapeDtypeStruct(video, jnp.float32),
            "sample": jax.ShapeDtypeStruct((bucket.batch_size,), jnp.int32),
        }

    def to_arrays(self, batch: Mapping[str, Any]) -> Batch:
        """Keeps what the tokenizer reads: `video` in [-1, 1] and `sample`."""
        return {"video": batch["video"], "sample": batch["sample"]}

    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Fresh weights; the discriminator only where it is used."""
        tokenizer_key, discriminator_key = jax.random.split(key)
        tokenizer, extra = init_tokenizer(self.recipe.model, tokenizer_key)
        params = {"tokenizer": tokenizer}
        if self.recipe.loss.adversarial:
            video = jnp.zeros((1, *self.batch_spec()["video"].shape[1:]))
            params["discriminator"] = self._discriminator.init(discriminator_key, video)["params"]
        return params, extra

    def frozen(self) -> PyTree:
        """The feature network of the perceptual loss, where it has a weight."""
        loss = self.recipe.loss
        return {"perceptual": self._perceptual.load(loss.perceptual_weights)} if loss.perceptual else {}

    def prepare(self, params: PyTree, extra: PyTree, batches: Iterable[Batch]) -> tuple[PyTree, PyTree]:
        """Starts the codebook from k-means over encoder outputs, where there is one and it is needed at once."""
        model = self.recipe.model
        if model.quantizer not in ("vq", "vq_ema") or model.first_quantized_step(self.recipe.train.steps):
            return params, extra
        encode = jax.jit(self._encode_in_turn)
        vectors: list[Array] = []
        for batch in batches:
            vectors.append(encode(params["tokenizer"], batch["video"]))
            if sum(len(v) for v in vectors) >= PREPARATION_VECTORS:
                break
        key = jax.random.key(self.recipe.seed)
        codes = jax.jit(functools.partial(codebook.kmeans, model))(key, jnp.concatenate(vectors)[:PREPARATION_VECTORS])
        quantizer, extra = codebook.set_codebook(model, params["tokenizer"]["quantizer"], extra, codes)
        return {**params, "tokenizer": {**params["tokenizer"], "quantizer": quantizer}}, extra

    def loss(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[PyTree, Mapping[str, Array]]]:
        """L = |V - V'|^2 + l1 |V - V'| + L_codebook + beta L_commit + mfi L_MFI + optional terms; target is unmasked V."""
        weights, model, tokenizer, video = self.recipe.loss, self.recipe.model, params["tokenizer"], batch["video"]
        progress = step / self.recipe.train.steps
        masked, index = self._mask(tokenizer, batch, key, progress)
        z = self._encode(tokenizer, masked)
        code = quantizers.quantize(model, tokenizer["quantizer"], extra, z)
        quantized = step >= model.first_quantized_step(self.recipe.train.steps)
        values = jnp.where(quantized, code.values, quantizers.continuous_values(model, z))
        output = self._decode(tokenizer, values, video.shape)
        terms = {"mse": jnp.square(video - output).mean(), "l1": jnp.abs(video - output).mean(), **code.losses}
        total = terms["mse"] + weights.l1 * terms["l1"]
        total += quantized * quantizers.auxiliary_loss(model, code.losses, progress)
        if weights.mfi:
            logits = self._apply(tokenizer, "mfi_logits", z, video.shape[1])
            terms["mfi"] = masked_frame_index_loss(logits, index).mean()
            total += weights.mfi * terms["mfi"]
        if weights.perceptual:
            terms["perceptual"] = self._perceptual.distance(frozen["perceptual"], video, output).mean()
            total += weights.perceptual * terms["perceptual"]
        if weights.adversarial:
            adversarial, terms_adversarial = self._adversarial(params["discriminator"], video, output, progress)
            total, terms = total + adversarial, {**terms, **terms_adversarial}
        return total, (code.stats, terms)

    def advance(
        self, params: PyTree, extra: PyTree, stats: PyTree, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, Mapping[str, Array]]:
        """Averages, usage counters and restarts of the codebook."""
        tokenizer = params["tokenizer"]
        quantizer, extra, metrics = codebook.advance(
            self.recipe.model, tokenizer["quantizer"], extra, stats, key, step, self.recipe.train.steps
        )
        return {**params, "tokenizer": {**tokenizer, "quantizer": quantizer}}, extra, metrics

    def evaluate(self, params: PyTree, extra: PyTree, frozen: PyTree, batches: Iterable[Batch]) -> Evaluation:
        """PSNR (dB) and SSIM with quantization, PSNR without it, and the share of codes used over all batches.

        Measured on the 8-bit frames that a file would hold; SSIM is NaN where frames are smaller than its window.
        """
        model = self.recipe.model
        rows: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_continuous": []}
        videos: dict[str, np.ndarray] = {}
        used: set[int] = set()
        for batch in batches:
            output, continuous, tokens = jax.device_get(self._reconstruct(params["tokenizer"], extra, batch["video"]))
            used.update(np.unique(tokens).tolist() if tokens is not None else ())
            clips = (to_uint8(np.asarray(video)) for video in (batch["video"], output, continuous))
            for real, fake, smooth in zip(*clips, strict=True):
                rows["psnr"].append(psnr(real, fake))
                rows["ssim"].append(ssim(real, fake))
                rows["psnr_continuous"].append(psnr(real, smooth))
                if len(videos) < self.recipe.evaluate.pictures:
                    videos[f"clip_{len(videos)}"] = np.concatenate([real, fake], axis=2)
        metrics = {name: float(np.mean(values)) for name, values in rows.items()}
        if model.vocab_size:
            metrics["codes_used"] = len(used) / model.vocab_size
        return Evaluation(metrics=metrics, videos=videos, fps=self.recipe.data.rates[0])

    def _apply(self, tokenizer: PyTree, method: str, *arguments: Any) -> Any:
        return self._network.apply({"params": constraints.gathered(tokenizer["network"])}, *arguments, method=method)

    def _encode(self, tokenizer: PyTree, video: Array) -> Array:
        padded, _ = pad_to_multiple(self.recipe.model, video)
        return self._apply(tokenizer, "encode", padded)

    def _encode_in_turn(self, tokenizer: PyTree, video: Array) -> Float[Array, "n d"]:
        """All vectors of some clips, of which each device encodes one at a time.

        That takes less memory than a training step, and the same numbers come out on any number of devices.
        """
        shards = batch_shards(jax.sharding.get_abstract_mesh())
        filled = jnp.pad(video, ((0, -len(video) % shards), *[(0, 0)] * 4))
        turns = constraints.microbatches(filled, len(filled) // shards)
        z = jax.lax.map(functools.partial(self._encode, tokenizer), turns).swapaxes(0, 1)
        return constraints.whole(z.reshape(-1, *z.shape[2:])[: len(video)].reshape(-1, z.shape[-1]))

    def _decode(self, tokenizer: PyTree, values: Array, shape: tuple[int, ...]) -> Array:
        output = self._apply(tokenizer, "decode", values)
        return crop(output, (shape[1], shape[2], shape[3]))

    def _reconstruct_both_ways(
        self, tokenizer: PyTree, extra: PyTree, video: Array
    ) -> tuple[Array, Array, Array | None]:
        """Reconstructions with and without quantization, and the codes."""
        video = constraints.batch(video)
        z = self._encode(tokenizer, video)
        code = quantizers.quantize(self.recipe.model, tokenizer["quantizer"], extra, z)
        # Both decodes as one batch: the decoder is compiled once.
        both = self._decode(
            tokenizer, jnp.concatenate([code.values, quantizers.continuous_values(self.recipe.model, z)]), video.shape
        )
        output, continuous = jnp.split(jnp.clip(both, -1.0, 1.0), 2)
        return constraints.whole((output, continuous, code.codes))

    def _mask(self, tokenizer: PyTree, batch: Batch, key: Array, progress: Array) -> tuple[Array, Array]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["sample"])
        masking = self.recipe.masking
        fill = tokenizer["mask_fill"] if masking.learned_fill else jnp.zeros(3)
        return mask_video(masking, keys, batch["video"], fill, mask_strength(masking, progress))

    def _adversarial(
        self, params: PyTree, real: Array, fake: Array, progress: Array
    ) -> tuple[Array, Mapping[str, Array]]:
        """Both players in one scalar: each term stops the gradient of the other player's parameters."""
        weights = self.recipe.loss

        def judge(weights: PyTree, video: Array) -> Any:
            return self._discriminator.apply({"params": constraints.gathered(weights)}, video)

        generator = generator_loss(judge(jax.lax.stop_gradient(params), fake))
        discriminator = discriminator_loss(judge(params, real), judge(params, jax.lax.stop_gradient(fake)))
        penalty = r1_penalty(functools.partial(judge, params), real)
        active = (progress >= weights.adversarial_start).astype(jnp.float32)
        total = active * (weights.adversarial * generator + discriminator + 0.5 * weights.r1 * penalty)
        return total, {"generator": generator, "discriminator": discriminator, "r1": penalty}
