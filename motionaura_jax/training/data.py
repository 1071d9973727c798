"""Training clips of a run, and held-out clips for its evaluation."""

import collections
import dataclasses
import hashlib
import logging
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.files import expanded
from motionaura_jax.core.recipe import SCENES, DataConfig, EvaluateConfig, Recipe
from motionaura_jax.data.buckets import Bucket
from motionaura_jax.data.fields import CAPTION, FPS, VIDEO, ClipField, Field, FrameField, resolve, sources
from motionaura_jax.data.listing import check_no_output
from motionaura_jax.data.loader import Batch, Loader, held_out_split
from motionaura_jax.data.manifest import Record, read_manifest
from motionaura_jax.data.preflight import NoUsableFile, Preflight, Rejections, preflight
from motionaura_jax.data.windows import SkippedWindows
from motionaura_jax.parallel import distributed
from motionaura_jax.scenes import dataset

logger = logging.getLogger(__name__)

REJECTED = "rejected.jsonl"
PREPARATION_BATCHES, PREPARATION_CLIPS = 16, 16
EVALUATION_SEED = 2**31 - 1


class TrainingData:
    """Training batches as a function of the step, and fixed held-out batches.

    Args:
      parts, part_count: this process reads `parts` of the `part_count` equal parts of every training batch.
      fields: fields of a training batch, `System.fields`. For fields computed ahead, held-out batches carry the sources.

    Attributes:
      skipped: data that no step reads because its loss or gradient was not finite; part of every checkpoint.
      evaluation: held-out batches, with the same clips, crops and order at every evaluation. Construction decodes them, so
        that no file can fail once training has started.

    Raises:
      UserError: the manifest is missing, empty or has no usable clip for training or evaluation, or a field lacks clips.
    """

    def __init__(
        self,
        recipe: Recipe,
        workdir: pathlib.Path,
        parts: Sequence[int] = (0,),
        part_count: int = 1,
        *,
        fields: Sequence[str | Field] = (VIDEO, FPS, CAPTION),
    ):
        self._recipe, self._buckets, self._parts = recipe, recipe.data.all_buckets(), (parts, part_count)
        self._fields, self._held_out_fields = resolve(fields), sources(fields)
        self._rejections = Rejections(workdir / _rejected())
        columns = [field.column for field in self._fields if isinstance(field, FrameField) and field.column]
        train, held_out = _records(recipe.data, recipe.evaluate, workdir, columns)
        self._checked = self._check(train)
        self._train, self._held_out, self.evaluation = self._hold_out(train, held_out)
        self.skipped = SkippedWindows()
        memory = 2 * (recipe.train.max_skipped + recipe.train.log_every) + PREPARATION_BATCHES
        self._drawn: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=memory)

    def describe(self) -> str:
        """Describe the size of the data and the unusable files in one line."""
        line = f"{len(self._train)} files to train on, {len(self._held_out)} held out"
        bad = self._checked.faults
        return line + (f"; {len(bad)} of {self._checked.probed} probed cannot be used, e.g. {bad[0]}" if bad else "")

    @property
    def rejected_count(self) -> int:
        """Return the number of unusable files found so far; `rejected.jsonl` has the reasons."""
        return len(self._rejections)

    @property
    def content_hash(self) -> str:
        """Return a hash of the training and held-out records; it does not depend on the order of the files."""
        identities = sorted({record.id for record in (*self._train, *self._held_out)})
        return hashlib.sha256("\n".join(identities).encode(errors="surrogatepass")).hexdigest()[:16]

    @property
    def clips_per_step(self) -> float:
        """Return the average number of clips in one optimizer step."""
        weight = sum(bucket.weight for bucket in self._buckets)
        return sum(bucket.batch_size * bucket.weight for bucket in self._buckets) / weight

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of the optimizer steps `first_step`, `first_step` + 1, ...; every start gets the same ones."""
        for begin, end in self.skipped.segments(first_step, self._recipe.train.steps):
            loader = self._loader(self._buckets, begin, end, *self._parts)
            for step, batch in zip(range(begin, end), loader, strict=True):
                self._drawn.append((step, batch["index"]))
                yield batch

    def drawn(self, first: int, end: int) -> list[dict[str, Any]]:
        """Return the records that this process recently read for the data steps [`first`, `end`).

        Returns:
          One entry per step: `data_step`, `records` (positions in the manifest) and `files` (their ids).
        """
        return [
            {"data_step": step, "records": index.tolist(), "files": [self._train[i].id for i in index.tolist()]}
            for step, index in sorted(dict(self._drawn).items())
            if first <= step < end
        ]

    def preparation(self) -> Iterator[Batch]:
        """Return the first training clips of the first bucket in small batches, the same in every process.

        Data-dependent initialization needs few clips, and every process and device holds whole batches of them.
        """
        first = self._buckets[0]
        small = dataclasses.replace(first, batch_size=min(first.batch_size, PREPARATION_CLIPS), weight=1.0)
        return iter(self._loader((small,), 0, PREPARATION_BATCHES))

    def _loader(
        self, buckets: Sequence[Bucket], first: int, end: int, parts: Sequence[int] = (0,), part_count: int = 1
    ) -> Loader:
        return Loader(
            self._train,
            buckets,
            fields=self._fields,
            seed=self._recipe.seed,
            fps=self._recipe.data.fps,
            start_step=first,
            end_step=end,
            threads=self._recipe.data.threads,
            flip=self._recipe.data.flip,
            rejections=self._rejections,
            parts=parts,
            part_count=part_count,
        )

    def _check(self, train: list[Record]) -> Preflight:
        """Check the training files: all of them if a field checks its records, else a sample of the videos."""
        checks = [field.check for field in self._fields if isinstance(field, ClipField) and field.check]
        results = [check(train, self._rejections) for check in checks]
        return results[0] if results else preflight(train, self._recipe.data.shapes, rejections=self._rejections)

    def _hold_out(self, train: list[Record], held_out: list[Record]) -> tuple[list[Record], list[Record], list[Batch]]:
        """Decode the held-out batches. If no held-out file can be used, split the training files again."""
        while True:
            try:
                return train, held_out, self._evaluation(held_out)
            except NoUsableFile as error:
                if self._recipe.data.manifest == SCENES or self._recipe.evaluate.manifest:
                    raise
                logger.warning("no held-out file can be used, so other files replace them: %s", error)
                train, held_out = _split(train, self._recipe.data)

    def _evaluation(self, held_out: list[Record]) -> list[Batch]:
        shape, clips, fps = self._buckets[0], self._recipe.evaluate.clips, self._recipe.data.fps
        size = min(clips, shape.batch_size)
        bucket = dataclasses.replace(shape, batch_size=size, weight=1.0)
        preflight(held_out, (bucket.clip_shape(fps),), rejections=self._rejections)
        loader = Loader(
            held_out,
            (bucket,),
            fields=self._held_out_fields,
            seed=EVALUATION_SEED,
            fps=fps,
            end_step=-(-clips // size),
            threads=self._recipe.data.threads,
            crop="center",
            rejections=self._rejections,
        )
        return list(loader)


def _rejected() -> str:
    """Name this process's list of bad files; not every file system lets two processes append to one file."""
    index = distributed.process_index()
    return REJECTED if index == 0 else f"rejected-{index}.jsonl"


