"""The same weights in both frameworks: our networks with random weights, and their exported modules."""

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.core.types import Cond
from motionaura_jax.exporters.pytorch import settings
from motionaura_jax.models.autoencoders.mbq_vae import init_tokenizer
from motionaura_jax.models.autoencoders.mbq_vae_tensors import MBQ_VAE
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.denoisers.spectral_transformer_tensors import SPECTRAL_TRANSFORMER
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.models.encoders.tensor_maps import TEXT_ENCODER
from motionaura_jax.weights.convert import export_tensors
from tests.systems.tiny import perturb


def tokenizer(config, noise=0.05):
    """Return a tokenizer with every weight perturbed."""
    params, extra = jax.jit(lambda: init_tokenizer(config, jax.random.key(0)))()
    return Tokenizer(config=config, params=perturb(params, noise), extra=extra)


def denoiser(config):
    """Return random weights of a denoiser."""
    cond = Cond(tokens=jnp.zeros((1, 2, config.text_dim)), scalars={"fps": jnp.ones(1)})
    return _random(SpectralTransformer(config), jnp.zeros((1, 2, 2, 2), jnp.int32), jnp.ones(1), cond)


def text_encoder(config, vocab_size, width):
    """Return random weights of a text encoder."""
    return _random(T5Encoder(config.t5(vocab_size, width), scanned=False), jnp.ones((1, 3), jnp.int32))


def _random(network, *inputs):
    """Sample scales around 1 and other weights around 0; NumPy avoids compiling an init that takes longer than the test."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        return (path[-1].key in ("scale", "gain")) + scale * rng.standard_normal(leaf.shape, np.float32)

    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def torch_tokenizer(ours):
    """Return the exported module with the weights of a `Tokenizer`."""
    from motionaura_jax.exporters.pytorch.modeling_mbq_vae import MBQVAE

    tree = {"params": {"tokenizer": ours.params}, "extra": ours.extra}
    return filled(MBQVAE, settings.tokenizer_settings(ours.config), export_tensors(MBQ_VAE, tree))


def torch_denoiser(config, params):
    """Return the exported module with the weights of a denoiser."""
    from motionaura_jax.exporters.pytorch.modeling_spectral_transformer import SpectralTransformer as Module

    return filled(Module, settings.denoiser_settings(config), export_tensors(SPECTRAL_TRANSFORMER, params))


def torch_text_encoder(config, vocab_size, width, params):
    """Return the exported module with the weights of a text encoder."""
    from motionaura_jax.exporters.pytorch.modeling_text_encoder import TextEncoder as Module

    values = settings.text_settings(config, vocab_size, width)
    return filled(Module, values, export_tensors(TEXT_ENCODER, params))


def filled(module, values, tensors):
    """Fill a torch module with named arrays, each used exactly once."""
    import torch

    network = module(module.Config(**values))
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in tensors})
    return network.eval()


def assert_close(theirs, ours, limit=1e-4):
    """Assert that arrays agree within `limit` of the largest value."""
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=limit * np.abs(ours).max())
