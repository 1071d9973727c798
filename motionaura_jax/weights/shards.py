"""Writer of tensors in the format of published models: one safetensors file, or shards with their index."""

import pathlib
from collections.abc import Iterable

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.media import write_json
from motionaura_jax.weights.tensors import INDEX


def write_shards(folder: pathlib.Path, name: str, tensors: Iterable[tuple[str, np.ndarray]], limit: int) -> None:
    """Write `name`, or several files within `limit` and their index; only one file's tensors are in memory at a time.

    Args:
      limit: largest size of one file in bytes; a larger tensor gets its own file.

    Raises:
      UserError: the disk is full or not writable.
    """
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = size = 0

    def flush() -> None:
        save_tensors(held, folder / f"{len(shards)}.safetensors")
        shards.append(list(held))
        held.clear()

    for tensor, array in tensors:
        if held and size + array.nbytes > limit:
            flush()
            size = 0
        held[tensor] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / name)
        return
    stem, suffix = name.split(".")
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"{stem}-{number + 1:05d}-of-{len(shards):05d}.{suffix}"
        (folder / f"{number}.safetensors").rename(folder / file)
        places |= dict.fromkeys(names, file)
    write_json(folder / f"{name}{INDEX}", {"metadata": {"total_size": total}, "weight_map": places})


def save_tensors(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Write one file that everybody may read.

    Raises:
      UserError: the disk is full or not writable.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be written ({error}); free disk space") from error
    path.chmod(0o644)  # safetensors makes files that only their owner can read
