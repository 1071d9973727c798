"""Copying of neighboring tokens, the baseline that a denoiser must beat before it can be said to know videos.

A masked token is one of its six visible neighbors in time, height and width, or else a token at random:

    p(x_i = k) = (w_0 u_k + sum_j w_j v_j [x_j = k]) / (w_0 + sum_j w_j v_j)

with the frequency u_k of token k, v_j = 1 for a visible neighbor, and seven weights.  Own construction.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.diffusion.likelihood import nelbo

_OFFSETS = tuple((axis, step) for axis in (1, 2, 3) for step in (-1, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbors:
    """A fitted model.

    Attributes:
      weights: of a random token, then of the neighbors before and after in time, above and below, left and right.
      unigram: frequency of each token, never 0.
    """

    weights: Float[np.ndarray, "7"]
    unigram: Float[np.ndarray, " k"]

    def entropy(self, x_t: Int[Array, "b t h w"], x0: Int[Array, "b t h w"]) -> Float[Array, "b t h w"]:
        """Return -log p(x0) of each token, given the neighbors that are visible in `x_t`, float32."""
        visible, equal = _neighbors(x_t, x0, len(self.unigram))
        weights = jnp.asarray(self.weights, jnp.float32)
        shares = weights[0] * jnp.asarray(self.unigram, jnp.float32)[x0] + (equal * weights[1:]).sum(-1)
        return jnp.log(weights[0] + (visible * weights[1:]).sum(-1)) - jnp.log(shares)

    def loss_by_level(
        self,
        x0: Int[Array, "b t h w"],
        keys: Key[Array, " b"],
        *,
        levels: int,
        mask: Bool[Array, "b t h w"] | None = None,
    ) -> Float[Array, "levels b"]:
        """Return the bound by masked share in nats per token, on the masks that `Absorbing.loss_by_level` takes."""
        return nelbo(
            lambda x_t, m: self.entropy(x_t, x0), x0, keys, mask_id=len(self.unigram), levels=levels, mask=mask
        )


def fit(tokens: Int[np.ndarray, "b t h w"], vocab_size: int, *, seed: int = 0, iterations: int = 200) -> Neighbors:
    """Fit the frequencies by counts, and the weights by maximum likelihood at uniformly random shares of masking.

    Every iteration raises the likelihood: a minorization like that of Hunter 2004 for the Plackett-Luce model, because the
    normalization depends on which neighbors are visible.
    """
    counts = np.bincount(tokens.ravel(), minlength=vocab_size) + 0.5
    unigram = counts / counts.sum()
    rng = np.random.default_rng(seed)
    masked = rng.random(tokens.shape) < rng.random((len(tokens), 1, 1, 1))
    visible, equal = (
        np.asarray(a)[masked] for a in _neighbors(np.where(masked, vocab_size, tokens), tokens, vocab_size)
    )
    ones = np.ones((len(visible), 1))
    visible = np.concatenate([ones, visible], axis=1)
    equal = np.concatenate([unigram[tokens[masked]][:, None], equal], axis=1)
    weights = np.ones(7)
    for _ in range(iterations):
        responsible = equal * weights / (equal @ weights)[:, None]
        weights = responsible.sum(axis=0) / np.maximum((visible / (visible @ weights)[:, None]).sum(axis=0), 1e-12)
        weights = np.maximum(weights / weights[0], 1e-12)
    return Neighbors(weights=weights / weights.sum(), unigram=unigram)


def _neighbors(
    x_t: Int[Array, "b t h w"] | np.ndarray, x0: Int[Array, "b t h w"] | np.ndarray, mask_id: int
) -> tuple[Float[Array, "b t h w 6"], Float[Array, "b t h w 6"]]:
    """Return for each of six neighbors whether it is visible, and whether it is visible and equals `x0`."""
    padded = jnp.pad(jnp.asarray(x_t), ((0, 0), (1, 1), (1, 1), (1, 1)), constant_values=mask_id)
    inner = [slice(None), slice(1, -1), slice(1, -1), slice(1, -1)]
    shifted = []
    for axis, step in _OFFSETS:
        part = list(inner)
        part[axis] = slice(1 + step, padded.shape[axis] - 1 + step)
        shifted.append(padded[tuple(part)])
    tokens = jnp.stack(shifted, axis=-1)
    return (tokens != mask_id).astype(jnp.float32), (tokens == jnp.asarray(x0)[..., None]).astype(jnp.float32)
