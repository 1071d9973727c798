"""Turns one pickled file of tensors into safetensors: `python -m motionaura_jax.exporters.pytorch.unpickle SOURCE TARGET`.

A process of its own, started by `motionaura convert_weights`, so that a hostile or huge file ends nothing else.
"""

import sys
import zipfile

import torch
from safetensors.torch import save_file


def unpickle(source: str, target: str) -> None:
    """Reads tensors and nothing else (`weights_only`), and writes each as a copy of its own.

    Raises:
      ValueError: the file holds no tensors by name.
      pickle.UnpicklingError: it asks for anything that is no tensor; nothing of that runs.
    """
    found = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError("holds no tensors by name")
    save_file({name: value.contiguous().clone() for name, value in found.items()}, target, {"format": "pt"})


if __name__ == "__main__":
    try:
        unpickle(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
