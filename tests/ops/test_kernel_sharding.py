"""Kernels with the batch split over devices: no activation moves, only kernel gradients are summed."""

import json
import os
import subprocess
import sys

import pytest

# In a separate process, because the number of devices is fixed once JAX has started.
PROGRAM = """
import json, re, sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from motionaura_jax.ops.conv3d import conv3d, pad3d
from motionaura_jax.ops.cross_entropy import linear_cross_entropy
from motionaura_jax.ops.depthwise import depthwise_conv3d, stacked_kernel_gradient
from motionaura_jax.ops.nearest import nearest_code
from motionaura_jax.ops.products import dense
from motionaura_jax.ops.upsample import conv_transpose_1x4x4

jax.config.update("jax_num_cpu_devices", 8)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

def collectives(function, x, weights, mesh=mesh, split=PartitionSpec("data")):
    specs = split, PartitionSpec()
    args = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip((x, weights), specs)
    ]
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(*args).compile().as_text()
    return re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?[(]", text)

def both_gradients(function):
    return jax.grad(lambda x, kernel: jnp.sum(function(x, kernel) ** 2), argnums=(0, 1))

def loss_gradients(hidden, table):
    target = jnp.zeros(hidden.shape[:2], int)
    return jax.grad(lambda *x: linear_cross_entropy(*x, target, chunk=50).sum(), argnums=(0, 1))(hidden, table)

def stacked(x, kernel):
    return stacked_kernel_gradient(pad3d(x, (3, 3, 3)), x + kernel.sum(), (3, 3, 3))

video = (16, 2, 8, 8, 4)
report = {
    "depthwise": collectives(both_gradients(depthwise_conv3d), video, (3, 3, 3, 4)),
    "stacked": collectives(stacked, video, (3, 3, 3, 4)),
    "conv3d": collectives(both_gradients(conv3d), video, (3, 3, 3, 4, 4)),
    "transpose": collectives(both_gradients(conv_transpose_1x4x4), video, (1, 4, 4, 4, 3)),
    "nearest": collectives(lambda z, codes: nearest_code(z, codes, chunk=64), (1024, 4), (200, 4)),
    "cross_entropy": collectives(loss_gradients, (16, 32, 8), (200, 8)),
}
tokens = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
rows = (4, 8, 16), (16, 8), tokens, PartitionSpec("data", "sequence")
report |= {
    "products": collectives(both_gradients(dense), (16, 8, 4), (4, 4)),
    "products of split tokens": collectives(dense, *rows),
}
json.dump(report, sys.stdout)
"""


@pytest.fixture(scope="module")
def report(root):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["depthwise", "stacked", "conv3d", "transpose", "cross_entropy", "products"])
def test_kernel_gradient_is_one_sum(report, name):
    assert report[name] == ["all-reduce"]


@pytest.mark.parametrize("name", ["nearest", "products of split tokens"])
def test_rows_stay_where_they_are(report, name):
    assert report[name] == []
