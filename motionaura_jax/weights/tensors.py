"""Published weights on disk: a safetensors file, or a folder with one file or with shards and their index. No pickles."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from motionaura_jax.core import files
from motionaura_jax.core.errors import UserError, listed

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
INDEX = ".index.json"
NUMPY = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names of dtypes in files -> names of NumPy. Others, such as the kinds of float8, are not read."""

_AGAIN = "download or copy it again"
_LONGEST_NAME = 255  # bytes that file systems allow
_MAX_AXES, _MAX_ELEMENTS = 32, 2**48
_BFLOAT16_INFINITY = 0x7F80
_PIECE = 1 << 26  # bytes read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """Tensor in a file. `dtype` is the name that safetensors uses: "F32", "BF16", "I64"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class TensorFiles(Mapping[str, Tensor]):
    """Tensors of a safetensors file or folder by name, in file order. Construction reads only the headers.

    Raises:
      UserError: there is no safetensors file (for a pickle, names the command that converts it), a file is damaged, or an
        index does not match its shards.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._tensors: dict[str, Tensor] = {}
        index = _locate(self.path)
        places = _read_index(index) if index.name.endswith(INDEX) else {index.name: None}
        for name, expected in places.items():
            found = _read_header(index.with_name(name))
            if expected is not None and found.keys() != expected:
                odd = listed(sorted(found.keys() ^ expected))
                raise UserError(f"{index}: does not match its shard {name}, which differs in {odd}; {_AGAIN}")
            self._tensors |= found

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str, into: np.ndarray) -> None:
        """Copy a tensor piece by piece into an array of its shape, casting to the dtype of the array.

        Raises:
          UserError: the file was damaged after construction, or a value is NaN or infinite.
        """
        rows = 0
        for piece in self._pieces(name):
            if not is_finite(piece):
                raise UserError(f"{self[name].file}: {name} holds values that are not numbers; use other weights")
            if not self[name].shape or 0 in self[name].shape:
                into[...] = piece
            else:
                into[rows : rows + len(piece)] = piece
                rows += len(piece)

    def whole(self, name: str) -> np.ndarray:
        """Return a tensor as published.

        Raises:
          UserError: see `read`.
        """
        pieces = list(self._pieces(name))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def digest(self, names: Iterable[str]) -> bytes:
        """Hash these tensors with their names, in alphabetical order; reads all of them."""
        digest = hashlib.sha256()
        for name in sorted(names):
            digest.update(repr((name, self[name].dtype, self[name].shape)).encode())
            for piece in self._pieces(name):
                digest.update(piece.tobytes())
        return digest.digest()

    def _pieces(self, name: str) -> Iterator[np.ndarray]:
        """Yield the tensor in slices along its first axis, or whole if it is a scalar or empty."""
        tensor = self[name]
        if tensor.dtype not in NUMPY:
            raise UserError(
                f"{tensor.file}: {name} has the dtype {tensor.dtype}, which is not read; convert it to bfloat16"
            )
        # Open the file for each tensor: pages read from a mapped file count as resident until it is closed.
        with _opened(tensor.file) as file:
            if not tensor.shape or 0 in tensor.shape:
                yield file.get_tensor(name)
                return
            part, row = file.get_slice(name), 8 * int(np.prod(tensor.shape[1:], dtype=np.int64))
            rows = max(1, _PIECE // max(1, row))
            for start in range(0, max(1, tensor.shape[0]), rows):
                yield part[start : min(start + rows, tensor.shape[0])]


def is_finite(array: np.ndarray) -> bool:
    """Tell whether an array holds neither NaN nor infinity; integers never do."""
    if array.dtype.kind in "biu":
        return True
    if array.dtype.name == "bfloat16":  # arithmetic on it is slow; the largest exponent marks NaN and infinity
        return array.size == 0 or int((np.ascontiguousarray(array).view(np.uint16) & 0x7FFF).max()) < _BFLOAT16_INFINITY
    with np.errstate(over="ignore", invalid="ignore"):
        # The sum takes no memory. It may overflow although all values are finite, so ask again then.
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def _locate(path: Path) -> Path:
    """Return the only safetensors file in `path`, or the index of its shards."""
    if path.is_file():
        return _refuse_pickle(path, [path])
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give a folder with config.json and model.safetensors")
    for pattern in (f"*.safetensors{INDEX}", "*.safetensors"):
        found = sorted(path.glob(pattern))
        usual = [file for file in found if file.name.removesuffix(INDEX) in NAMES]
        if len(usual or found) > 1:
            raise UserError(f"{path}: holds several weight files ({listed([f.name for f in found])}); give one of them")
        if found:
            return (usual or found)[0]
    return _refuse_pickle(path, sorted(file for file in path.iterdir() if file.suffix.lower() in PICKLES))


def _refuse_pickle(path: Path, files: list[Path]) -> Path:
    if path.is_file() and path.suffix.lower() not in PICKLES:
        return path
    if files:
        command = f"python -m motionaura_jax.convert_weights {path} --output=FOLDER"
        raise UserError(f"{files[0]}: a pickle can run any program and is not opened; convert it with `{command}`")
    raise UserError(
        f"{path}: holds no model.safetensors; give the folder of a published model, or convert its pickle with "
        f"motionaura convert_weights"
    )


def _read_index(path: Path) -> dict[str, set[str]]:
    """Map the file name of each shard to the names of its tensors."""
    places = files.read_json(path, remedy=_AGAIN).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(_is_shard, places.values())):
        raise UserError(f"{path}: is not an index of shards in the same folder; {_AGAIN}")
    shards: dict[str, set[str]] = {file: set() for file in sorted(set(places.values()))}
    absent = [file for file in shards if not path.with_name(file).is_file()]
    if absent:
        raise UserError(f"{path}: names missing shards: {listed(absent)}; {_AGAIN}")
    for name, file in places.items():
        shards[file].add(name)
    return shards


def _is_shard(name: Any) -> bool:
    """Tell whether a value of an index is the plain name of a file."""
    named = isinstance(name, str) and len(name.encode()) <= _LONGEST_NAME and "\0" not in name and "\\" not in name
    return named and Path(name).name == name and name not in ("", ".", "..")


def _read_header(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.offset_keys()}
        tensors = {
            name: Tensor(file=path, dtype=part.get_dtype(), shape=tuple(part.get_shape()))
            for name, part in parts.items()
        }
    for name, tensor in tensors.items():
        # An empty tensor has no bytes that would bound its other axes.
        if len(tensor.shape) > _MAX_AXES or math.prod(max(1, size) for size in tensor.shape) > _MAX_ELEMENTS:
            raise UserError(f"{path}: {name} has a shape that no array can have; {_AGAIN}")
    return tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    files.check_regular(path, remedy=_AGAIN)
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is not a complete safetensors file ({error}); {_AGAIN}") from None
