"""Rematerialization: the same gradients from less and less memory."""

import dataclasses
import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Cond
from motionaura_jax.models.autoencoders.blocks import InceptionFusedMB, MBConv
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE
from motionaura_jax.models.denoisers.config import preset
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer


def denoiser(remat):
    """Return a function of the parameters of a denoiser of 8 blocks, and those parameters as shapes."""
    settings = {"vocab_size": 16, "width": 32, "heads": 2, "blocks": 8, "text_dim": 8, "text_len": 8}
    model = SpectralTransformer(preset("tiny", **settings, remat=remat))
    inputs = jnp.zeros((2, 4, 8, 8), jnp.int32), jnp.ones(2), Cond(scalars={"fps": jnp.ones(2)})
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return lambda params: jnp.square(model.apply({"params": params}, *inputs).dense()).mean(), shapes


def tokenizer(remat):
    blocks = {"enc_mb": (0, 1), "enc_inc": (0, 0), "dec_mb": (1, 0), "dec_inc": (0, 1)}
    plain = {
        "conv_impl": "lax",
        "depthwise_impl": "lax",
    }  # equal to the fast forms, but compiles in a third of the time
    config = MBQVAEConfig(channels=(8, 8), t_stride=2, latent_dim=4, z_channels=8, remat=remat, **blocks, **plain)
    model, video = MBQVAE(config), jnp.zeros((1, 4, 16, 16, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    return lambda params: jnp.square(model.apply({"params": params}, video)[0] - 1).mean(), shapes


@functools.cache
def kept(make, remat):
    """Return the bytes that the forward pass saves for the backward pass, parameters included, on any backend."""
    function, shapes = make(remat)
    residuals = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(function, params)[1], shapes))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)


def test_each_policy_of_the_denoiser_keeps_less():
    none, dots, full = (kept(denoiser, remat) for remat in ("none", "dots", "full"))
    assert full < 0.5 * dots and dots < 0.5 * none


def test_the_compiled_step_of_the_denoiser_needs_less():
    none, full = (
        jax.jit(jax.grad(function)).lower(shapes).compile().memory_analysis().temp_size_in_bytes
        for function, shapes in map(denoiser, ("none", "full"))
    )
    assert full < 0.64 * none


def test_offloading_keeps_the_same_in_host_memory():
    placed = {}
    for remat in ("dots", "offload"):
        function, shapes = denoiser(remat)
        placed[remat] = str(jax.make_jaxpr(jax.grad(function))(shapes)).count("<host>")
    assert placed["dots"] == 0 and placed["offload"] > 10
    assert kept(denoiser, "offload") == pytest.approx(kept(denoiser, "dots"), rel=0.01)


def test_offloading_needs_a_host_memory():
    function, shapes = denoiser("offload")
    device = types.SimpleNamespace(device_kind="Abacus", addressable_memories=list)
    with (
        mock.patch.object(jax, "local_devices", lambda: [device]),
        pytest.raises(UserError, match=r"model.remat=offload: Abacus has no pinned_host memory; use dots or full"),
    ):
        jax.eval_shape(function, shapes)


@pytest.mark.slow(quick=True)
def test_recomputation_in_the_tokenizer_takes_less_memory_and_changes_no_gradient():
    # On a CPU, XLA merges duplicate work unless a loop separates it, so only the residuals show the effect.
    assert kept(tokenizer, "full") < 0.5 * kept(tokenizer, "none")
    shapes = tokenizer("none")[1]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    plain, *again = (jax.jit(jax.grad(tokenizer(remat)[0]))(params) for remat in ("none", "full", "branch", "layer"))
    for found in again:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), plain, found)


@pytest.mark.parametrize("make", [MBConv, InceptionFusedMB])
def test_branches_and_layers_of_a_block_keep_less_while_it_is_recomputed(make):
    """The inputs of parts remain: those of the branches, and the four times wider tensors between layers."""
    x = jnp.zeros((1, 4, 16, 16, 8))

    def block(remat):
        config = MBQVAEConfig(remat=remat, conv_impl="lax", depthwise_impl="lax")
        module = make(config, 8) if make is MBConv else make(config)
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        return lambda params: jnp.square(module.apply({"params": params}, x)).mean(), shapes

    full, branch, layer = (kept(block, remat) for remat in ("full", "branch", "layer"))
    assert branch < 0.35 * full  # one block alone, so `full` keeps everything inside it
    assert branch == layer  # a recomputed branch: `layer` differs within it
    assert jax.tree.structure(block("none")[1]) == jax.tree.structure(block("layer")[1])


def test_recomputation_is_no_part_of_the_latent_space():
    from motionaura_jax.models.autoencoders.config import IMPLEMENTATION_KEYS

    assert {"remat"} <= set(IMPLEMENTATION_KEYS) <= {field.name for field in dataclasses.fields(MBQVAEConfig)}
