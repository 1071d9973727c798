"""Base recipe: the config sections that do not depend on the system being trained."""

import dataclasses
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.limits import (
    Batch,
    Checked,
    Count,
    Files,
    Frames,
    Limit,
    Natural,
    NonNegative,
    Place,
    Positive,
    Rate,
    Seed,
    Share,
    ShareBelowOne,
    Side,
    Threads,
    between,
)
from motionaura_jax.data.buckets import Bucket, ClipShape, at_rates
from motionaura_jax.parallel.config import MeshConfig

SCENES = "scenes"


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Source, shape and batching of clips.

    Attributes:
      manifest: folder, `.jsonl` or `.csv`; "scenes" renders the embedded scenes into the workdir.
      held_out: fraction of the manifest held out for evaluation if `evaluate.manifest` is empty.
      num_frames, height, width: shape of a clip, in frames and pixels; used if `buckets` is empty.
      fps: frames per second; every source is resampled to this rate in time, unless a bucket sets its own.
      frame_rates: several rates in place of `fps`, each for an equal share of the steps of every bucket without a rate of
        its own; what depends on the frame rate can be learned only from several.
      batch_size: clips in one optimizer step, over all devices and microbatches.
      buckets: several clip shapes with weights (recipe D.1); replaces the single shape above.
      flip: probability of mirroring a training clip left to right; unsuitable for captions that name sides or directions.
      threads: number of reader threads.
      scenes: number of training scenes to render if `manifest` is "scenes".
      scene_style: "easy" (one large object near the middle of a plain background), "full", "places" (captions leave place,
        speed and phase open), "few" (the same with fewer colors, shapes and motions), or "world" (captions name only a part
        of what is seen).
    """

    manifest: Place = SCENES
    held_out: Annotated[float, Limit("above 0 and below 1", lambda value: 0 < value < 1)] = 0.05
    num_frames: Frames = 8
    height: Side = 64
    width: Side = 64
    fps: Rate = 8.0
    frame_rates: tuple[Rate, ...] = ()
    batch_size: Batch = 4
    buckets: tuple[Bucket, ...] = ()
    flip: Share = 0.0
    threads: Threads = 4
    scenes: Files = 512
    scene_style: Literal["easy", "few", "full", "places", "world"] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        span, longest = max(((shape.num_frames - 1) / shape.fps, shape.num_frames) for shape in self.shapes)
        if self.manifest == SCENES and span >= self.num_frames / self.fps:
            raise UserError(
                f"DataConfig.buckets: {longest} frames, but the rendered scenes have num_frames={self.num_frames}; "
                f"give your own clips with --config.data.manifest=PATH, or raise --config.data.num_frames"
            )

    def all_buckets(self) -> tuple[Bucket, ...]:
        """Return the clip shapes to train on, one for each frame rate; at least one."""
        single = Bucket(num_frames=self.num_frames, height=self.height, width=self.width, batch_size=self.batch_size)
        return at_rates(self.buckets or (single,), self.frame_rates)

    @property
    def shapes(self) -> tuple[ClipShape, ...]:
        """Return the clip shape of each of `all_buckets`."""
        return tuple(bucket.clip_shape(self.fps) for bucket in self.all_buckets())

    @property
    def rates(self) -> tuple[float, ...]:
        """Return the frames per second of each of `all_buckets`."""
        return tuple(shape.fps for shape in self.shapes)


@dataclass(frozen=True, kw_only=True)
class ParamGroup(Checked):
    """Parameters that the optimizer treats alike.

    Attributes:
      pattern: regular expression searched in the path of a parameter, e.g. "text/.*kernel$".
      scale: factor on the learning rate, including weight decay. 0 freezes the parameters: they get no gradient, no
        optimizer state and no average, and stay the same bit for bit.
      clip: name of the clipping group. Each group is clipped at `optimizer.clip_norm` by its own global norm; parameters
        without a name form the group "".
      averaged: whether the parameters enter the average of the weights; if not, inference uses their trained values.
    """

    pattern: str
    scale: NonNegative = 1.0
    clip: str = ""
    averaged: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"ParamGroup.pattern={shown(repr(self.pattern))}: not a regular expression: {error}"
            ) from None
        if self.clip == "other":
            raise UserError(
                "ParamGroup.clip=other: the log uses this name for the group without a name; choose another"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """Optimizer with gradient clipping, a learning-rate schedule and parameter groups.

    Attributes:
      name: "adafactor" keeps sums of squares per row and column instead of one per weight; "muon" orthogonalizes the
        updates of matrices and leaves vectors and embeddings to AdamW. Learning rates mean the same for all optimizers.
      b1, b2: decay of the running means of gradients and squared gradients. With `b1=0` Adafactor keeps no mean of
        gradients; Muon uses both for the parameters that it leaves to AdamW.
      mu_dtype: precision of the mean of the gradients.
      decay: shape of the schedule after warm-up, down to `final_scale` times the peak at `train.steps`.
      weight_decay: applies to matrices and kernels only, not to biases, norms, gains, embeddings and codes.
      clip_norm: largest global norm of the gradients in a clipping group; 0 turns clipping off.
      groups: parameters to freeze, train at another rate or clip separately. The first match applies; groups that the
        system declares come last.
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
    """Training loop.

    Attributes:
      steps: optimizer steps of the whole run; schedules and annealing refer to it.
      accumulation: microbatches per step; the result equals that of one large batch.
      microbatch: most clips of a microbatch on one device, in every bucket and on any number of devices; steps then
        accumulate more often where they have to. 0 sets no limit.
      ema_decay: decay of the parameter average that evaluation and inference use; 0 turns the average off.
      log_every: steps between two log lines (the only host synchronization).
      max_skipped: number of consecutive steps with a non-finite loss or gradient after which the run returns to its last
        checkpoint and skips the data of these steps. Such steps change no weight.
      max_rollbacks: number of rollbacks without a new checkpoint in between; one more stops the run.
    """

    steps: Count = 1000
    accumulation: Count = 1
    microbatch: Natural = 0
    ema_decay: ShareBelowOne = 0.999
    log_every: Count = 10
    max_skipped: Count = 10
    max_rollbacks: Natural = 3

    def microbatches(self, clips: int) -> int:
        """Return the number of microbatches for `clips` on each device: the smallest that `microbatch` allows."""
        most = self.microbatch or clips
        counts = range(self.accumulation, clips + 1, self.accumulation)
        return next((n for n in counts if clips % n == 0 and clips // n <= most), self.accumulation)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
    """Checkpoints, written every `every` steps and at the end.

    Attributes:
      keep: number of newest checkpoints to keep.
      keep_every: also keep checkpoints whose step is a multiple of this number; 0 keeps no others.
      best: evaluation metric, e.g. "eval_psnr". The `keep_best` best checkpoints among those whose step was evaluated are
        kept as well; empty turns this off.
      best_mode: whether a high or a low value of `best` is good.
      folder: local folder, `gs://` or `s3://` path for checkpoints; empty means `checkpoints/` in the workdir.
    """

    every: Count = 500
    keep: Count = 3
    keep_every: Natural = 0
    best: str = ""
    best_mode: Literal["max", "min"] = "max"
    keep_best: Count = 1
    folder: Place = ""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig(Checked):
    """Thresholds of warnings, which do not change the training.

    Attributes:
      window: number of logged steps that define the normal range.
      spike: warn of a loss this many robust standard deviations above the median of the window; 0 turns it off.
      collapse: warn if `usage` or `perplexity` of a codebook falls below this share of its best so far; 0 turns it off.
      stalled: warn of a step that takes this many times the median; 0 turns it off.
      stalled_seconds: shortest step that counts as stalled.
    """

    window: Annotated[int, between(2, 10**6)] = 50
    spike: NonNegative = 10.0
    collapse: ShareBelowOne = 0.3
    stalled: NonNegative = 20.0
    stalled_seconds: Positive = 60.0


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Checked):
    """Trace of `steps` steps (0: none) for TensorBoard or Perfetto, beginning at the `start`-th step after each start."""

    start: Natural = 10
    steps: Natural = 0


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """Evaluation every `every` steps on `clips` fixed held-out clips, with pictures of the first `pictures` clips."""

    every: Count = 250
    manifest: Place = ""
    clips: Batch = 16
    pictures: Annotated[int, between(0, 1024)] = 4


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """One training run. Systems add their own sections (`model`, `loss`, ...) in a subclass.

    Attributes:
      init_from: workdir, step folder or release folder with the initial weights of a fresh run; a run that resumes ignores
        it. Empty means random weights.
      meaning: keys that define the meaning of weights beyond their names and shapes, each with the remedy for a mismatch.
      places: dotted keys that may hold a path; exports must not carry these paths to another machine.
    """

    meaning: ClassVar[Mapping[str, str]] = {}
    places: ClassVar[tuple[str, ...]] = ("init_from", "data.manifest", "evaluate.manifest", "checkpoint.folder")

    system: str
    seed: Seed = 0
    init_from: Place = ""
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
                    f"config.data.batch_size={bucket.batch_size} is not divisible by "
                    f"config.train.accumulation={self.train.accumulation}"
                )

    @property
    def added(self) -> str:
        """Return a regular expression of the parameters that this run adds to `init_from`, e.g. adapters; empty for none."""
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
        """Fill unset keys of `meaning` from the run `origin`, whose weights this run continues with."""
        return self

    def check_start(self, origin: Self, where: str) -> None:
        """Refuse the weights of the run `origin` in `where` if they would mean something else in this run.

        Raises:
          UserError: a key of `meaning` differs.
        """
        for key, remedy in self.meaning.items():
            ours, theirs = self.at(key), origin.at(key)
            if ours != theirs:
                raise UserError(f"config.{key}={shown(ours)}: {where} was trained with {shown(theirs)}; {remedy}")
