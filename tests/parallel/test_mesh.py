"""Mesh sizes from settings and flags, and the sizes that must divide over the mesh."""

import dataclasses
import itertools
import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from motionaura_jax.core.errors import UserError
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
        ("dat:2", "'dat' is not a mesh axis; did you mean 'data'"),
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


@dataclasses.dataclass(frozen=True)
class Tpu:
    """Simulated TPU chip."""

    device_kind: str
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    id: int
    platform: str = "tpu"
    core_on_chip: int = 0


def tpus(kind, x, y, z, slices=1):
    """Return chips in the order of `jax.devices`, host by host; each host has a 2 x 2 square."""
    places = itertools.product(range(slices), range(z), range(y), range(x))
    hosts = {place: (place[0], place[1], place[2] // 2, place[3] // 2) for place in places}
    numbers = {host: number for number, host in enumerate(sorted(set(hosts.values())))}
    ordered = sorted(hosts, key=lambda place: (hosts[place], place))
    return [Tpu(kind, at[0], at[:0:-1], numbers[hosts[at]], number) for number, at in enumerate(ordered)]


@pytest.mark.parametrize(
    ("devices", "config"),
    [
        (tpus("TPU v5 lite", 4, 4, 1), MeshConfig(fsdp=8)),
        (tpus("TPU v6 lite", 4, 4, 1), MeshConfig(fsdp=8)),
        (tpus("TPU v6 lite", 4, 4, 1), MeshConfig(sequence=2)),
        (tpus("TPU v4", 4, 4, 4), MeshConfig(fsdp=32)),
        (tpus("TPU v5p", 4, 4, 4, slices=2), MeshConfig(fsdp=8, tensor=2)),
    ],
)
def test_any_mesh_that_divides_the_devices_lies_on_the_torus_of_a_tpu(devices, config):
    made = mesh.make_mesh(config, devices)
    assert dict(made.shape) == config.sizes(len(devices)) and set(made.devices.flat) == set(devices)
    assert set(made.axis_types) == {AxisType.Auto}
    inner = made.devices.reshape(-1, made.shape["tensor"] * made.shape["sequence"])
    assert all(len({chip.slice_index for chip in row}) == 1 for row in inner)  # axes with traffic in every layer


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(fsdp=4), MeshConfig(fsdp=2, tensor=4)])
def test_each_host_of_a_tpu_reads_the_clips_of_its_devices(config, monkeypatch):
    made = mesh.make_mesh(config, tpus("TPU v6 lite", 4, 4, 1))
    place = {device: part for part, row in enumerate(made.devices.reshape(-1, config.tensor)) for device in row}
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts, count = mesh.batch_parts(made)
        assert count == mesh.batch_shards(made)
        assert parts == tuple(sorted({place[device] for device in place if device.process_index == host}))


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
