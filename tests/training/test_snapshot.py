"""Snapshots of a state: in host memory, independent of the original, each part copied once."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from motionaura_jax.parallel import rules
from motionaura_jax.training.checkpoint import snapshot


@pytest.mark.parametrize("place", ["mesh", "device"])
def test_a_copy_outlives_the_original(place):
    original = {"a": np.arange(12.0, dtype="float32").reshape(3, 4), "b": np.int32(5)}
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
    tree = jax.device_put(original, NamedSharding(mesh, PartitionSpec()) if place == "mesh" else jax.devices()[0])
    copy = snapshot(tree)
    jax.block_until_ready(jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 2, x), donate_argnums=0)(tree))
    assert tree["a"].is_deleted()
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(copy)} == {"pinned_host"}
    jax.tree.map(np.testing.assert_array_equal, copy, original)


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        ((), (4, 6), ("data", "fsdp")),
        ((), (16, 3), (("data", "fsdp"),)),
        (("fsdp",), (16, 3), (("fsdp", "data"),)),
        ((None, "fsdp"), (3, 8), (None, ("fsdp", "data"))),
        ((("data", "fsdp"),), (8,), (("data", "fsdp"),)),
        ((), (3, 5), ()),
        ((), (), ()),
    ],
)
def test_copies_on_several_devices_are_split_where_they_can_be(spec, shape, expected):
    sizes = {"data": 4, "fsdp": 2, "tensor": 1}
    assert rules.spread(PartitionSpec(*spec), shape, sizes) == PartitionSpec(*expected)
