"""Arrays that a frozen model made, on disk: shards of ArrayRecord, found by the content that the model was given.

A folder belongs to one model: `cache.json` says which, and every key is a hash of model and content.  Shards know nothing
of one another, so that any number of processes may write, stop, and go on in another number.
"""

import hashlib
import json
import os
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.media import write_json

META, SUFFIX = "cache.json", ".arrayrecord"
SHARD = 1024
"""Arrays in one shard, and so how many are computed again at most after an interruption."""

_KEY = 16  # bytes
T = TypeVar("T")


class ArrayCache(Mapping[bytes, np.ndarray]):
    """Key -> array, of all shards that are finished; an array is read when it is asked for, from any thread.

    Attributes:
      meta: which model the arrays come from; `dtype` is theirs.

    Raises:
      UserError: no cache there, or a damaged one.
    """

    def __init__(self, folder: str | Path):
        self.folder, self._lock = Path(folder), threading.Lock()
        self.meta = _read_meta(self.folder)
        self._dtype = _dtype(self.meta["dtype"])
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._readers: dict[Path, Any] = {}
        for shard in sorted(self.folder.glob(f"*{SUFFIX}")):
            keys = self._read(shard, 0)
            places = range(0, len(keys), _KEY)
            self._places.update({keys[at : at + _KEY]: (shard, 1 + at // _KEY) for at in places})

    def __getitem__(self, key: bytes) -> np.ndarray:
        data = self._read(*self._places[key])
        (axes,) = struct.unpack_from("<B", data)
        shape = struct.unpack_from(f"<{axes}q", data, 1)
        return np.frombuffer(data, self._dtype, offset=1 + 8 * axes).reshape(shape)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def key(self, content: bytes) -> bytes:
        """The key of what was made of `content`."""
        return content_key(self.meta, content)

    def _read(self, shard: Path, position: int) -> bytes:
        try:
            with self._lock:
                if shard not in self._readers:
                    options = "readahead_buffer_size:0,max_parallelism:0"
                    self._readers[shard] = ArrayRecordReader(str(shard), options)
                return self._readers[shard].read([position])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(
                f"{shard}: is damaged ({str(error).split(';')[0] or 'no records'}); delete it and run encode again"
            ) from None


def content_key(meta: Mapping[str, Any], content: bytes) -> bytes:
    """Hash of the model that `meta` describes and of what it is given."""
    model = json.dumps(dict(meta), sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=_KEY, key=hashlib.blake2b(model).digest()).digest()


def text_content(text: str) -> bytes:
    """What the key of a text is made of."""
    return text.encode("utf-8", "surrogatepass")


def file_content(path: Path) -> bytes:
    """What the key of a file is made of: a hash of all of its bytes.

    Raises:
      OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def fill(
    folder: Path,
    meta: Mapping[str, Any],
    items: Mapping[bytes, T],
    compute: Callable[[Sequence[T]], Sequence[np.ndarray | None]],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Adds to a cache what is not in it yet, shard by shard; this process does every `process_count`-th item.

    Args:
      items: key (see `content_key`) -> what `compute` takes.
      compute: maps up to SHARD items to their arrays; None is left out, and tried again next time.

    Returns:
      The number of arrays added.

    Raises:
      UserError: the folder holds the cache of another model, or a disk that is full.
    """
    if (folder / META).is_file() and _read_meta(folder) != dict(meta):
        raise UserError(f"{folder}: holds what another model or other settings made; give another --output")
    write_json(folder / META, dict(meta))
    known = ArrayCache(folder)
    # Which process does what depends on all items, not on those that are left: the others are writing meanwhile.
    mine = [key for key in sorted(items)[process_index::process_count] if key not in known]
    added = 0
    for start in range(0, len(mine), SHARD):
        keys = mine[start : start + SHARD]
        arrays = compute([items[key] for key in keys])
        made = {key: array for key, array in zip(keys, arrays, strict=True) if array is not None}
        if made:
            _write_shard(folder, made, _dtype(meta["dtype"]))
        added += len(made)
    return added


def _write_shard(folder: Path, arrays: Mapping[bytes, np.ndarray], dtype: np.dtype) -> None:
    """Writes the record of all keys, then one per array; the file has its name when it is whole."""
    keys = b"".join(arrays)
    name = hashlib.blake2b(keys, digest_size=8).hexdigest()
    draft = folder / f".{name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        writer = ArrayRecordWriter(str(draft), "group_size:1,uncompressed")
        writer.write(keys)
        for array in arrays.values():
            head = struct.pack(f"<B{array.ndim}q", array.ndim, *array.shape)
            writer.write(head + np.ascontiguousarray(array, dtype).tobytes())
        writer.close()
        os.replace(draft, folder / f"{name}{SUFFIX}")
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be written ({str(error).split(';')[0]}); free disk space") from error
    finally:
        draft.unlink(missing_ok=True)


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    try:
        meta = json.loads(path.read_text("utf-8"))
        _dtype(meta["dtype"])
    except FileNotFoundError:
        raise UserError(f"{folder}: is no cache; make one with motionaura encode") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); delete the folder and run encode again") from None
    return meta


def _dtype(name: str) -> np.dtype:
    return np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
