"""What every recipe has: the sections of a config that do not depend on the system being trained."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from motionaura_jax.data.buckets import Bucket
from motionaura_jax.errors import UserError, shown


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and their shape.

    Attributes:
      manifest: folder, `.jsonl` or `.csv`; "scenes" renders the embedded scenes into the workdir.
      held_out: fraction of the manifest kept for evaluation when `evaluate.manifest` is empty.
      num_frames, height, width: one clip, in frames and pixels; used when `buckets` is empty.
      fps: frames a second; every source is resampled to it by time.
      batch_size: clips in one optimizer step, over all devices and microbatches.
      buckets: several clip shapes with weights (recipe D.1); replaces the single shape above.
      threads: reading threads.
      scenes: number of training scenes rendered when `manifest` is "scenes".
      scene_style: "easy" (one large object about the middle of a plain background) or "full".
    """

    manifest: str = "scenes"
    held_out: float = 0.05
    num_frames: int = 8
    height: int = 64
    width: int = 64
    fps: float = 8.0
    batch_size: int = 4
    buckets: tuple[Bucket, ...] = ()
    threads: int = 4
    scenes: int = 512
    scene_style: Literal["easy", "full"] = "full"

    def __post_init__(self) -> None:
        self.all_buckets()  # raises where the shape makes no sense
        if not (self.fps > 0 and 0 < self.held_out < 1 and self.threads >= 0 and self.scenes > 0):
            raise ValueError("fps and scenes must be positive, held_out between 0 and 1, threads 0 or more")

    def all_buckets(self) -> tuple[Bucket, ...]:
        """Returns the clip shapes to train on; at least one."""
        single = Bucket(num_frames=self.num_frames, height=self.height, width=self.width, batch_size=self.batch_size)
        return self.buckets or (single,)


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters whose path matches the regular expression train at `scale` times the learning rate; 0 freezes."""

    pattern: str
    scale: float


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or Adam with clipping by global norm and a learning-rate schedule (recipes: spec section E).

    Attributes:
      decay: shape of the schedule after warm-up, down to `final_scale` times the peak at `train.steps`.
      weight_decay: of matrices and kernels only: biases, norms, gains, embeddings and codes are spared.
    """

    name: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    groups: tuple[ParamGroup, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop.

    Attributes:
      steps: optimizer steps of the whole run; schedules and annealing refer to it.
      accumulation: microbatches per step; the result equals one large batch.
      ema_decay: average of the parameters used for evaluation and inference; 0 turns it off.
      log_every: steps between two log lines (the only host synchronization).
      max_skipped: consecutive non-finite steps after which the run stops.
    """

    steps: int = 1000
    accumulation: int = 1
    ema_decay: float = 0.999
    log_every: int = 10
    max_skipped: int = 10


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Every `every` steps and at the end; the newest `keep` are kept."""

    every: int = 500
    keep: int = 3


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Every `every` steps on `clips` fixed held-out clips; pictures of the first `pictures` of them."""

    every: int = 250
    manifest: str = ""
    clips: int = 16
    pictures: int = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.  Systems add their own sections (`model`, `loss`, ...) in a subclass.

    Attributes:
      init_from: workdir, step folder or release folder whose weights a fresh run starts from; a run that resumes ignores
        it.  Empty means random weights.
      meaning: keys that say what the weights mean where names and shapes do not, each with the remedy for a difference.
    """

    meaning: ClassVar[Mapping[str, str]] = {}

    system: str
    seed: int = 0
    init_from: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        for key in ("train.steps", "train.accumulation", "train.log_every", "checkpoint.every", "evaluate.every"):
            section, name = key.split(".")
            if getattr(getattr(self, section), name) < 1:
                raise UserError(f"config.{key}: must be at least 1")
        for bucket in self.data.all_buckets():
            if bucket.batch_size % self.train.accumulation:
                raise UserError(
                    f"config.data.batch_size={bucket.batch_size} does not divide by "
                    f"config.train.accumulation={self.train.accumulation}"
                )

    def check_start(self, origin: "Recipe") -> None:
        """Refuses to start from the weights of the run `origin` where they would mean something else in this one.

        Raises:
          UserError: a key of `meaning` differs.
        """
        for key, remedy in self.meaning.items():
            ours, theirs = (operator.attrgetter(key)(recipe) for recipe in (self, origin))
            if ours != theirs:
                raise UserError(
                    f"config.{key}={shown(ours)}: {self.init_from} was trained with {shown(theirs)}; {remedy}"
                )
