"""Conversion of a pickled PyTorch file to safetensors: `python -m motionaura_jax.exporters.pytorch.unpickle SOURCE TARGET`.

`motionaura convert_weights` runs it in a separate process, so that a hostile or huge file cannot take the command down.
"""

import sys
import zipfile

import torch
from safetensors.torch import save_file


def unpickle(source: str, target: str) -> None:
    """Load the tensors of `source` with `weights_only` and save each as an independent copy.

    Raises:
      ValueError: the file is not a dict of named tensors.
      pickle.UnpicklingError: the pickle refers to anything but tensors; none of that code runs.
    """
    found = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError("is not a dict of named tensors")
    save_file({name: value.contiguous().clone() for name, value in found.items()}, target, {"format": "pt"})


if __name__ == "__main__":
    try:
        unpickle(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
