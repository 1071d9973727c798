"""The random numbers of our samplers in the form the exported ones take, so that both sample the same tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.diffusion.categorical import gumbel


class OurNoise:
    """Noise that splits keys as `diffusion.samplers` does for `sampler`."""

    def __init__(self, keys, sampler):
        self._keys, self._order = keys, None
        if sampler != "ancestral":
            self._keys, self._order = _split(keys)

    def uniform(self, name, step, shape):
        """Return reveal noise of the ancestral sampler, or the random order."""
        keys = self._order if name == "order" else self._of(step)[1]
        return _tensor(jax.vmap(lambda key: jax.random.uniform(key, tuple(shape)))(keys))

    def gumbel(self, name, step, shape):
        """Return noise for token sampling, or for choosing positions."""
        return _tensor(gumbel(self._of(step)[0 if name == "draw" else 1], tuple(shape)))

    def integers(self, name, sizes):
        """Return shifts of the Halton order."""
        one = lambda key: jax.random.randint(key, (len(sizes),), 0, jnp.asarray(tuple(sizes)))  # noqa: E731
        return _tensor(jax.vmap(one)(self._order))

    def _of(self, step):
        return _split(jax.vmap(jax.random.fold_in, (0, None))(self._keys, step))


def _split(keys):
    both = jax.vmap(jax.random.split)(keys)
    return both[:, 0], both[:, 1]


def _tensor(array):
    import torch

    return torch.from_numpy(np.array(array))
