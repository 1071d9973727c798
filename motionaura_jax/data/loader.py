"""Batches of clips by step, read with grain threads: the same (seed, step) gives the same batch in every run."""

import bisect
import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.buckets import Bucket, Schedule
from motionaura_jax.data.clips import Crop, load_clip, sample_record, sample_rng
from motionaura_jax.data.fields import CAPTION, FPS, VIDEO, Field, resolve
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.preflight import NoUsableFile, Rejections
from motionaura_jax.data.video import VideoError

MAX_ATTEMPTS = 100
"""Unusable files in a row, for one sample, after which loading gives up."""
_BUCKET_STRIDE = 1_000_003

Batch = dict[str, Any]
"""This process's parts of a batch: one entry per field, and two that are always there.

`sample` is the position in the global batch, int32 (b,).  `index` is the record that was read, after replacement of files
that cannot be used, int64 (b,).
"""


class _Sample(NamedTuple):
    position: int
    record: int
    values: dict[str, Any]


class Loader:
    """Iterator over the batches of steps `start_step`, ..., `end_step` - 1 (forever if None).

    Args:
      records: the manifest; all processes must have the same.
      buckets: shapes and shares of the batches; batch sizes are global.
      fields: fields of a clip to read, by name or declared as in `data.fields`.
      seed: of the order, the windows and the crops; not negative.
      fps: frame rate of the buckets that have none of their own.
      threads: decoding threads; 0 decodes in the calling thread.
      crop: "random" for training, "center" for evaluation.
      flip: probability of mirroring a clip left to right.
      rejections: takes the files that cannot be used; loaders may share it.
      parts, part_count: this process reads these of `part_count` equal parts of every batch.

    Raises:
      UserError: no records, an unknown field, or a batch size that does not divide into equal parts.
      NoUsableFile: while reading, if MAX_ATTEMPTS files in a row cannot be used.
    """

    def __init__(
        self,
        records: Sequence[Record],
        buckets: Sequence[Bucket],
        *,
        fields: Sequence[str | Field] = (VIDEO, FPS, CAPTION),
        seed: int,
        fps: float,
        start_step: int = 0,
        end_step: int | None = None,
        threads: int = 4,
        crop: Crop = "random",
        flip: float = 0.0,
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
        self._records, self._fields = records, resolve(fields)
        self._seed, self._fps, self._crop, self._flip = seed, fps, crop, flip
        self._start, self._end, self._threads = start_step, end_step, threads
        self._parts, self._part_count = parts, part_count
        self._rejections = rejections if rejections is not None else Rejections()

    def batch(self, step: int) -> Batch:
        """Return the batch of any step, exactly as iteration gives it."""
        return self._assemble([self._sample(step, offset) for offset in range(self._local_size(step))])

    def __iter__(self) -> Iterator[Batch]:
        source = _StepSamples(self)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=4 * self._threads)
        samples = iter(grain.MapDataset.source(source).to_iter_dataset(options))
        steps = itertools.count(self._start) if self._end is None else range(self._start, self._end)
        for step in steps:
            yield self._assemble([next(samples) for _ in range(self._local_size(step))])

    def _local_size(self, step: int) -> int:
        return self.schedule.bucket(step).batch_size // self._part_count * len(self._parts)

    def _sample(self, step: int, offset: int) -> _Sample:
        """Read the `offset`-th sample of this process's parts of a step, replacing files that cannot be used."""
        bucket = self.schedule.bucket(step)
        part, within = divmod(offset, bucket.batch_size // self._part_count)
        position = self._parts[part] * (bucket.batch_size // self._part_count) + within
        number = self.schedule.first_sample(step) + position
        # Every bucket has a stream of its own; a large stride keeps their seeds apart.
        seed = self._seed + _BUCKET_STRIDE * self.schedule.index(step)
        for attempt in range(MAX_ATTEMPTS):
            index = sample_record(seed, number, len(self._records), attempt)
            rng = sample_rng(seed, number, attempt)
            try:
                values = load_clip(
                    self._records[index],
                    bucket.clip_shape(self._fps),
                    self._fields,
                    rng=rng,
                    crop=self._crop,
                    flip=self._flip,
                )
            except VideoError as error:
                self._rejections.add(error)
                last = error
            else:
                return _Sample(position, index, values)
        listed = f"see {self._rejections.path}" if self._rejections.path else "remove bad files"
        raise NoUsableFile(f"{MAX_ATTEMPTS} files in a row cannot be used, the last one: {last}; {listed}")

    def _assemble(self, samples: Sequence[_Sample]) -> Batch:
        fields = {
            field.name: field.collate([sample.values[field.name] for sample in samples]) for field in self._fields
        }
        return {
            **fields,
            "sample": np.array([sample.position for sample in samples], np.int32),
            "index": np.array([sample.record for sample in samples], np.int64),
        }


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


def held_out_split(records: Sequence[Record], fraction: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Split records into (train, held out) by a hash of (seed, id).

    A file keeps its side when others are added or removed, and the rows of one file stay together.  About `fraction`
    (0 to below 1) of the files are held out.  With two files or more neither side is empty, except that a fraction of 0
    holds out nothing.

    Raises:
      UserError: a fraction out of range.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction} is not at least 0 and below 1; choose for example 0.05")
    draws = {record.id: _unit_hash(f"{seed}:{record.id}") for record in records}
    held = {identity for identity, draw in draws.items() if draw < fraction}
    if fraction > 0 and len(draws) > 1:
        held = (held | {min(draws, key=draws.__getitem__)}) - {max(draws, key=draws.__getitem__)}
    return [r for r in records if r.id not in held], [r for r in records if r.id in held]


def _unit_hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:7], "big") / 2**56
