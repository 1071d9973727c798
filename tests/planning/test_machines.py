"""Device names and TPU topologies."""

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
        ("h100", 3, None),
    ],
)
def test_topologies_are_as_compact_as_they_can_be(name, chips, topology):
    assert machines.topology(name, chips) == topology


@pytest.mark.parametrize("chips", [2, 12])
def test_numbers_that_form_no_topology_are_refused(chips):
    with pytest.raises(UserError, match=rf"{chips} devices form no v5e topology; choose a power of two, at least 4"):
        machines.topology("v5e", chips)


def test_an_unknown_device_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"--device=h10: no such device; did you mean 'h100'"):
        machines.machine("h10")
