"""Which clips a run trains on and which it is measured on."""

import functools
import pathlib
from collections.abc import Iterator

from motionaura_jax.data import scene_set
from motionaura_jax.data.buckets import Bucket
from motionaura_jax.data.loader import Batch, Loader, held_out_split, preflight
from motionaura_jax.data.manifest import Record, read_manifest
from motionaura_jax.errors import UserError
from motionaura_jax.recipe import DataConfig, EvaluateConfig, Recipe

SCENES = "scenes"
PREPARATION_BATCHES = 16
EVALUATION_SEED = 2**31 - 1


class TrainingData:
    """Training batches as a function of the step, and fixed held-out batches.

    Raises:
      UserError: a manifest that is missing, empty or without one usable clip.
    """

    def __init__(self, recipe: Recipe, workdir: pathlib.Path):
        self._recipe, self._rejected = recipe, workdir / "rejected.jsonl"
        self._train, self._held_out = _records(recipe.data, recipe.evaluate, workdir)
        self._buckets = recipe.data.all_buckets()
        self._checked = preflight(self._train, self._buckets, fps=recipe.data.fps)
        self._loader = self._training_loader(0)

    def describe(self) -> str:
        """One line on the size of the data and on what was seen of it."""
        line = f"{len(self._train)} files to train on, {len(self._held_out)} held out"
        bad = self._checked.faults
        return line + (f"; {len(bad)} of {self._checked.probed} probed cannot be used, e.g. {bad[0]}" if bad else "")

    @property
    def rejected_count(self) -> int:
        """Files that could not be used so far; `rejected.jsonl` has the reasons."""
        return self._loader.rejected_count

    @property
    def clips_per_step(self) -> float:
        """Average number of clips in one optimizer step."""
        weight = sum(bucket.weight for bucket in self._buckets)
        return sum(bucket.batch_size * bucket.weight for bucket in self._buckets) / weight

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Batches of the steps `first_step`, `first_step` + 1, ...; the same for every start."""
        self._loader = self._training_loader(first_step)
        return iter(self._loader)

    def preparation(self) -> Iterator[Batch]:
        """The first training batches, for a data-dependent start."""
        return (self._loader.batch(step) for step in range(PREPARATION_BATCHES))

    @functools.cached_property
    def evaluation(self) -> list[Batch]:
        """Held-out batches, decoded once: the same clips, crops and order at every evaluation."""
        shape, clips = self._buckets[0], self._recipe.evaluate.clips
        size = min(clips, shape.batch_size)
        bucket = Bucket(num_frames=shape.num_frames, height=shape.height, width=shape.width, batch_size=size)
        steps = -(-clips // size)
        loader = Loader(
            self._held_out,
            (bucket,),
            seed=EVALUATION_SEED,
            fps=self._recipe.data.fps,
            end_step=steps,
            threads=self._recipe.data.threads,
            crop="center",
            rejected=self._rejected,
        )
        return list(loader)

    def _training_loader(self, first_step: int) -> Loader:
        return Loader(
            self._train,
            self._buckets,
            seed=self._recipe.seed,
            fps=self._recipe.data.fps,
            start_step=first_step,
            end_step=self._recipe.train.steps,
            threads=self._recipe.data.threads,
            rejected=self._rejected,
        )


def _records(data: DataConfig, evaluate: EvaluateConfig, workdir: pathlib.Path) -> tuple[list[Record], list[Record]]:
    """Training and held-out records of a recipe, rendering the embedded scenes where they are asked for."""
    if data.manifest == SCENES:
        folders = {split: workdir / SCENES / split for split in scene_set.SPLITS}
        counts = {"train": data.scenes, "test": max(evaluate.clips, 1)}
        for split, folder in folders.items():
            scene_set.write_scenes(
                folder,
                count=counts[split],
                split=split,
                options=scene_set.PRESETS[data.scene_style],
                num_frames=data.num_frames,
                height=data.height,
                width=data.width,
                fps=data.fps,
            )
        return read_manifest(folders["train"]), read_manifest(folders["test"])
    records = read_manifest(data.manifest)
    if evaluate.manifest:
        return records, read_manifest(evaluate.manifest)
    train, held_out = held_out_split(records, data.held_out)
    if not train or not held_out:
        raise UserError(
            f"{data.manifest}: {len(records)} clip(s) leave none to train on or none to hold out; add clips, "
            f"or name other ones with --config.evaluate.manifest"
        )
    return train, held_out
