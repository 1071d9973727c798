"""Memory while loading a large encoder: its parameters and part of one shard, never two copies."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from motionaura_jax.core.trees import path_name
from motionaura_jax.models.encoders import tensor_maps
from motionaura_jax.models.encoders.config import T5Config
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.weights.convert import slots

BILLION = {
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 23,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
}
SHARD = 600e6  # bytes

CHILD = """
import re, sys
import jax
from motionaura_jax.weights.towers import open_tower

def peak():  # of this program alone: getrusage counts what the process was before it, too
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = peak()
tower = jax.block_until_ready(open_tower(sys.argv[1], "t5", dtype=sys.argv[2]))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(tower.params))
count = sum(leaf.size for leaf in jax.tree.leaves(tower.params))
print(before, peak(), size, count)
"""


def write_zeros(path, tensors):
    """Write a sparse safetensors file of zeros, which takes no time or disk space; `tensors` maps names to shapes."""
    header, end = {}, 0
    for name, leaf in tensors.items():
        start, end = end, end + leaf.size * leaf.dtype.itemsize
        kind = {"bfloat16": "BF16", "float32": "F32"}[leaf.dtype.name]
        header[name] = {"dtype": kind, "shape": leaf.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)


def write_shards(folder, dtype):
    """Write the tensors of an encoder in shards of about SHARD bytes; return the size of the largest."""
    ids = jax.ShapeDtypeStruct((1, 4), np.int32)
    tree = jax.eval_shape(T5Encoder(T5Config(**BILLION)).init, jax.random.key(0), ids, ids)["params"]
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    layout = tensor_maps.t5(["shared.weight", ".wi_1."])
    places, shard, sizes = {}, {}, []

    def flush():
        name = f"model-{len(sizes):05}.safetensors"
        write_zeros(folder / name, shard)
        places.update(dict.fromkeys(shard, name))
        sizes.append((folder / name).stat().st_size)
        shard.clear()

    for name, slot in sorted(slots(layout, {key: leaf.shape for key, leaf in leaves.items()}).items()):
        shape = leaves[slot.leaf].shape[slot.index is not None :]
        shard[name] = jax.ShapeDtypeStruct(slot.view(np.broadcast_to(np.zeros(()), shape)).shape, dtype)
        if sum(leaf.size * leaf.dtype.itemsize for leaf in shard.values()) > SHARD:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **BILLION}))
    return max(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_billion_parameters_open_in_their_own_size_and_a_shard(tmp_path, dtype, capsys):
    largest = write_shards(tmp_path, jax.numpy.dtype(dtype))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), dtype], capture_output=True, text=True, check=True
    )
    before, peak, size, count = map(int, child.stdout.split())
    with capsys.disabled():
        print(f"\n{dtype}: {count / 1e9:.2f} B parameters, {size / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB, of that")
        print(f"{before / 1e9:.2f} GB before opening; largest shard {largest / 1e9:.2f} GB")
    assert count > 1e9 and peak <= size + 1.3 * largest
