"""Batches of clips by step, read with grain threads: the same (seed, step) gives the same batch in every run."""

import bisect
import dataclasses
import hashlib
import itertools
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypedDict

import grain
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.buckets import Bucket, Schedule
from motionaura_jax.data.clips import Crop, load_frames, sample_record, sample_rng
from motionaura_jax.data.frames import to_float
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.video import VideoError, check_duration, probe

MAX_ATTEMPTS = 100
"""Bad files in a row, for one sample, after which loading gives up."""
_BUCKET_STRIDE = 1_000_003


class Batch(TypedDict):
    """This process's parts of a batch; `video` in [-1, 1], `sample` its positions in the global batch.

    `index` says which records were read, after replacement; `caption` is "" where none is known.
    """

    video: Float32[np.ndarray, "b t h w 3"]
    fps: Float32[np.ndarray, " b"]
    sample: Int32[np.ndarray, " b"]
    index: Int64[np.ndarray, " b"]
    caption: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preflight:
    """How many files were probed and how many of them serve; `faults` are the lines of the others."""

    probed: int
    usable: int
    faults: tuple[str, ...]


class _Sample(NamedTuple):
    position: int
    record: int
    frames: UInt8[np.ndarray, "t h w 3"]


class NoUsableFile(UserError):
    """Not one of the files that were tried can be used."""


class Rejections:
    """Bad files, counted and appended to a JSON-lines file once each, whichever thread or earlier run met them first.

    Args:
      path: the file; with None, files are only counted.
    """

    def __init__(self, path: Path | None = None):
        self.path, self._lock = path, threading.Lock()
        self._files: set[str] = set()
        self._written: set[str] = set()
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            self._written = {file for line in lines if (file := _rejected_file(line))}

    def __len__(self) -> int:
        return len(self._files)

    def add(self, error: VideoError) -> None:
        """Counts a file once, and writes its fault and remedy unless an earlier run has."""
        file = str(error.path)
        with self._lock:
            self._files.add(file)
            if self.path is None or file in self._written:
                return
            self._written.add(file)
            row = json.dumps({"file": file, "reason": error.fault, "remedy": error.remedy}, ensure_ascii=False)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(row + "\n")
            except OSError as failure:
                raise UserError(f"{self.path}: cannot be written ({failure.strerror}); free disk space") from failure


