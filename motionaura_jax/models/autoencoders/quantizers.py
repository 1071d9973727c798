"""The discrete bottleneck as pure functions of (params, extra, z).  MotionAura Eq. 1 as corrected in docs/fidelity.md."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from motionaura_jax.models.autoencoders import scalar_quantizers as scalar
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.ops.nearest import nearest_code

Tree = dict[str, Array]


class Quantized(NamedTuple):
    """Result of a quantizer.

    Attributes:
      values: float32 decoder inputs; their gradient passes straight through to z.
      codes: int32 in [0, vocab_size); None for the continuous bottleneck.
      losses: unweighted scalars among `codebook`, `commitment`, `entropy`; `auxiliary_loss` weighs them.
      stats: inputs of `codebook.advance`.  Those of several microbatches, `counts` and `sums` added up and `candidates`
        concatenated, equal those of their union.
    """

    values: Float[Array, "b t h w d"]
    codes: Int[Array, "b t h w"] | None
    losses: Tree
    stats: Tree


def normalize(config: MBQVAEConfig, vectors: Float[Array, "*shape d"]) -> Float[Array, "*shape d"]:
    """Map encoder outputs or code vectors to the space of distances: the unit sphere if `config.l2`.  Float32."""
    vectors = jnp.asarray(vectors, jnp.float32)
    if not config.l2:
        return vectors
    return vectors * jax.lax.rsqrt(jnp.square(vectors).sum(-1, keepdims=True) + 1e-12)


def code_vectors(config: MBQVAEConfig, params: Tree, extra: Tree) -> Float[Array, "k d"]:
    """Return the codebook as the decoder sees it; only that of `vq` has a gradient."""
    if config.quantizer == "vq":
        return normalize(config, params["codebook"])
    return normalize(config, jax.lax.stop_gradient(extra["codebook"]))


def quantize(config: MBQVAEConfig, params: Tree, extra: Tree, z: Float[Array, "b t h w d"]) -> Quantized:
    """Map encoder outputs to codes.  Never changes `extra`; `codebook.advance` does.

    Args:
      params: `codebook` (k d) for `vq`, else empty.
      extra: `usage` (k,), `idle` (k,) for `vq`; also `codebook`, `count`, `sum` for `vq_ema`; else empty.
    """
    return _QUANTIZERS[config.quantizer](config, params, extra, z)


def codes_to_values(
    config: MBQVAEConfig, params: Tree, extra: Tree, codes: Int[Array, "*shape"]
) -> Float[Array, "*shape d"]:
    """Return the decoder inputs of codes; they equal `Quantized.values` of the clip that the codes came from."""
    if config.quantizer == "fsq":
        return scalar.fsq_values(codes, config.fsq_levels)
    if config.quantizer == "lfq":
        return scalar.lfq_values(codes, config.latent_dim)
    if config.quantizer == "none":
        raise ValueError("quantizer='none' has no codes; decode the continuous latent")
    return code_vectors(config, params, extra)[codes]


def continuous_values(config: MBQVAEConfig, z: Float[Array, "*shape d"]) -> Float[Array, "*shape d"]:
    """Return what the decoder would read with infinitely many codes, to measure the cost of quantization."""
    if config.quantizer == "fsq":
        return scalar.fsq_scale(scalar.fsq_bound(z, config.fsq_levels), config.fsq_levels)
    if config.quantizer in ("vq", "vq_ema"):
        return normalize(config, z)
    return z.astype(jnp.float32)


def auxiliary_loss(config: MBQVAEConfig, losses: Tree, progress: Float[Array, ""] | float) -> Float[Array, ""]:
    """Return L_codebook + beta * L_commit + w * L_entropy at `progress` = step / total_steps in [0, 1].

    The entropy weight falls linearly from `entropy_boost` times its value over the first `entropy_boost_until` of
    training.
    """
    boost = 1.0 + (config.entropy_boost - 1.0) * jnp.clip(1.0 - progress / config.entropy_boost_until, 0.0, 1.0)
    weights: dict[str, Array | float] = {
        "codebook": 1.0,
        "commitment": config.beta,
        "entropy": config.entropy_weight * boost,
    }
    return sum((weights[name] * value for name, value in losses.items()), jnp.zeros(()))


def code_metrics(counts: Float[Array, " k"]) -> Tree:
    """Return `perplexity` (1 .. k) and `usage`, the fraction of codes that occur."""
    share = counts / jnp.maximum(counts.sum(), 1.0)
    entropy = -(share * jnp.log(jnp.where(share > 0, share, 1.0))).sum()
    return {"perplexity": jnp.exp(entropy), "usage": (counts > 0).mean(dtype=jnp.float32)}


def _vector_quantize(config: MBQVAEConfig, params: Tree, extra: Tree, z: Float[Array, "b t h w d"]) -> Quantized:
    z = normalize(config, z)
    book = code_vectors(config, params, extra)
    flat = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
    codes = nearest_code(flat, jax.lax.stop_gradient(book), impl=config.nearest_impl).reshape(z.shape[:-1])
    chosen = book[codes]
    losses = {"commitment": _squared_distance(config, z, jax.lax.stop_gradient(chosen))}
    stats = {"counts": _counts(codes, config.vocab_size), "candidates": _candidates(config, z)}
    if config.quantizer == "vq":
        losses["codebook"] = _squared_distance(config, jax.lax.stop_gradient(z), chosen)
    else:
        stats["sums"] = jnp.zeros_like(book).at[codes.reshape(-1)].add(flat)
    return Quantized(scalar.straight_through(chosen, z), codes, losses, stats)


def _fsq(config: MBQVAEConfig, params: Tree, extra: Tree, z: Float[Array, "b t h w d"]) -> Quantized:
    integers = scalar.fsq_round(z, config.fsq_levels)
    codes = scalar.fsq_codes(integers, config.fsq_levels)
    values = scalar.fsq_scale(integers, config.fsq_levels)
    return Quantized(values, codes, {}, {"counts": _counts(codes, config.vocab_size)})


def _lfq(config: MBQVAEConfig, params: Tree, extra: Tree, z: Float[Array, "b t h w d"]) -> Quantized:
    z = z.astype(jnp.float32)
    codes = scalar.lfq_codes(z)
    values = scalar.lfq_values(codes, config.latent_dim)
    losses = {
        "commitment": _squared_distance(config, z, values),
        "entropy": scalar.lfq_entropy(z.reshape(-1, z.shape[-1]), config.entropy_temperature),
    }
    return Quantized(scalar.straight_through(values, z), codes, losses, {"counts": _counts(codes, config.vocab_size)})


def _continuous(config: MBQVAEConfig, params: Tree, extra: Tree, z: Float[Array, "b t h w d"]) -> Quantized:
    return Quantized(z.astype(jnp.float32), None, {}, {})


def _squared_distance(
    config: MBQVAEConfig, a: Float[Array, "*shape d"], b: Float[Array, "*shape d"]
) -> Float[Array, ""]:
    distance = jnp.square(a - b).sum(-1).mean()
    # A mean over few channels of a unit vector is negligible, a sum over many outweighs the reconstruction.
    return distance / a.shape[-1] if config.channel_reduction == "mean" else distance


def _counts(codes: Int[Array, "*shape"], size: int) -> Float[Array, " k"]:
    return jnp.zeros((size,), jnp.float32).at[codes.reshape(-1)].add(1.0)


def _candidates(config: MBQVAEConfig, z: Float[Array, "b t h w d"]) -> Float[Array, "n d"]:
    # Choose the same positions in every clip, so that the pool of several microbatches is the pool of their union.
    flat = jax.lax.stop_gradient(z).reshape(z.shape[0], -1, z.shape[-1])
    positions = np.random.default_rng(0).permutation(flat.shape[1])[: config.restart_pool]
    return flat[:, np.sort(positions)].reshape(-1, z.shape[-1])


_QUANTIZERS: dict[str, Callable[[MBQVAEConfig, Tree, Tree, Array], Quantized]] = {
    "vq": _vector_quantize,
    "vq_ema": _vector_quantize,
    "fsq": _fsq,
    "lfq": _lfq,
    "none": _continuous,
}
