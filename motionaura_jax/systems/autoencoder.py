"""The training that every video autoencoder needs: losses as lists, discriminators, evaluation.

A system subclasses `AutoencoderSystem` with four methods: `init_autoencoder`; `bind`, which makes a `VideoAutoencoder` of
parameters; `latent_space`, which hashes them; and `forward`, the pass in training with the loss terms of its own.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.limits import Checked, NonNegative, Place, Share
from motionaura_jax.core.recipe import ParamGroup, Recipe
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.metrics.frame import psnr, ssim
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.autoencoders.config import DiscriminatorConfig
from motionaura_jax.models.autoencoders.discriminators import AdversarialLoss
from motionaura_jax.models.autoencoders.tiling import crop, pad
from motionaura_jax.models.features.perceptual import SQUEEZENET, VideoDistance
from motionaura_jax.parallel import constraints
from motionaura_jax.systems.base import Batch, Evaluation, System

RECONSTRUCTION_LOSSES: Mapping[str, Callable[[Array, Array], Float[Array, ""]]] = {
    "mse": lambda video, output: jnp.square(video - output).mean(),
    "l1": lambda video, output: jnp.abs(video - output).mean(),
}
"""Losses of a pair of videos, each with its weight in `LossConfig`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """Weights of the losses that every autoencoder can train with.

    Attributes:
      mse, l1: of the mean squared and the mean absolute error.
      perceptual, perceptual_weights: weight and file of a feature loss with SqueezeNet, before those of the recipe's
        `features`.
      adversarial: of the generator terms; 0 trains without discriminators.
      adversarial_start: fraction of training before which the discriminators neither train nor cost anything.
      r1: of the gradient penalty on real clips.
    """

    mse: NonNegative = 1.0
    l1: NonNegative = 0.2
    perceptual: NonNegative = 0.0
    perceptual_weights: Place = ""
    adversarial: NonNegative = 0.0
    adversarial_start: Share = 0.2
    r1: NonNegative = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureLossConfig(Checked):
    """A loss between features of the real and the reconstructed video.

    Attributes:
      network: name of the frozen network, among the `networks` of the system; also the name of the loss in the log.
      weights: file of the network's weights (SqueezeNet: .npz).
    """

    network: str = "squeezenet"
    weights: Place
    weight: NonNegative = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Recipe):
    """A training run of an autoencoder.

    Attributes:
      features: feature losses.
      discriminator: the only discriminator, used when `discriminators` is empty.
      discriminators: several of them, such as one for frames and one for clips.
    """

    places = (*Recipe.places, "loss.perceptual_weights", "features.weights")

    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    features: tuple[FeatureLossConfig, ...] = ()
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    discriminators: tuple[DiscriminatorConfig, ...] = ()

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
        names = [one.network for one in self.features]
        if len(set(names)) < len(names):
            raise UserError("config.features: two losses of one network; give each network once")

    def all_features(self) -> dict[str, FeatureLossConfig]:
        """Return the feature losses by their names in the log."""
        first = FeatureLossConfig(weights=self.loss.perceptual_weights, weight=self.loss.perceptual)
        named = {"perceptual": first} if first.weight else {}
        return {**named, **{one.network: one for one in self.features if one.weight}}

    def all_discriminators(self) -> tuple[DiscriminatorConfig, ...]:
        """Return the discriminators; none without an adversarial weight."""
        return self.discriminators or (self.discriminator,) if self.loss.adversarial else ()


class ForwardPass(NamedTuple):
    """A forward pass in training.

    Attributes:
      video: the reconstruction, of the size of the target and not clipped.
      losses: weighted loss terms of the system's own, added to those of the reconstruction in this order.
      terms: unweighted values for the log.
      stats: input of `System.advance`.
    """

    video: Float[Array, "b t h w 3"]
    losses: tuple[Float[Array, ""], ...] = ()
    terms: Mapping[str, Array] = {}
    stats: PyTree = None