class Loader:
    """Iterates over the batches of steps `start_step`, ..., `end_step` - 1 (forever if None).

    Args:
      records: the manifest; all processes must have the same.
      buckets: shapes and shares of the batches; batch sizes are global.
      seed: of the order, the windows and the crops, not negative.
      fps: frames per second of the clips of buckets that have no rate of their own.
      threads: decoding threads; 0 decodes in the calling thread.
      crop: "random" for training, "center" for evaluation.
      rejections: where bad files are noted; loaders may share it.
      parts, part_count: this process reads these of `part_count` equal parts of every batch.

    Raises:
      UserError: no records, or a batch size that has no such equal parts.
      NoUsableFile: while reading, if MAX_ATTEMPTS files in a row are bad.
    """

    def __init__(
        self,
        records: Sequence[Record],
        buckets: Sequence[Bucket],
        *,
        seed: int,
        fps: float,
        start_step: int = 0,
        end_step: int | None = None,
        threads: int = 4,
        crop: Crop = "random",
        rejections: Rejections | None = None,
        parts: Sequence[int] = (0,),
        part_count: int = 1,
    ):
        if not records:
            raise UserError("the data has no records; check data.manifest")
        self.schedule = Schedule.from_buckets(buckets)
        for bucket in buckets:
            if bucket.batch_size % part_count:
                raise UserError(
                    f"batch size {bucket.batch_size} does not divide into {part_count} parts; "
                    f"make data.batch_size a multiple of {part_count}"
                )
        self._records, self._seed, self._fps, self._crop = records, seed, fps, crop
        self._start, self._end, self._threads = start_step, end_step, threads
        self._parts, self._part_count = parts, part_count
        self._rejections = rejections if rejections is not None else Rejections()

    def batch(self, step: int) -> Batch:
        """Returns the batch of any step, exactly as iteration gives it."""
        return self._assemble(step, [self._sample(step, offset) for offset in range(self._local_size(step))])

    def __iter__(self) -> Iterator[Batch]:
        source = _StepSamples(self)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=4 * self._threads)
        samples = iter(grain.MapDataset.source(source).to_iter_dataset(options))
        steps = itertools.count(self._start) if self._end is None else range(self._start, self._end)
        for step in steps:
            yield self._assemble(step, [next(samples) for _ in range(self._local_size(step))])

    def _local_size(self, step: int) -> int:
        return self.schedule.bucket(step).batch_size // self._part_count * len(self._parts)

    def _sample(self, step: int, offset: int) -> _Sample:
        """The `offset`-th sample of this process's parts of a step, bad files replaced."""
        bucket = self.schedule.bucket(step)
        part, within = divmod(offset, bucket.batch_size // self._part_count)
        position = self._parts[part] * (bucket.batch_size // self._part_count) + within
        number = self.schedule.first_sample(step) + position
        seed = self._seed + _BUCKET_STRIDE * self.schedule.index(step)
        for attempt in range(MAX_ATTEMPTS):
            index = sample_record(seed, number, len(self._records), attempt)
            try:
                frames = load_frames(
                    self._records[index],
                    num_frames=bucket.num_frames,
                    height=bucket.height,
                    width=bucket.width,
                    fps=bucket.fps or self._fps,
                    rng=sample_rng(seed, number, attempt),
                    crop=self._crop,
                )
            except VideoError as error:
                self._rejections.add(error)
                last = error
            else:
                return _Sample(position, index, frames)
        listed = f"see {self._rejections.path}" if self._rejections.path else "remove bad files"
        raise NoUsableFile(f"{MAX_ATTEMPTS} files in a row cannot be used, the last one: {last}; {listed}")

    def _assemble(self, step: int, samples: Sequence[_Sample]) -> Batch:
        # Clips stay 8 bit until here: one float array per batch, not one per clip as well.
        return Batch(
            video=to_float(np.stack([sample.frames for sample in samples])),
            fps=np.full(len(samples), self.schedule.bucket(step).fps or self._fps, np.float32),
            sample=np.array([sample.position for sample in samples], np.int32),
            index=np.array([sample.record for sample in samples], np.int64),
            caption=[self._records[sample.record].caption or "" for sample in samples],
        )


class _StepSamples:
    """All samples of this process from `start_step` on, as one random-access source for grain."""

    def __init__(self, loader: Loader):
        self._loader = loader
        period = len(loader.schedule.pattern)
        sizes = (loader._local_size(loader._start + step) for step in range(period))
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        if self._loader._end is None:
            return sys.maxsize
        periods, rest = divmod(max(0, self._loader._end - self._loader._start), len(self._ends))
        return periods * self._ends[-1] + (self._ends[rest - 1] if rest else 0)

    def __getitem__(self, item: int) -> _Sample:
        periods, rest = divmod(item, self._ends[-1])
        within = bisect.bisect_right(self._ends, rest)
        offset = rest - (self._ends[within - 1] if within else 0)
        return self._loader._sample(self._loader._start + periods * len(self._ends) + within, offset)


def preflight(
    records: Sequence[Record],
    buckets: Sequence[Bucket],
    *,
    fps: float,
    limit: int = 64,
    threads: int = 8,
    rejections: Rejections | None = None,
) -> Preflight:
    """Probes up to `limit` evenly spaced files; a file serves if it is long enough for any of the buckets.

    Those that do not are noted in `rejections`.

    Raises:
      NoUsableFile: not one of the probed files serves; gives the first reason.
    """
    shortest = min(buckets, key=lambda bucket: (bucket.num_frames - 1) / (bucket.fps or fps))
    positions = np.unique(np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int))

    def fault(position: int) -> str | None:
        try:
            info = probe(records[position].path)
            check_duration(info, fps=shortest.fps or fps, num_frames=shortest.num_frames)
        except VideoError as error:
            if rejections is not None:
                rejections.add(error)
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        faults = tuple(line for line in pool.map(fault, positions.tolist()) if line)
    if len(faults) == len(positions):
        reason = faults[0] if faults else "the manifest has no records; check data.manifest"
        raise NoUsableFile(f"none of {len(positions)} probed files can be used, the first: {reason}")
    return Preflight(probed=len(positions), usable=len(positions) - len(faults), faults=faults)


def held_out_split(records: Sequence[Record], fraction: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Splits records into (train, held out) by a hash of (seed, id).

    A file keeps its side when others are added or removed, and the rows of one file stay together.  About `fraction`
    (0 to below 1) of the files are held out; with two files or more neither side is empty, except that a fraction of 0
    holds out nothing.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction} is not at least 0 and below 1; choose for example 0.05")
    draws = {record.id: _unit_hash(f"{seed}:{record.id}") for record in records}
    held = {identity for identity, draw in draws.items() if draw < fraction}
    if fraction > 0 and len(draws) > 1:
        by_draw = sorted(draws, key=lambda identity: draws[identity])
        held = (held | {by_draw[0]}) - {by_draw[-1]}
    return [r for r in records if r.id not in held], [r for r in records if r.id in held]


def _unit_hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def _rejected_file(line: str) -> str | None:
    try:
        return json.loads(line)["file"]
    except (ValueError, KeyError, TypeError):
        return None
