"""Arrays that a frozen model computed, found by the content that the model was given.

A cache is a mapping from keys to arrays, with two backends.  `MemoryCache` keeps the newest arrays of one process and is
filled on demand by `recall`.  `ArrayCache` is a folder of ArrayRecord shards: `fill` writes it ahead of training, and
training reads it.  A folder belongs to one model, which `cache.json` describes, and every key is a hash of model and
content.  Shards do not refer to one another, so any number of processes may write, stop, and continue as another number.
"""

import collections
import hashlib
import json
import os
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.files import check_regular, read_json
from motionaura_jax.data.media import write_json

META, SUFFIX = "cache.json", ".arrayrecord"
SHARD = 1024
"""Arrays per shard, and so the largest number that is computed again after an interruption."""

_KEY = 16  # bytes
_DTYPES = ("bfloat16", "float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64")
T = TypeVar("T")


class MemoryCache(MutableMapping[bytes, np.ndarray]):
    """The `limit` arrays that were last stored or read, in host memory, for any number of threads."""

    def __init__(self, limit: int):
        self._limit, self._lock = limit, threading.Lock()
        self._arrays: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()

    def __getitem__(self, key: bytes) -> np.ndarray:
        with self._lock:
            array = self._arrays[key]
            self._arrays.move_to_end(key)
            return array

    def __setitem__(self, key: bytes, array: np.ndarray) -> None:
        with self._lock:
            self._arrays[key] = array
            self._arrays.move_to_end(key)
            while len(self._arrays) > self._limit:
                self._arrays.popitem(last=False)

    def __delitem__(self, key: bytes) -> None:
        with self._lock:
            del self._arrays[key]

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def recall(
    cache: MutableMapping[bytes, np.ndarray], keys: Sequence[bytes], compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return the arrays of `keys` as one batch.

    If one of them is unknown, `compute` makes the whole batch, which is then kept: a batch of another size would have to
    be compiled.  `compute` must treat every row by itself.
    """
    found = [array for array in map(cache.get, keys) if array is not None]
    arrays = np.stack(found) if len(found) == len(keys) else np.asarray(compute())
    for key, array in zip(keys, arrays, strict=True):
        cache[key] = array
    return arrays


class ArrayCache(Mapping[bytes, np.ndarray]):
    """All arrays of the finished shards of a folder.  Each is read when it is asked for, from any thread.

    Attributes:
      meta: describes the model of the arrays; `dtype` is theirs.

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
            check_regular(shard, remedy="remove it")
            keys = self._read(shard, 0)
            if len(keys) % _KEY:
                raise _damaged(shard, f"{len(keys)} bytes of keys")
            places = range(0, len(keys), _KEY)
            self._places.update({keys[at : at + _KEY]: (shard, 1 + at // _KEY) for at in places})

    def __getitem__(self, key: bytes) -> np.ndarray:
        shard, position = self._places[key]
        data = self._read(shard, position)
        try:
            (axes,) = struct.unpack_from("<B", data)
            shape = struct.unpack_from(f"<{axes}q", data, 1)
            if min(shape, default=0) < 0:
                raise ValueError("a negative size")
            return np.frombuffer(data, self._dtype, offset=1 + 8 * axes).reshape(shape)
        except (struct.error, ValueError) as error:
            raise _damaged(shard, f"array {position}: {error}") from None

    def __contains__(self, key: object) -> bool:
        return key in self._places  # without reading the array

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def key(self, content: bytes) -> bytes:
        """Return the key of the array that belongs to `content`."""
        return content_key(self.meta, content)

    def _read(self, shard: Path, position: int) -> bytes:
        try:
            with self._lock:
                if shard not in self._readers:
                    options = "readahead_buffer_size:0,max_parallelism:0"
                    self._readers[shard] = ArrayRecordReader(str(shard), options)
                return self._readers[shard].read([position])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise _damaged(shard, str(error).split(";")[0] or "no records") from None


def _damaged(shard: Path, fault: str) -> UserError:
    return UserError(f"{shard}: is damaged ({fault}); delete it and run encode again")


def content_key(meta: Mapping[str, Any], content: bytes) -> bytes:
    """Hash the model that `meta` describes together with the content that it is given."""
    model = json.dumps(dict(meta), sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=_KEY, key=hashlib.blake2b(model).digest()).digest()


def text_content(text: str) -> bytes:
    """Return the content of a text for its key."""
    return text.encode("utf-8", "surrogatepass")


def file_content(path: Path) -> bytes:
    """Return the content of a file for its key: a hash of all its bytes.

    Raises:
      OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def clip_content(video: np.ndarray) -> bytes:
    """Return the content of a decoded clip for its key: a hash of its shape and pixels."""
    shape = np.array(video.shape, np.int64).tobytes()
    return hashlib.blake2b(shape + np.ascontiguousarray(video).tobytes(), digest_size=_KEY).digest()


def fill(
    folder: Path,
    meta: Mapping[str, Any],
    items: Mapping[bytes, T],
    compute: Callable[[Sequence[T]], Sequence[np.ndarray | None]],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Compute what a folder lacks and add it, shard by shard.  This process does every `process_count`-th item.

    Args:
      items: by key (see `content_key`), what `compute` takes.
      compute: maps up to SHARD items to their arrays.  An item with None is left out and tried again next time.

    Returns:
      The number of arrays added.

    Raises:
      UserError: the folder holds the cache of another model, or the disk is full.
    """
    # A folder without arrays is left by settings that fit no item, and may take others.
    filled = (folder / META).is_file() and any(folder.glob(f"*{SUFFIX}"))
    if filled and _read_meta(folder) != dict(meta):
        raise UserError(f"{folder}: was written with another model or other settings; give another --output")
    write_json(folder / META, dict(meta))
    known = ArrayCache(folder)
    # Shares are taken from all items, not from those that are left: other processes may be writing meanwhile.
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
    """Write a record of all keys, then one per array.  The file gets its name when it is complete."""
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
    path, remedy = folder / META, "delete the folder and run encode again"
    if not path.exists():
        raise UserError(f"{folder}: is no cache; make one with motionaura encode")
    meta = read_json(path, remedy=remedy)
    if meta.get("dtype") not in _DTYPES:
        raise UserError(f"{path}: is damaged (dtype {shown(repr(meta.get('dtype')))}); {remedy}")
    return meta


def _dtype(name: str) -> np.dtype:
    return np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
