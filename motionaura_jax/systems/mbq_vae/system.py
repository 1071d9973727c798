"""The 3D-MBQ-VAE tokenizer as a trainable system.  MotionAura section 3.1, Eq. 1 as corrected in docs/fidelity.md."""

import functools
import logging
import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.core.parts import Component
from motionaura_jax.core.types import PyTree
from motionaura_jax.models.autoencoders import codebook, quantizers
from motionaura_jax.models.autoencoders.masking import mask_strength, mask_video
from motionaura_jax.models.autoencoders.mbq_vae import NOT_DECAYED, init_tokenizer, masked_frame_index_loss
from motionaura_jax.models.autoencoders.mbq_vae_tensors import MBQ_VAE
from motionaura_jax.models.autoencoders.tiling import crop, pad
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer, fingerprint
from motionaura_jax.parallel import constraints
from motionaura_jax.parallel.mesh import batch_shards
from motionaura_jax.systems.autoencoder import AutoencoderSystem, ForwardPass
from motionaura_jax.systems.base import Batch
from motionaura_jax.systems.mbq_vae.recipe import MBQVAERecipe

logger = logging.getLogger(__name__)

PREPARATION_VECTORS = 65536  # encoder outputs that the k-means start reads


class MBQVAESystem(AutoencoderSystem):
    """Training of a tokenizer: masked input, masked-frame-index loss, the life of the codebook.

    `params` holds `tokenizer` (see `mbq_vae.init_tokenizer`), `extra` the state of its quantizer.
    """

    Recipe = MBQVAERecipe
    recipe: MBQVAERecipe
    components = (Component(folder="", tensors=MBQ_VAE),)
    exports: ClassVar[Mapping[str, str]] = {
        "pytorch": "motionaura_jax.exporters.pytorch.writer:write_tokenizer",
        "stablehlo": "motionaura_jax.exporters.stablehlo:write_tokenizer",
    }
    not_decayed = NOT_DECAYED

    def init_autoencoder(self, key: Key[Array, ""]) -> tuple[dict[str, PyTree], PyTree]:
        """Return fresh weights and quantizer state."""
        tokenizer, extra = init_tokenizer(self.recipe.model, key)
        return {"tokenizer": tokenizer}, extra

    def bind(self, params: PyTree, extra: PyTree, latent_space: str = "") -> Tokenizer:
        """Return the tokenizer with these weights."""
        return Tokenizer(config=self.recipe.model, params=params["tokenizer"], extra=extra, latent_space=latent_space)

    def latent_space(self, params: PyTree, extra: PyTree) -> str:
        """Hash settings, weights and codebook."""
        return fingerprint(self.recipe.model, params["tokenizer"], extra)

    def prepare(self, params: PyTree, extra: PyTree, batches: Iterable[Batch]) -> tuple[PyTree, PyTree]:
        """Start the codebook from k-means over encoder outputs, if training quantizes from the first step on."""
        model = self.recipe.model
        if model.quantizer not in ("vq", "vq_ema") or model.first_quantized_step(self.recipe.train.steps):
            return params, extra
        encode = jax.jit(_vectors)
        vectors: list[Array] = []
        for batch in batches:
            vectors.append(encode(self.bind(params, extra), batch["video"]))
            if sum(len(v) for v in vectors) >= PREPARATION_VECTORS:
                break
        key = jax.random.key(self.recipe.seed)
        codes = jax.jit(functools.partial(codebook.kmeans, model))(key, jnp.concatenate(vectors)[:PREPARATION_VECTORS])
        quantizer, extra = codebook.set_codebook(model, params["tokenizer"]["quantizer"], extra, codes)
        return _with_quantizer(params, quantizer), extra

    def check_data(self) -> None:
        """Warn if a batch has fewer latent positions than there are codes."""
        model = self.recipe.model
        if model.quantizer not in ("vq", "vq_ema"):
            return
        for bucket in self.recipe.data.all_buckets():
            grid = model.geometry.latent_shape(bucket.num_frames, bucket.height, bucket.width)
            hits = bucket.batch_size * math.prod(grid) / model.codebook_size
            if hits < 1:
                logger.warning(
                    "a batch of %d clips of %dx%dx%d hits each of %d codes %.2g times on average; codes then learn slowly: "
                    "raise data.batch_size or lower model.codebook_size",
                    *(bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, model.codebook_size, hits),
                )

    def forward(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> ForwardPass:
        """Reconstruct V from a masked V; the own losses are L_codebook + beta L_commit and mfi L_MFI of Eq. 1."""
        model, tokenizer, video = self.recipe.model, self.bind(params, extra), batch["video"]
        progress = step / self.recipe.train.steps
        masked, index = self._mask(params, batch, key, progress)
        z = tokenizer.features(pad(model.geometry, masked)[0])
        code = tokenizer.quantize(z)
        # Early in training the decoder may read continuous latents, so that codes can start from useful ones.
        quantized = step >= model.first_quantized_step(self.recipe.train.steps)
        values = jnp.where(quantized, code.values, quantizers.continuous_values(model, z))
        output = crop(tokenizer.apply("decode", values), video.shape[1:4])
        losses = [quantized * quantizers.auxiliary_loss(model, code.losses, progress)]
        terms = dict(code.losses)
        if self.recipe.loss.mfi:
            logits = tokenizer.apply("mfi_logits", z, video.shape[1])
            terms["mfi"] = masked_frame_index_loss(logits, index).mean()
            losses.append(self.recipe.loss.mfi * terms["mfi"])
        return ForwardPass(output, tuple(losses), terms, code.stats)

    def advance(
        self, params: PyTree, extra: PyTree, stats: PyTree, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, Mapping[str, Array]]:
        """Update averages and usage counters of the codebook, and restart its dead codes."""
        quantizer, extra, metrics = codebook.advance(
            self.recipe.model, params["tokenizer"]["quantizer"], extra, stats, key, step, self.recipe.train.steps
        )
        return _with_quantizer(params, quantizer), extra, metrics

    def _mask(self, params: PyTree, batch: Batch, key: Array, progress: Array) -> tuple[Array, Array]:
        """Return the masked video and the index of the masked frame of each clip."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["sample"])
        masking = self.recipe.masking
        fill = params["tokenizer"]["mask_fill"] if masking.learned_fill else jnp.full(3, masking.fill)
        return mask_video(masking, keys, batch["video"], fill, mask_strength(masking, progress))


def _with_quantizer(params: PyTree, quantizer: PyTree) -> PyTree:
    return {**params, "tokenizer": {**params["tokenizer"], "quantizer": quantizer}}


def _vectors(tokenizer: Tokenizer, video: Float[Array, "b t h w 3"]) -> Float[Array, "n d"]:
    """Return all encoder outputs of some clips; each device encodes one clip at a time.

    That takes less memory than a training step, and the same numbers come out on any number of devices.
    """
    shards = batch_shards(jax.sharding.get_abstract_mesh())
    filled = jnp.pad(video, ((0, -len(video) % shards), *[(0, 0)] * 4))
    turns = constraints.microbatches(filled, len(filled) // shards)
    z = jax.lax.map(lambda clips: tokenizer.features(pad(tokenizer.geometry, clips)[0]), turns).swapaxes(0, 1)
    return constraints.whole(z.reshape(-1, *z.shape[2:])[: len(video)].reshape(-1, z.shape[-1]))
