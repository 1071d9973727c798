"""Training of a codebook: start, k-means, exponential averages and restarts of dead codes.  docs/fidelity.md."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.quantizers import Tree, code_metrics, normalize
from motionaura_jax.ops.nearest import nearest_code

_JITTER = 1e-3  # of the standard deviation; keeps two centers from coinciding


def init_quantizer(config: MBQVAEConfig, key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Return fresh (params, extra) of the quantizer: random, unused codes; both are empty without a codebook."""
    if config.quantizer not in ("vq", "vq_ema"):
        return {}, {}
    shape = (config.codebook_size, config.latent_dim)
    codes = normalize(config, jax.random.normal(key, shape) * shape[1] ** -0.5)
    usage = {"usage": jnp.zeros(shape[0]), "idle": jnp.zeros(shape[0], jnp.int32)}
    params = {"codebook": codes} if config.quantizer == "vq" else {}
    return set_codebook(config, params, usage, codes)


def set_codebook(config: MBQVAEConfig, params: Tree, extra: Tree, codes: Float[Array, "k d"]) -> tuple[Tree, Tree]:
    """Replace all codes, e.g. by the centers of `kmeans`, and forget their averages."""
    codes = codes.astype(jnp.float32)
    if config.quantizer == "vq":
        return {**params, "codebook": codes}, extra
    # Copy: a training step donates both buffers.
    return params, {**extra, "codebook": codes, "count": jnp.ones(codes.shape[0]), "sum": jnp.copy(codes)}


def kmeans(
    config: MBQVAEConfig, key: Key[Array, ""], vectors: Float[Array, "n d"], *, iterations: int = 10
) -> Float[Array, "k d"]:
    """Run Lloyd's algorithm from a random subset of encoder outputs, on the unit sphere if `config.l2`.

    No iteration raises the distortion: empty clusters move to random vectors, which can only lower it.  With n < k the
    surplus centers are jittered copies of vectors.
    """
    vectors = normalize(config, vectors)
    size = config.codebook_size
    first, later = jax.random.split(key)
    order = jax.random.permutation(first, vectors.shape[0])
    centers = vectors[order[jnp.arange(size) % vectors.shape[0]]]
    surplus = jnp.arange(size)[:, None] >= vectors.shape[0]
    centers = normalize(config, jnp.where(surplus, centers + _jitter(first, vectors, size), centers))

    def lloyd(centers: Array, key: Array) -> tuple[Array, None]:
        assigned = nearest_code(vectors, centers, impl=config.nearest_impl)
        counts = jnp.zeros((size, 1)).at[assigned].add(1.0)
        means = jnp.zeros_like(centers).at[assigned].add(vectors) / jnp.maximum(counts, 1.0)
        spare = vectors[jax.random.randint(key, (size,), 0, vectors.shape[0])] + _jitter(key, vectors, size)
        return normalize(config, jnp.where(counts > 0, means, spare)), None

    return jax.lax.scan(lloyd, centers, jax.random.split(later, iterations))[0]


def _jitter(key: Key[Array, ""], vectors: Float[Array, "n d"], size: int) -> Float[Array, "k d"]:
    return _JITTER * vectors.std(0) * jax.random.normal(jax.random.fold_in(key, 1), (size, vectors.shape[1]))