class AutoencoderSystem(System):
    """Training of a video autoencoder; see `systems.base.System`.

    `params` holds the autoencoder, under names that the subclass chooses, and one entry per discriminator.  `frozen` holds
    the networks of the feature losses by the names of the losses.

    Attributes:
      networks: networks of feature losses by name; a subclass or a caller adds more.
    """

    recipe: Any  # an AutoencoderRecipe; subclasses narrow it to their own
    fields = ("video",)
    networks: ClassVar[Mapping[str, VideoDistance]] = {"squeezenet": SQUEEZENET}

    def __init__(self, recipe: AutoencoderRecipe, *, networks: Mapping[str, VideoDistance] | None = None) -> None:
        """Add `networks` to those of the class, or replace some of them."""
        super().__init__(recipe)
        known = {**self.networks, **(networks or {})}
        self._features: dict[str, VideoDistance] = {}
        for name, one in recipe.all_features().items():
            if one.network not in known:
                raise UserError(f"config.features: no network is called {one.network!r}{nearest(one.network, known)}")
            self._features[name] = known[one.network]
        loss = recipe.loss
        self._adversarial = AdversarialLoss(
            discriminators=recipe.all_discriminators(), weight=loss.adversarial, r1=loss.r1
        )
        self._evaluate = jax.jit(self._reconstruct_both_ways)

    @abc.abstractmethod
    def init_autoencoder(self, key: Key[Array, ""]) -> tuple[dict[str, PyTree], PyTree]:
        """Return fresh parameters of the autoencoder by name, and `extra`."""

    @abc.abstractmethod
    def bind(self, params: PyTree, extra: PyTree, latent_space: str = "") -> VideoAutoencoder:
        """Return the autoencoder with these weights, marked with `latent_space`; traceable."""

    @abc.abstractmethod
    def latent_space(self, params: PyTree, extra: PyTree) -> str:
        """Return the hash of everything that gives latents their meaning; for arrays in host memory."""

    @abc.abstractmethod
    def forward(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> ForwardPass:
        """Run the forward pass of one training step; see `System.loss` for the arguments."""

    def aux(self, batch: Batch) -> PyTree:
        """Return what the decoder reads besides the latent, such as flow; None for most decoders."""
        return None

    def autoencoder(self, params: PyTree, extra: PyTree) -> VideoAutoencoder:
        """Return the trained autoencoder, marked with its latent space, from arrays in host memory."""
        return self.bind(params, extra, self.latent_space(params, extra))

    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the first bucket's batch."""
        bucket = self.recipe.data.all_buckets()[0]
        video = (bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, 3)
        return {
            "video": jax.ShapeDtypeStruct(video, jnp.float32),
            "sample": jax.ShapeDtypeStruct((bucket.batch_size,), jnp.int32),
        }

    def to_arrays(self, batch: Mapping[str, Any]) -> Batch:
        """Keep the fields of `batch_spec`: `video` in [-1, 1] and `sample`."""
        return {name: batch[name] for name in self.batch_spec()}

    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Return fresh weights, with discriminators if the recipe uses them."""
        autoencoder_key, discriminator_key = jax.random.split(key)
        params, extra = self.init_autoencoder(autoencoder_key)
        video = jnp.zeros((1, *self.batch_spec()["video"].shape[1:]))
        return {**params, **self._adversarial.init(discriminator_key, video)}, extra

    def param_groups(self) -> tuple[ParamGroup, ...]:
        """Clip each discriminator on its own and keep it out of the average of the weights."""
        return tuple(ParamGroup(pattern=f"^{name}/", clip=name, averaged=False) for name in self._adversarial.names)

    def frozen(self) -> PyTree:
        """Load the networks of the feature losses."""
        losses = self.recipe.all_features()
        return {name: network.load(losses[name].weights) for name, network in self._features.items()}

    def loss(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[PyTree, Mapping[str, Array]]]:
        """Add up the losses of reconstruction, of the system itself, of features, and of the discriminators."""
        recipe, video = self.recipe, batch["video"]
        output, losses, own, stats = self.forward(params, extra, frozen, batch, key, step)
        players = self._adversarial if self._adversarial.discriminators else None
        if players:
            active = step / recipe.train.steps >= recipe.loss.adversarial_start
            output, adversarial, judged = players(params, video, output, active)
        terms = {name: loss(video, output) for name, loss in RECONSTRUCTION_LOSSES.items()}
        total = functools.reduce(jnp.add, (getattr(recipe.loss, name) * value for name, value in terms.items()))
        terms |= own
        for loss in losses:
            total += loss
        for name, one in recipe.all_features().items():
            terms[name] = self._features[name].distance(frozen[name], video, output).mean()
            total += one.weight * terms[name]
        if players:
            total, terms = total + adversarial, {**terms, **judged}
        return total, (stats, terms)

    def evaluate(self, params: PyTree, extra: PyTree, frozen: PyTree, batches: Iterable[Batch]) -> Evaluation:
        """Measure PSNR (dB) and SSIM, PSNR without quantization, and the share of codes used over all batches.

        The metrics see the 8-bit frames that a file would hold.  SSIM is NaN for frames smaller than its window.
        """
        autoencoder = self.bind(params, extra)
        rows: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_continuous": []}
        videos: dict[str, np.ndarray] = {}
        used: set[int] = set()
        for batch in batches:
            found = jax.device_get(self._evaluate(autoencoder, batch["video"], self.aux(batch)))
            output, continuous, tokens = found
            used.update(np.unique(tokens).tolist() if tokens is not None else ())
            clips = (to_uint8(np.asarray(video)) for video in (batch["video"], output, continuous))
            for real, fake, smooth in zip(*clips, strict=True):
                rows["psnr"].append(psnr(real, fake))
                rows["ssim"].append(ssim(real, fake))
                rows["psnr_continuous"].append(psnr(real, smooth))
                if len(videos) < self.recipe.evaluate.pictures:
                    videos[f"clip_{len(videos)}"] = np.concatenate([real, fake], axis=2)
        metrics = {name: float(np.mean(values)) for name, values in rows.items()}
        if autoencoder.vocab_size:
            metrics["codes_used"] = len(used) / autoencoder.vocab_size
        return Evaluation(metrics=metrics, videos=videos, fps=self.recipe.data.rates[0])

    def _reconstruct_both_ways(
        self, autoencoder: VideoAutoencoder, video: Array, aux: PyTree
    ) -> tuple[Array, Array, Array | None]:
        """Return reconstructions with and without quantization, and the codes."""
        video = constraints.batch(video)
        padded, size = pad(autoencoder.geometry, video)
        features = autoencoder.features(padded)
        latent = autoencoder.bottleneck(features, size)
        continuous = autoencoder.bottleneck(features, size, quantized=False)
        assert latent.values is not None and continuous.values is not None
        # Both decodes as one batch: the decoder is compiled once.
        values = jnp.concatenate([latent.values, continuous.values])
        aux = jax.tree.map(lambda x: jnp.concatenate([x, x]), aux)
        both = crop(autoencoder.decode_values(values, aux), size)
        return constraints.whole((*jnp.split(both, 2), latent.tokens))