def forget(workdir: pathlib.Path) -> None:
    """Remove the data of a start that reached no checkpoint: rendered scenes and lists of bad files."""
    for listed in workdir.glob("rejected*.jsonl"):
        listed.unlink()
    for marker in (workdir / SCENES).glob(f"*/{dataset.MARKER}"):
        if marker.parent.resolve().parent == workdir.resolve() / SCENES:  # not behind a link
            shutil.rmtree(marker.parent)


def _records(
    data: DataConfig, evaluate: EvaluateConfig, workdir: pathlib.Path, columns: Sequence[str]
) -> tuple[list[Record], list[Record]]:
    """Return the training and held-out records of a recipe, rendering the embedded scenes if it asks for them."""
    if data.manifest == SCENES:
        # A set of scenes cannot grow, and `evaluate.clips` may change at any time, so each number has its own folder.
        held_out = max(evaluate.clips, 1)
        train = _render(data, workdir / SCENES / "train", "train", data.scenes)
        return train, _render(data, workdir / SCENES / f"test-{held_out}", "test", held_out)
    for manifest in filter(None, (data.manifest, evaluate.manifest)):
        check_no_output(expanded(manifest), workdir)
    records = read_manifest(data.manifest, columns)
    return (records, read_manifest(evaluate.manifest, columns)) if evaluate.manifest else _split(records, data)


def _render(data: DataConfig, folder: pathlib.Path, split: str, count: int) -> list[Record]:
    """Return the records of rendered scenes. The first process renders, and the others wait for it."""
    if distributed.is_primary():
        dataset.write_scenes(
            folder,
            count=count,
            split=split,
            options=dataset.PRESETS[data.scene_style],
            num_frames=data.num_frames,
            height=data.height,
            width=data.width,
            fps=data.fps,
            lossless=True,
        )
    distributed.barrier(f"{split} scenes are rendered")
    return read_manifest(folder)


def _split(records: list[Record], data: DataConfig) -> tuple[list[Record], list[Record]]:
    train, held_out = held_out_split(records, data.held_out)
    if not train or not held_out:
        raise UserError(
            f"{data.manifest}: {len(records)} clip(s) leave none to train on or none to hold out; add clips, "
            f"or name other ones with --config.evaluate.manifest"
        )
    return train, held_out
