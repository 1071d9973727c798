"""A Gaussian diffusion system over a continuous autoencoder: all that a system of another family needs to define."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.conditioning.base import Conditioners
from motionaura_jax.conditioning.scalars import Scalar
from motionaura_jax.core.types import Cond, Latent
from motionaura_jax.diffusion import process, sampling
from motionaura_jax.models.autoencoders.geometry import Geometry
from motionaura_jax.models.denoisers.base import Denoiser
from motionaura_jax.ops.prediction import Prediction
from motionaura_jax.systems.diffusion import DiffusionSystem
from motionaura_jax.systems.diffusion_recipe import DiffusionRecipe


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pooling:
    """Autoencoder whose latents are means over cells."""

    scale: float = 2.0
    geometry = Geometry(strides=(2, 4, 4), channels=3)
    vocab_size, latent_space = 0, "pooling"

    def encode(self, video, key=None):
        b, t, h, w, c = video.shape
        cells = video.reshape(b, t // 2, 2, h // 4, 4, w // 4, 4, c)
        return Latent(values=self.scale * cells.mean((2, 4, 6)), size=(t, h, w), latent_space=self.latent_space)

    def decode(self, latent, aux=None):
        video = latent.values / self.scale
        for axis, stride in enumerate(self.geometry.strides, 1):
            video = jnp.repeat(video, stride, axis)
        return jnp.clip(video, -1, 1)


class Gaussian:
    """Process x_t = cos(pi t / 2) x0 + sin(pi t / 2) noise; the denoiser predicts x0."""

    metric = "mse"

    def sample_time(self, key, sample, batch_size):
        return process.stratified(key, sample, batch_size)

    def level(self, time, shape, mask=None):
        return time

    def prior(self, shape, keys=None):
        return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)

    def mix(self, x0, noise, time):
        angle = 0.5 * jnp.pi * time.reshape(-1, 1, 1, 1, 1)
        return jnp.cos(angle) * x0 + jnp.sin(angle) * noise

    def corrupt(self, x0, time, keys, mask=None):
        x_t = self.mix(x0, self.prior(x0.shape, keys), time)
        return (x_t if mask is None else sampling.restore(x_t, x0, ~mask)), x0

    def loss(self, prediction, target, x_t, time, mask=None):
        weight = jnp.ones(target.shape[:4]) if mask is None else mask
        error = jnp.square(prediction.dense() - target).mean(-1) * weight
        return error.sum((1, 2, 3)) / jnp.maximum(weight.sum((1, 2, 3)), 1)

    def loss_by_level(self, predict, x0, keys, *, levels, mask=None):
        return process.training_loss_by_level(self, predict, x0, keys, levels=levels, mask=mask)

    def statistics(self, x_t):
        return {}


class State(NamedTuple):
    x: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ddim:
    """Deterministic sampler of `Gaussian`."""

    def timesteps(self, steps):
        return sampling.uniform_times(steps)

    def init(self, keys, x):
        return State(x)

    def step(self, denoise, state, index, times):
        now, after = (jnp.full(len(state.x), times[index + offset]) for offset in (0, 1))
        x0 = denoise(state.x, now, sampling.progress_of(index, len(times) - 1))
        angle = 0.5 * jnp.pi * times[index]
        noise = (state.x - jnp.cos(angle) * x0) / jnp.maximum(jnp.sin(angle), 1e-6)
        return State(Gaussian().mix(x0, noise, after))

    def trace(self, state):
        return ()


class Pointwise(Denoiser):
    """Denoiser of two dense layers per position, conditioned on level, frame rate and shade."""

    @nn.compact
    def __call__(self, x_t, level, cond, memory=None):
        shade = self.encode_cond(cond) if memory is None else memory
        told = jnp.stack([level, cond.scalars["fps"] / 8.0], -1)
        told = jnp.concatenate([told, shade], -1)[:, None, None, None]
        hidden = jnp.concatenate([x_t, jnp.broadcast_to(told, (*x_t.shape[:4], told.shape[-1]))], -1)
        return Prediction(values=nn.Dense(3, name="out")(nn.silu(nn.Dense(32, name="in")(hidden))))

    def encode_cond(self, cond):
        return (cond.tokens * cond.token_mask[..., None]).mean(1)

    @nn.nowrap
    def example(self):
        cond = Cond(tokens=jnp.zeros((1, 1, 2)), token_mask=jnp.ones((1, 1), bool), scalars={"fps": jnp.ones(1)})
        return jnp.zeros((1, 1, 1, 1, 3)), jnp.ones(1), cond


class Shade:
    """Trained embedding of a clip's brightness: 0 dark, 1 bright, 2 unspecified."""

    def host(self, batch):
        return (batch["video"].mean((1, 2, 3, 4)) > 0).astype(np.int32)

    def abstract(self, size):
        return jax.ShapeDtypeStruct((size,), jnp.int32)

    def null(self):
        return np.full(1, 2, np.int32)

    def init(self, key):
        return {"table": jax.random.normal(key, (3, 2))}

    def frozen(self):
        return None

    def read(self, frozen, raw):
        return raw

    def __call__(self, params, frozen, raw):
        return {"tokens": params["table"][raw][:, None], "token_mask": jnp.ones((len(raw), 1), bool)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyRecipe(DiffusionRecipe):
    autoencoder: str = ""


class ToySystem(DiffusionSystem):
    Recipe = ToyRecipe
    control = "shade"
    dropout = {"shade": 0.25}  # noqa: RUF012

    def make_process(self):
        return Gaussian()

    def make_denoiser(self):
        return Pointwise()

    @classmethod
    def make_conditioners(cls, recipe):
        return Conditioners({"shade": Shade(), "fps": Scalar("fps")})

    def make_sampler(self, settings):
        return Ddim()

    @classmethod
    def open_autoencoder(cls, place, latent_space=""):
        return Pooling()


class Infilling(ToySystem):
    """System that generates everything after the first latent frame."""

    def known(self, x0):
        return jnp.broadcast_to((jnp.arange(x0.shape[1]) == 0)[:, None, None], x0.shape[:4])

    def example(self, frozen, batch, keys):
        x0, _, raw = super().example(frozen, batch, keys)
        return x0, ~self.known(x0), raw

    def start(self, frozen, rows, size, keys):
        noise, _, raw = super().start(frozen, rows, size, keys)
        clean = self.latents(frozen, rows)
        return sampling.restore(noise, clean, self.known(clean)), self.known(clean), raw
