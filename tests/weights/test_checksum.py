"""Checksums of arrays against a loop over their bytes, and the changes they detect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.weights.checksum import _sum, _sum_on_host, begin, checksum

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
    assert int(_sum(TREE[name])) == int(_sum_on_host(np.asarray(TREE[name]))) == total % 2**32


def test_both_ways_agree_for_arrays_of_any_layout():
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    for array in (x, x.T, x[:, ::2], x[:0], np.float32(2.0)):
        assert int(_sum_on_host(np.asarray(array))) == int(_sum(jnp.asarray(array)))


def test_arrays_in_host_memory_compile_nothing():
    events, tree = [], {"a": jnp.zeros((7, 11, 13)), "b": np.ones(17)}

    def note(event, *_, **__):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    begin(tree)
    jax.monitoring.unregister_event_duration_listener(note)
    assert not events


@given(place=st.integers(0, 5), bit=st.integers(0, 31))
def test_any_bit_counts(place, bit):
    array = np.asarray(TREE["a"]).copy()
    array.view("u4").reshape(-1)[place] ^= np.uint32(1 << bit)
    assert checksum({**TREE, "a": jnp.asarray(array)}) != checksum(TREE)


def test_places_and_order_count_and_names_do_not():
    assert checksum(TREE) == checksum(list(TREE.values())) != checksum(list(TREE.values())[::-1])
    assert checksum({"a": TREE["a"].T}) != checksum({"a": TREE["a"]}) != checksum({"a": TREE["a"][::-1]})
