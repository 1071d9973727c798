"""Products in float32 are computed in float32 also where the device would round them; read in the lowered programs."""

import re

import jax
import jax.numpy as jnp
import pytest

from motionaura_jax.core.types import Cond
from motionaura_jax.models.autoencoders import config as tokenizers
from motionaura_jax.models.autoencoders.mbq_vae import init_tokenizer
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers import config as denoisers
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer

SMALL = {"channels": (8, 8), "enc_mb": (1, 1), "enc_inc": (0, 1), "dec_mb": (1, 1), "dec_inc": (0, 1), "z_channels": 8}
PRECISIONS = {"float32": {"HIGHEST"}, "tensorfloat32": {"HIGH"}, "bfloat16": {"DEFAULT"}}


def precisions(function, *arguments):
    """Return the precisions of all products and convolutions of a program."""
    lines = jax.jit(function).lower(*arguments).as_text().splitlines()
    products = [line for line in lines if re.search(r"stablehlo\.(dot_general|convolution)", line)]
    assert products
    return {name for line in products for name in re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)}


@pytest.mark.parametrize("chosen", PRECISIONS)
def test_the_tokenizer_computes_in_the_precision_of_its_config(chosen):
    config = tokenizers.preset("tiny", **SMALL, codebook_size=16, matmul_precision=chosen)
    params, extra = jax.eval_shape(lambda key: init_tokenizer(config, key), jax.random.key(0))
    video = jnp.zeros((1, 4, 16, 16, 3))

    def network(params, extra, video):
        tokenizer = Tokenizer(config=config, params=params, extra=extra)
        return tokenizer.apply("decode", tokenizer.features(video))

    def look_up(params, extra, z):
        return Tokenizer(config=config, params=params, extra=extra).quantize(z).codes

    assert precisions(network, params, extra, video) == PRECISIONS[chosen]
    assert precisions(look_up, params, extra, jnp.zeros((1, 1, 4, 4, config.latent_dim))) == {"HIGHEST"}


@pytest.mark.parametrize("chosen", PRECISIONS)
def test_the_denoiser_computes_in_the_precision_of_its_config(chosen):
    settings = {"width": 16, "heads": 2, "blocks": 1, "text_dim": 8, "text_len": 4}
    config = denoisers.preset("tiny", **settings, vocab_size=16, matmul_precision=chosen)
    network = SpectralTransformer(config)
    params = jax.eval_shape(network.init, jax.random.key(0), *network.example())
    cond = Cond(tokens=jnp.ones((1, 4, 8)), token_mask=jnp.ones((1, 4), bool), scalars={"fps": jnp.ones(1)})
    arguments = (jnp.zeros((1, 2, 2, 2), jnp.int32), jnp.ones(1), cond)
    found = precisions(lambda params, *rest: network.apply(params, *rest).values, params, *arguments)
    assert found <= PRECISIONS[chosen] | {"HIGHEST"} and PRECISIONS[chosen] <= found
