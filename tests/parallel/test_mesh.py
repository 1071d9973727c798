"""Sizes of the mesh from settings and flags, and what has to divide over it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.errors import UserError
from motionaura_jax.parallel import mesh
from motionaura_jax.parallel.config import MeshConfig, parse, shown


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (MeshConfig(), 1, (1, 1, 1, 1)),
        (MeshConfig(), 8, (8, 1, 1, 1)),
        (MeshConfig(data=0, fsdp=2, sequence=2), 8, (2, 2, 1, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8, (2, 2, 2, 1)),
    ],
)
def test_data_takes_the_devices_that_are_left(config, devices, sizes):
    assert tuple(config.sizes(devices).values()) == sizes


@pytest.mark.parametrize(
    ("config", "devices"), [(MeshConfig(fsdp=3), 8), (MeshConfig(data=2), 8), (MeshConfig(tensor=4), 2)]
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(config, devices):
    with pytest.raises(UserError, match=rf"config\.mesh=.*: \d does not divide {devices} device.*choose"):
        config.sizes(devices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dat:2", "'dat' is no axis of a mesh; did you mean 'data'"),
        ("data", "write each axis once"),
        ("data:0", "write each axis once"),
        ("fsdp:2,fsdp:2", "write each axis once"),
        ("fsdp:x", "write each axis once"),
    ],
)
def test_a_flag_that_is_no_mesh_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


@given(st.fixed_dictionaries({axis: st.integers(1, 16) for axis in ("data", "fsdp", "tensor", "sequence")}))
def test_the_shown_form_of_a_mesh_is_read_back(sizes):
    devices = math.prod(sizes.values())
    assert parse(shown(sizes)).sizes(devices) == sizes


def test_slices_are_joined_along_data_and_then_fsdp():
    assert mesh.across_slices((4, 2, 1, 2), 4) == (4, 1, 1, 1)
    assert mesh.across_slices((2, 4, 1, 1), 4) == (2, 2, 1, 1)


def test_an_axis_across_slices_that_talks_in_every_layer_is_warned_of(caplog):
    assert mesh.across_slices((1, 1, 1, 8), 2) == (1, 1, 1, 2)
    assert "sequence runs across 2 slices" in caplog.text
    with pytest.raises(UserError, match="cannot be cut into 3 slices"):
        mesh.across_slices((4, 1, 1, 1), 3)


def test_a_batch_that_does_not_divide_is_refused_with_the_sizes_that_do():
    sizes = {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 2}
    mesh.check_batch(sizes, 24, accumulation=3)
    with pytest.raises(UserError, match=r"batch_size=30.*3 microbatch.*2 x 2 devices; choose 24 or 36"):
        mesh.check_batch(sizes, 30, accumulation=3)
    with pytest.raises(UserError, match="choose 4, or another mesh"):
        mesh.check_batch(sizes, 2)
