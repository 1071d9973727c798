"""Checksums of arrays against a loop over their bytes, and the changes they detect."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.weights.checksum import _sum, checksum

TREE = {
    "a": jnp.arange(6.0).reshape(2, 3),
    "b": jnp.ones((4,), jnp.bfloat16),
    "c": jnp.int32(3),
    "d": jnp.array([True, False]),
}


@pytest.mark.parametrize("name", TREE)
def test_the_sum_is_that_of_mixed_words(name):
    words = np.asarray(TREE[name])
    words = words.view(f"u{words.dtype.itemsize}").ravel().tolist()
    total = 0
    for place, word in enumerate(words):
        mixed = (word ^ (place * 0x9E3779B1) % 2**32) * 0x85EBCA77 % 2**32
        total += mixed ^ (mixed >> 15)
    assert int(_sum(TREE[name])) == total % 2**32


@given(place=st.integers(0, 5), bit=st.integers(0, 31))
def test_any_bit_counts(place, bit):
    array = np.asarray(TREE["a"]).copy()
    array.view("u4").reshape(-1)[place] ^= np.uint32(1 << bit)
    assert checksum({**TREE, "a": jnp.asarray(array)}) != checksum(TREE)


def test_places_and_order_count_and_names_do_not():
    assert checksum(TREE) == checksum(list(TREE.values())) != checksum(list(TREE.values())[::-1])
    assert checksum({"a": TREE["a"].T}) != checksum({"a": TREE["a"]}) != checksum({"a": TREE["a"][::-1]})
