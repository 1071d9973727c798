"""`motionaura train` with the toy system registered: one process of a run.

Neighbors in the mesh are devices of different processes, as on the torus of a TPU.
"""

import sys
from unittest import mock

import jax

from motionaura_jax import train
from motionaura_jax.parallel import mesh
from motionaura_jax.systems import registry

registry.SYSTEMS["toy"] = "tests.training.toy:ToySystem"
_make_mesh = mesh.make_mesh


def interleaved(sizes, devices=None):
    """Make a mesh of all devices in which the clips of a process are not contiguous."""
    if devices is None:
        devices = [*jax.devices()[::2], *jax.devices()[1::2]]
    return _make_mesh(sizes, devices)


if __name__ == "__main__":
    with mock.patch.object(mesh, "make_mesh", interleaved):
        sys.exit(train.main())
