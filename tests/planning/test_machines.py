"""Device names, topologies, and what XLA is told about a GPU."""

import importlib.util

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.planning import machines


@pytest.mark.parametrize(
    ("name", "chips", "topology"),
    [
        ("v5e", 4, "v5e:2x2"),
        ("v5e", 32, "v5e:4x8"),
        ("v6e", 64, "v6e:8x8"),
        ("v5p", 16, "v5p:2x2x4"),
        ("h100", 3, "h100:1x1x3"),
        ("rtx4090", 3, None),
    ],
)
def test_topologies_are_as_compact_as_they_can_be(name, chips, topology):
    assert machines.topology(name, chips) == topology


@pytest.mark.parametrize("chips", [2, 12])
def test_numbers_that_form_no_topology_are_refused(chips):
    with pytest.raises(UserError, match=rf"{chips} devices form no v5e topology; choose a power of two, at least 4"):
        machines.topology("v5e", chips)


def test_an_unknown_device_is_answered_with_the_nearest():
    with pytest.raises(
        UserError, match=r"--device=h10: no such device; did you mean 'h100'\?; known: a100, a100-40, cpu,"
    ):
        machines.machine("h10")
    with pytest.raises(UserError, match=r"--device=zzz: no such device; known: a100, a100-40, cpu, [^?]*v6e$"):
        machines.machine("zzz")


@pytest.mark.parametrize("name", ["a100-40", "a100", "h100", "h200"])
def test_a_gpu_has_the_memory_that_its_name_says(name):
    machine = machines.machine(name)
    assert 0.98 < machine.gpu.memory / machine.memory / machines.GIB <= 1
    words = machine.gpu.target.split()
    assert words.count("{") == words.count("}") == 4 and f'"{machine.gpu.name}"' in machine.gpu.target
    assert words[words.index("shared_memory_per_block_optin:") + 1] == {"a": "166912", "h": "232448"}[name[0]]


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(machines.ctypes.util, "find_library", lambda name: None)

    def here(*modules):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in modules else None)
        return machines.missing()

    assert here() == ["jax-cuda12-plugin", "nvidia-cudnn-cu12"]
    assert here("jax_plugins.xla_cuda13") == ["nvidia-cudnn-cu12"]
    assert here("jax_plugins.xla_cuda12", "nvidia.cudnn") == []