def advance(
    config: MBQVAEConfig,
    params: Tree,
    extra: Tree,
    stats: Tree,
    key: Key[Array, ""],
    step: Int[Array, ""] | int,
    total_steps: int,
) -> tuple[Tree, Tree, Tree]:
    """Update averages and usage counters and restart dead codes, once per optimizer step after the gradient.

    The last step of a continuous phase replaces the codebook by k-means over the candidates.

    Args:
      stats: `Quantized.stats` of all microbatches on a new leading axis; their number does not change the result.
      key: chooses the candidates that replace dead codes.

    Returns:
      (params, extra, metrics); metrics are `perplexity`, `usage` and, with a codebook, `restarts`; empty for 'none'.
    """
    if "counts" not in stats:
        return params, extra, {}
    counts = stats["counts"].sum(0)
    metrics = code_metrics(counts)
    if config.quantizer not in ("vq", "vq_ema"):
        return params, extra, metrics
    if config.quantizer == "vq_ema":
        extra = _average(config, extra, counts, stats["sums"].sum(0))
    extra, dead = _find_dead(config, extra, counts, step, total_steps)
    pool = jax.random.permutation(key, stats["candidates"].reshape(-1, config.latent_dim))
    rank = jnp.cumsum(dead) - 1
    # The i-th dead code takes the i-th candidate.  Codes beyond the pool wait for the next step: no two may be equal.
    dead = dead & (rank < pool.shape[0])
    fresh = pool[jnp.clip(rank, 0, pool.shape[0] - 1)]
    params, extra = _replace(config, params, extra, dead, fresh, counts.mean())
    start = config.first_quantized_step(total_steps)
    if start:
        fit = lambda: _fit(config, key, params, extra, pool)  # noqa: E731
        params, extra = jax.lax.cond(step + 1 == start, fit, lambda: (params, extra))
    return params, extra, {**metrics, "restarts": dead.sum().astype(jnp.float32)}


def _fit(config: MBQVAEConfig, key: Key[Array, ""], params: Tree, extra: Tree, pool: Array) -> tuple[Tree, Tree]:
    unused = {name: jnp.zeros_like(extra[name]) for name in ("usage", "idle")}
    return set_codebook(config, params, {**extra, **unused}, kmeans(config, key, pool))


def _average(config: MBQVAEConfig, extra: Tree, counts: Float[Array, " k"], sums: Float[Array, "k d"]) -> Tree:
    decay, epsilon = config.ema_decay, config.ema_epsilon
    count = decay * extra["count"] + (1 - decay) * counts
    total = decay * extra["sum"] + (1 - decay) * sums
    # Laplace smoothing keeps rarely used codes from dividing by almost nothing.
    smoothed = (count + epsilon) / (count.sum() + epsilon * count.shape[0]) * count.sum()
    return {**extra, "count": count, "sum": total, "codebook": total / smoothed[:, None]}


def _find_dead(
    config: MBQVAEConfig, extra: Tree, counts: Float[Array, " k"], step: Int[Array, ""] | int, total_steps: int
) -> tuple[Tree, Array]:
    hits = counts.mean()  # expected per code in this step, under uniform use
    relative = counts / jnp.maximum(hits, 1e-9)  # 1 for every code under uniform use
    # A step with fewer hits than codes says little about each: it counts as that part of a step, in the average and in the
    # patience. Otherwise large codebooks would restart codes that chance left out for a while.
    decay = jnp.where(hits < 1, config.usage_decay**hits, config.usage_decay)
    usage = decay * extra["usage"] + (1 - decay) * relative
    idle = jnp.where(usage < config.restart_threshold, extra["idle"] + 1, 0)
    dead = (idle * jnp.minimum(hits, 1) >= config.restart_patience) & (step < config.restart_until * total_steps)
    return {**extra, "usage": usage, "idle": idle}, dead


def _replace(
    config: MBQVAEConfig, params: Tree, extra: Tree, dead: Array, fresh: Float[Array, "k d"], uniform: Array
) -> tuple[Tree, Tree]:
    extra = {**extra, "idle": jnp.where(dead, 0, extra["idle"])}
    if config.quantizer == "vq":
        return {**params, "codebook": jnp.where(dead[:, None], fresh, params["codebook"])}, extra
    return params, {
        **extra,
        "codebook": jnp.where(dead[:, None], fresh, extra["codebook"]),
        "count": jnp.where(dead, uniform, extra["count"]),
        "sum": jnp.where(dead[:, None], fresh * uniform, extra["sum"]),
    }
