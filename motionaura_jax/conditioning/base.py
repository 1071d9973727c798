"""Conditioners: from raw inputs to fields of `Cond`, one by one and all of a system together.

A raw input is a pytree of arrays that lead with the batch, e.g. word ids or pixels of an image.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from motionaura_jax.core.types import Cond, PyTree
from motionaura_jax.parallel import constraints

Raw = PyTree
Fields = Mapping[str, Any]
"""Fields of `Cond` by name."""


class Conditioner(Protocol):
    """From one raw input to fields of `Cond`."""

    def host(self, batch: Mapping[str, Any]) -> Raw:
        """Return the raw input of a batch of the loader, on the host."""

    def abstract(self, size: int) -> PyTree:
        """Return shapes and dtypes of `host` for `size` samples."""

    def null(self) -> Raw:
        """Return the raw input that stands for no condition, as a batch of one.

        It is the only null of a condition: dropout in training and guidance use it alike.
        """

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Return fresh parameters, or None for a conditioner that never has any."""

    def frozen(self) -> PyTree:
        """Load the pretrained weights that `__call__` needs, or return None."""

    def read(self, frozen: PyTree, raw: Raw, /) -> Raw:
        """Return the same input in a form that `__call__` reads without `frozen`."""

    def __call__(self, params: PyTree, frozen: PyTree, raw: Raw, /) -> Fields:
        """Return fields of `Cond`."""


class Conditioners(Mapping[str, Any]):
    """The conditioners of a system by name; their parameters, frozen weights and raw inputs are dicts of these names."""

    def __init__(self, parts: Mapping[str, Conditioner]):
        """Name the parts.  The first one takes its randomness from keys as they are given, each other one from its own."""
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def host(self, batch: Mapping[str, Any]) -> dict[str, Raw]:
        """Return the raw inputs of a batch of the loader, on the host."""
        return {name: part.host(batch) for name, part in self.items()}

    def abstract(self, size: int) -> dict[str, PyTree]:
        """Return shapes and dtypes of `host` for `size` samples."""
        return {name: part.abstract(size) for name, part in self.items()}

    def init(self, key: Key[Array, ""]) -> dict[str, PyTree]:
        """Return fresh parameters of the conditioners that have some."""
        found = {name: part.init(self.key_of(name, key)) for name, part in self.items()}
        return {name: params for name, params in found.items() if params is not None}

    def frozen(self) -> dict[str, PyTree]:
        """Load the pretrained weights of the conditioners that have some."""
        found = {name: part.frozen() for name, part in self.items()}
        return {name: weights for name, weights in found.items() if weights is not None}

    def read(self, frozen: PyTree, raw: Mapping[str, Raw]) -> dict[str, Raw]:
        """Return the same inputs in a form that needs no `frozen`."""
        return {name: part.read(frozen.get(name), raw[name]) for name, part in self.items()}

    def drop(self, raw: Mapping[str, Raw], where: Mapping[str, Bool[Array, " b"]]) -> dict[str, Raw]:
        """Return the inputs with null in place of the samples for which `where[name]` is True."""
        return {**raw, **{name: _chosen(dropped, self[name].null(), raw[name]) for name, dropped in where.items()}}

    def key_of(self, name: str, key: Key[Array, "..."]) -> Key[Array, "..."]:
        """Return the key from which the conditioner `name` takes its randomness, for one key or for one per sample."""
        index = list(self).index(name)
        if not index:
            return key
        fold = jax.random.fold_in if key.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))
        return fold(key, index)

    def __call__(self, params: PyTree, frozen: PyTree, raw: Mapping[str, Raw]) -> Cond:
        """Return the condition of all raw inputs together."""
        return merge(
            {
                name: part(constraints.gathered(params.get(name, {})), frozen.get(name), raw[name])
                for name, part in self.items()
            }
        )


def merge(parts: Mapping[str, Fields]) -> Cond:
    """Return one condition from the fields of several conditioners.

    Token sequences follow each other in the order of `parts`, and scalars unite; any other field may come once.

    Raises:
      ValueError: two conditioners give the same field or scalar.
    """
    found: dict[str, Any] = {"scalars": {}}
    sequences = []
    for name, fields in parts.items():
        for field, value in fields.items():
            if field in ("tokens", "token_mask"):
                continue
            into, new = (found["scalars"], value) if field == "scalars" else (found, {field: value})
            if twice := into.keys() & new.keys():
                raise ValueError(f"condition {name!r}: {', '.join(sorted(twice))} comes from another condition already")
            into.update(new)
        if "tokens" in fields:
            tokens, mask = fields["tokens"], fields.get("token_mask")
            sequences.append((tokens, jnp.ones(tokens.shape[:2], bool) if mask is None else mask))
    if len(sequences) == 1:
        found["tokens"], found["token_mask"] = sequences[0]
    elif sequences:
        found["tokens"], found["token_mask"] = (jnp.concatenate(kind, axis=1) for kind in zip(*sequences, strict=True))
    return Cond(**found)


def repeat(raw: Raw, count: int) -> Raw:
    """Return a batch of `count` times the same raw input."""
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), count, axis=0), raw)


def _chosen(where: Bool[Array, " b"], null: Raw, raw: Raw) -> Raw:
    return jax.tree.map(lambda n, x: jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), n, x), null, raw)
