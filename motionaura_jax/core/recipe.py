"""What every recipe has: the sections of a config that do not depend on the system being trained."""

import dataclasses
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.limits import (
    Checked,
    Count,
    Limit,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Several,
    Share,
    ShareBelowOne,
)
from motionaura_jax.data.buckets import Bucket, ClipShape
from motionaura_jax.parallel.config import MeshConfig

SCENES = "scenes"


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Where clips come from and their shape.

    Attributes:
      manifest: folder, `.jsonl` or `.csv`; "scenes" renders the embedded scenes into the workdir.
      held_out: fraction of the manifest kept for evaluation when `evaluate.manifest` is empty.
      num_frames, height, width: one clip, in frames and pixels; used when `buckets` is empty.
      fps: frames a second; every source is resampled to it by time, except where a bucket has another rate.
      batch_size: clips in one optimizer step, over all devices and microbatches.
      buckets: several clip shapes with weights (recipe D.1); replaces the single shape above.
      flip: probability of mirroring a training clip left to right; not for captions that name sides or directions.
      threads: reading threads.
      scenes: number of training scenes rendered when `manifest` is "scenes".
      scene_style: "easy" (one large object about the middle of a plain background) or "full".
    """

    manifest: str = SCENES
    held_out: Annotated[float, Limit("above 0 and below 1", lambda value: 0 < value < 1)] = 0.05
    num_frames: Count = 8
    height: Count = 64
    width: Count = 64
    fps: Positive = 8.0
    batch_size: Count = 4
    buckets: tuple[Bucket, ...] = ()
    flip: Share = 0.0
    threads: Natural = 4
    scenes: Count = 512
    scene_style: Literal["easy", "full"] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        frames = [bucket.num_frames for bucket in self.all_buckets()]
        span, longest = max(((count - 1) / rate, count) for count, rate in zip(frames, self.rates, strict=True))
        if self.manifest == SCENES and span >= self.num_frames / self.fps:
            raise UserError(
                f"DataConfig.buckets: {longest} frames, but the rendered scenes have num_frames={self.num_frames}; "
                f"name clips with --config.data.manifest=WHERE, or raise --config.data.num_frames"
            )

    def all_buckets(self) -> tuple[Bucket, ...]:
        """Returns the clip shapes to train on; at least one."""
        single = Bucket(num_frames=self.num_frames, height=self.height, width=self.width, batch_size=self.batch_size)
        return self.buckets or (single,)

    @property
    def shapes(self) -> tuple[ClipShape, ...]:
        """Clip shape of each of `all_buckets`."""
        return tuple(bucket.clip_shape(self.fps) for bucket in self.all_buckets())

    @property
    def rates(self) -> tuple[float, ...]:
        """Frames a second of each of `all_buckets`."""
        return tuple(bucket.fps or self.fps for bucket in self.all_buckets())


@dataclass(frozen=True, kw_only=True)
class ParamGroup(Checked):
    """Parameters that the optimizer treats alike.

    Attributes:
      pattern: regular expression that is searched in the path of a parameter, e.g. "text/.*kernel$".
      scale: factor on the learning rate, weight decay included. 0 freezes: no gradient, no optimizer state, no average of
        the weights, and no bit of the parameters changes.
      clip: name of the clipping group. Each is clipped by its own global norm at `optimizer.clip_norm`; "" holds all
        parameters without a name.
      averaged: whether they enter the average of the weights; without it inference uses the trained values as they are.
    """

    pattern: str
    scale: NonNegative = 1.0
    clip: str = ""
    averaged: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"ParamGroup.pattern={self.pattern!r}: not a regular expression: {error}") from None
        if self.clip == "other":
            raise UserError(
                "ParamGroup.clip=other: this is what the log calls the group without a name; choose another"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """An optimizer with gradient clipping, a learning-rate schedule and parameter groups (recipes: spec section E).

    Attributes:
      name: "adafactor" keeps sums of squares per row and column instead of one per weight; "muon" orthogonalizes the
        updates of matrices and leaves vectors and embeddings to AdamW. Learning rates mean the same for all of them.
      b1, b2: decay of the running means of gradients and of their squares. With `b1=0` Adafactor keeps no mean at all;
        Muon uses both for the parameters that it leaves to AdamW.
      mu_dtype: precision of the mean of the gradients.
      decay: shape of the schedule after warm-up, down to `final_scale` times the peak at `train.steps`.
      weight_decay: applies to matrices and kernels only, not to biases, norms, gains, embeddings and codes.
      clip_norm: largest global norm of the gradients in a clipping group; 0 turns clipping off.
      groups: parameters to freeze, to train at another rate or to clip apart. The first match counts, before any group
        that the system declares itself.
    """

    name: Literal["adamw", "adam", "adafactor", "muon"] = "adamw"
    learning_rate: NonNegative = 1e-4
    warmup_steps: Natural = 0
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_scale: NonNegative = 0.0
    b1: ShareBelowOne = 0.9
    b2: ShareBelowOne = 0.99
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: NonNegative = 1e-4
    clip_norm: NonNegative = 1.0
    groups: tuple[ParamGroup, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """The loop.

    Attributes:
      steps: optimizer steps of the whole run; schedules and annealing refer to it.
      accumulation: microbatches per step; the result equals one large batch.
      ema_decay: average of the parameters used for evaluation and inference; 0 turns it off.
      log_every: steps between two log lines (the only host synchronization).
      max_skipped: consecutive steps with a non-finite loss or gradient, none of which changes a weight, after which the
        run goes back to its last checkpoint and leaves the data of these steps out.
      max_rollbacks: times it does so without reaching a new checkpoint; then it stops.
    """

    steps: Count = 1000
    accumulation: Count = 1
    ema_decay: ShareBelowOne = 0.999
    log_every: Count = 10
    max_skipped: Count = 10
    max_rollbacks: Natural = 3


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
    """Every `every` steps and at the end.

    Attributes:
      keep: newest checkpoints that stay.
      keep_every: those whose step it divides stay as well; 0 keeps none for that.
      best: metric of the evaluation ("eval_psnr") by which the `keep_best` best checkpoints stay as well, among those whose
        step was evaluated; empty for none.
      best_mode: whether a high or a low value of `best` is good.
      folder: where checkpoints go, a local folder or a `gs://` or `s3://` path; empty for `checkpoints/` of the workdir.
    """

    every: Count = 500
    keep: Count = 3
    keep_every: Natural = 0
    best: str = ""
    best_mode: Literal["max", "min"] = "max"
    keep_best: Count = 1
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig(Checked):
    """What a run warns of.  None of it changes the training.

    Attributes:
      window: logged steps that say what is normal.
      spike: a loss this many robust standard deviations above the median of the window is a spike; 0 turns it off.
      collapse: a codebook whose `usage` or `perplexity` falls below this share of its best so far collapses; 0 turns it off.
      stalled: a step that takes this many times the median is stalled; 0 turns it off.
      stalled_seconds: no step that takes less is called stalled.
    """

    window: Several = 50
    spike: NonNegative = 10.0
    collapse: ShareBelowOne = 0.3
    stalled: NonNegative = 20.0
    stalled_seconds: Positive = 60.0


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Checked):
    """A trace of `steps` steps (0 for none) for TensorBoard or Perfetto, from the `start`-th step after every start on."""

    start: Natural = 10
    steps: Natural = 0


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """Every `every` steps on `clips` fixed held-out clips; pictures of the first `pictures` of them."""

    every: Count = 250
    manifest: str = ""
    clips: Count = 16
    pictures: Natural = 4


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """One training run.  Systems add their own sections (`model`, `loss`, ...) in a subclass.

    Attributes:
      init_from: workdir, step folder or release folder whose weights a fresh run starts from; a run that resumes ignores
        it.  Empty means random weights.
      meaning: keys that say what the weights mean where names and shapes do not, each with the remedy for a difference.
      places: dotted keys that may hold a path, which an export must not carry to another machine.
    """

    meaning: ClassVar[Mapping[str, str]] = {}
    places: ClassVar[tuple[str, ...]] = ("init_from", "data.manifest", "evaluate.manifest", "checkpoint.folder")

    system: str
    seed: Seed = 0
    init_from: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for bucket in self.data.all_buckets():
            if bucket.batch_size % self.train.accumulation:
                raise UserError(
                    f"config.data.batch_size={bucket.batch_size} does not divide by "
                    f"config.train.accumulation={self.train.accumulation}"
                )

    @property
    def added(self) -> str:
        """Regular expression of the parameters that this run adds to those of `init_from`, e.g. adapters; empty for none."""
        return ""

    def at(self, key: str) -> Any:
        """Return the value of a dotted key."""
        return operator.attrgetter(key)(self)

    def with_value(self, key: str, value: Any) -> Self:
        """Return the recipe with the value of a dotted key replaced."""
        section, _, name = key.rpartition(".")
        if not section:
            return dataclasses.replace(self, **{name: value})
        return self.with_value(section, dataclasses.replace(self.at(section), **{name: value}))

    def completed(self, origin: Self) -> Self:
        """Takes what this recipe leaves open of `meaning` from the run `origin`, whose weights it goes on with."""
        return self

    def check_start(self, origin: Self, where: str) -> None:
        """Refuses the weights of the run `origin` in `where` if they would mean something else in this one.

        Raises:
          UserError: a key of `meaning` differs.
        """
        for key, remedy in self.meaning.items():
            ours, theirs = (operator.attrgetter(key)(recipe) for recipe in (self, origin))
            if ours != theirs:
                raise UserError(f"config.{key}={shown(ours)}: {where} was trained with {shown(theirs)}; {remedy}")
