"""Latents of clips that `motionaura encode --checkpoint` computed once, as a field of training batches."""

import contextlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.files import MAX_TEXT_BYTES, check_regular, read_json
from motionaura_jax.data.array_cache import META, ArrayCache, file_content
from motionaura_jax.data.buckets import ClipShape
from motionaura_jax.data.clips import load_clip
from motionaura_jax.data.fields import VIDEO, ClipField
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.media import write_text
from motionaura_jax.data.preflight import NoUsableFile, Preflight, Rejections
from motionaura_jax.data.video import VideoError

DTYPES = {"tokens": "int32", "latents": "float32"}
"""Kinds of latents, codes and continuous values, by the names of their fields."""
FILES = "files.json"
"""Hashes of the encoded files, in the cache folder."""

_HASHING_THREADS = 8
_SHA256 = re.compile("[0-9a-f]{64}")


def latents_meta(kind: str, latent_space: str, shape: ClipShape) -> dict[str, Any]:
    """Return what identifies the latents in a cache: their kind, their latent space and the shape of the clips."""
    return {
        "kind": kind,
        "model": latent_space,
        "num_frames": shape.num_frames,
        "height": shape.height,
        "width": shape.width,
        "fps": shape.fps,
        "dtype": DTYPES[kind],
    }


def center_clip(record: Record, shape: ClipShape) -> np.ndarray:
    """Read the clip that `encode` encodes: the middle of the file in time and space, uint8 `(t, h, w, 3)`.

    Raises:
      VideoError: the file cannot be used.
    """
    return load_clip(record, shape, (VIDEO,), rng=np.random.default_rng(0), crop="center")[VIDEO.name]


class FileHashes:
    """Content of files for their keys.  A file is read only once: `save` keeps its hash next to the latents.

    A hash that was kept counts as long as the record's id and the size and time stamp of the file are the same.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / FILES
        self._known: dict[str, Any] = {}
        # Without the file, or if it is damaged, all files are read again.
        with contextlib.suppress(UserError):
            self._known = read_json(self._path, limit=MAX_TEXT_BYTES, remedy="remove it", strict=False)

    def content(self, record: Record) -> bytes:
        """Return what `array_cache.file_content` returns for the file of a record.

        Raises:
          UserError: the file cannot be read.
        """
        remedy = "check the path or the manifest row"
        status = check_regular(record.path, remedy=remedy)
        stamp = [status.st_size, status.st_mtime_ns]
        match self._known.get(record.id):
            case [size, time, str(content)] if [size, time] == stamp and _SHA256.fullmatch(content):
                return bytes.fromhex(content)
        try:
            hashed = file_content(record.path)
        except OSError as error:
            raise UserError(f"{record.path}: cannot be read ({error.strerror}); {remedy}") from None
        self._known[record.id] = [*stamp, hashed.hex()]
        return hashed

    def save(self) -> None:
        """Write the hashes into the folder, in one process only.  Raises UserError on a failure of the disk."""
        write_text(self._path, json.dumps(self._known))


class CachedLatents:
    """Latents of the middle of each file, read from a folder that `encode` wrote.  No video is decoded.

    Args:
      folder: the cache.
      kind: "tokens" or "latents".
      latent_space: of the autoencoder that the run uses.
      shapes: clip shapes of the run; all must be the one in the cache.

    Attributes:
      field: for the loader; int32 `tokens` (b, t, h, w) or float32 `latents` (b, t, h, w, c) in a batch.

    Raises:
      UserError: no cache, or one of another kind, latent space or clip shape.
    """

    def __init__(self, folder: str | Path, kind: str, latent_space: str, shapes: Sequence[ClipShape]):
        self._cache = ArrayCache(folder)
        self._hashes, self._shape = FileHashes(folder), shapes[0]
        meta = dict(self._cache.meta)
        again = "run motionaura encode --checkpoint=AUTOENCODER"
        wanted = [latents_meta(kind, latent_space, shape) for shape in shapes]
        if meta.get("kind") != kind or meta.keys() != wanted[0].keys():
            raise UserError(
                f"{folder}: holds no {kind} of clips, but {meta.get('kind')}; {again} with another --output"
            )
        if meta["model"] != latent_space:
            raise UserError(
                f"{folder}: holds {kind} of latent space {meta['model']}, but this run has {latent_space}; {again} again "
                f"with this run's autoencoder and another --output"
            )
        for shape, other in zip(shapes, wanted, strict=True):
            if meta != other:
                sizes = {name: meta[name] for name in ("num_frames", "height", "width", "fps")}
                if not all(isinstance(size, int | float) and 0 < size < 2**31 for size in sizes.values()):
                    raise UserError(f"{folder}: its {META} is damaged ({shown(sizes)}); {again} with another --output")
                held = ClipShape(**sizes)
                flags = f"--num_frames={shape.num_frames} --height={shape.height} --width={shape.width}"
                raise UserError(
                    f"{folder}: holds clips of {held}, but this run trains on {shape}; {again} {flags} "
                    f"--fps={shape.fps:g} again with another --output"
                )
        self.field = ClipField(name=kind, load=self._load, source=VIDEO.name, check=self._check)

    def _load(self, record: Record, shape: ClipShape) -> np.ndarray:
        key = self._key(record)
        if key is None:
            raise VideoError(
                record.path, f"has no {self.field.name} in {self._cache.folder}", "run motionaura encode again"
            )
        return self._cache[key]

    def _key(self, record: Record) -> bytes | None:
        """Return the key of a record, or None if the cache lacks it or the file cannot be read."""
        try:
            key = self._cache.key(self._hashes.content(record))
        except UserError:
            return None
        return key if key in self._cache else None

    def _check(self, records: Sequence[Record], rejections: Rejections) -> Preflight:
        """Refuse records that the cache should hold and does not.  Files that `encode` cannot use may be missing.

        Raises:
          UserError: a usable file has no latents.
          NoUsableFile: not one file has latents.
        """
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            known = list(pool.map(lambda record: self._key(record) is not None, records))
        missing = [record for record, found in zip(records, known, strict=True) if not found]
        faults = []
        for record in missing:
            # Only a look at the whole clip tells whether `encode` could not use it or has not seen it.
            try:
                center_clip(record, self._shape)
            except VideoError as error:
                rejections.add(error)
                faults.append(str(error))
            else:
                raise UserError(
                    f"{self._cache.folder}: lacks {record.id}, one of {len(missing)} files without {self.field.name}; "
                    f"run motionaura encode --checkpoint again with this manifest"
                )
        if len(missing) == len(records):
            raise NoUsableFile(
                f"{self._cache.folder}: none of {len(records)} files can be used, the first: {faults[0]}"
            )
        return Preflight(probed=len(records), usable=len(records) - len(missing), faults=tuple(faults))
