"""Conversion of a pickled PyTorch file to safetensors: `python -P -m motionaura_jax.exporters.pytorch.unpickle SOURCE TARGET`.

`motionaura convert_weights` runs it in a separate process, so that a hostile or huge file cannot take the command down.
"""

import os
import pickle
import sys
import zipfile

import torch
from safetensors.torch import save_file

from motionaura_jax.weights.output import CONVERTED

COPIES = 4
"""Largest size of the output as a multiple of the input: tensors that share their elements are written apart."""
SLACK = 2**20  # bytes, for files whose size is mostly overhead


class Refused(Exception):
    """Fault of a file, in our own words."""


def unpickle(source: str, target: str) -> None:
    """Load the tensors of `source` with `weights_only` and save each as an independent copy.

    Raises:
      Refused: the file is not a dict of named tensors, is compressed, or its tensors take more room than the file.
      pickle.UnpicklingError: the pickle refers to anything but tensors; none of that code runs.
    """
    limit = most_bytes(source)
    zipped = zipfile.is_zipfile(source)
    if zipped:
        _check_archive(source)
    found = torch.load(source, map_location="cpu", weights_only=True, mmap=zipped)
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise Refused("it is not a dict of named tensors")
    for name, value in found.items():
        _check_tensor(name, value)
    total = sum(value.nbytes for value in found.values())
    if total > limit:
        raise Refused(f"its tensors share their elements and would take {total} bytes, {limit} at most are written")
    save_file({name: value.contiguous().clone() for name, value in found.items()}, target, CONVERTED)


def most_bytes(source: str) -> int:
    """Return the largest size of all tensors of the output."""
    return COPIES * os.path.getsize(source) + SLACK


def limit_resources(source: str) -> None:
    """Bound disk and memory of this process by the size of `source`, in case a tensor is larger than it says."""
    if sys.platform == "win32":
        return
    import resource

    # The constants are room for the header of the output, and for the libraries with the stacks of their threads.
    sizes = {
        resource.RLIMIT_FSIZE: most_bytes(source) + 2**27,
        resource.RLIMIT_DATA: 10 * os.path.getsize(source) + 2**33,
    }
    for kind, size in sizes.items():
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (size if most < 0 else min(size, most), most))


def _check_archive(source: str) -> None:
    """Refuse an archive that unpacks to more than its size; torch itself never compresses."""
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(
        entry.file_size for entry in entries
    ) > os.path.getsize(source):
        raise Refused("it is a compressed archive, which torch does not write")


def _check_tensor(name: str, value: torch.Tensor) -> None:
    """Refuse tensors with more elements than are stored, such as expanded ones, and those of other layouts."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise Refused(f"{name[:80]!r} is a sparse, quantized or empty tensor")
    if value.nbytes > value.untyped_storage().nbytes():
        raise Refused(f"{name[:80]!r} repeats its elements: {value.nbytes} bytes of them are not in the file")


def _reason(error: Exception) -> str:
    """Describe a failure in our own words: torch's messages tell how to load a file unsafely."""
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds other objects than tensors, which are never loaded"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"it is damaged or of an unknown form: {type(error).__name__}"


if __name__ == "__main__":
    try:
        limit_resources(sys.argv[1])
        unpickle(*sys.argv[1:])
    except Exception as error:
        sys.exit(_reason(error))
