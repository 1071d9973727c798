"""Conditioners together: one merged condition, dropout by name, and one key for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.conditioning.base import Conditioners, merge, repeat
from motionaura_jax.conditioning.scalars import Scalar


class Table:
    """Trained vectors by index; the last one is the null vector."""

    def __init__(self, rows):
        self.rows = rows

    def null(self):
        return np.array([self.rows])

    def init(self, key):
        return {"table": jax.random.normal(key, (self.rows + 1, 2))}

    def frozen(self):
        return None

    def read(self, frozen, raw):
        return raw

    def __call__(self, params, frozen, raw):
        return {"tokens": params["table"][raw][:, None]}


PARTS = Conditioners({"first": Table(3), "second": Table(4), "fps": Scalar("fps")})
RAW = {"first": np.array([0, 1]), "second": np.array([2, 3]), "fps": np.array([8.0, 24.0])}


def test_sequences_follow_each_other_and_scalars_unite():
    params = PARTS.init(jax.random.key(0))
    assert set(params) == {"first", "second"} and PARTS.frozen() == {}
    cond = PARTS(params, {}, RAW)
    assert cond.tokens.shape == (2, 2, 2) and bool(cond.token_mask.all())
    np.testing.assert_array_equal(cond.tokens[:, 1], params["second"]["table"][RAW["second"]])
    np.testing.assert_array_equal(cond.scalars["fps"], RAW["fps"])
    assert cond.concat is None


def test_one_condition_is_dropped_and_another_is_not():
    where = jnp.array([True, False])
    dropped = PARTS.drop(RAW, {"second": where})
    np.testing.assert_array_equal(dropped["second"], [4, 3])
    np.testing.assert_array_equal(dropped["first"], RAW["first"])
    with pytest.raises(ValueError, match="fps: this condition cannot be dropped"):
        PARTS.drop(RAW, {"fps": where})


def test_randomness_of_conditions_differs_and_that_of_the_first_is_the_key_itself():
    key, many = jax.random.key(3), jax.random.split(jax.random.key(3), 2)
    assert PARTS.key_of("first", key) == key
    assert PARTS.key_of("second", key) != key
    assert PARTS.key_of("second", many)[1] == PARTS.key_of("second", many[1])


def test_masks_come_along_and_default_to_all():
    one = {"tokens": jnp.ones((1, 2, 3)), "token_mask": jnp.array([[True, False]])}
    cond = merge({"a": one, "b": {"tokens": jnp.zeros((1, 1, 3))}})
    np.testing.assert_array_equal(cond.token_mask, [[True, False, True]])


@pytest.mark.parametrize("fields", [{"concat": jnp.zeros((1, 1, 1, 1, 1))}, {"scalars": {"fps": jnp.ones(1)}}])
def test_a_field_that_comes_twice_is_refused(fields):
    with pytest.raises(ValueError, match=r"'b': .* comes from another condition already"):
        merge({"a": fields, "b": fields})


def test_raw_inputs_are_repeated():
    assert repeat({"ids": np.zeros((1, 4))}, 3)["ids"].shape == (3, 4)
