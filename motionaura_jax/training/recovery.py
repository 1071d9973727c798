"""Recovery from non-finite losses and gradients: return to the last checkpoint and skip the data of the streak."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.data.media import write_json
from motionaura_jax.training.checkpoint import Checkpoints, Continuation
from motionaura_jax.training.data import TrainingData
from motionaura_jax.training.state import TrainState

logger = logging.getLogger(__name__)

FOLDER = "non_finite"


class NonFiniteStreak(Exception):
    """Error for a loss or gradient that was not finite for `train.max_skipped` or more steps in a row."""


@dataclasses.dataclass
class Recovery:
    """Detection of streaks of non-finite steps, and rollback to the last checkpoint.

    A non-finite step changes no weight, and no checkpoint follows one except at the end. The run rolls back nevertheless,
    because the cause often lies in the weights or data of some steps earlier.

    Attributes:
      rollbacks: rollbacks since the last new checkpoint.
    """

    workdir: pathlib.Path
    recipe: Recipe
    data: TrainingData
    checkpoints: Checkpoints
    rollbacks: int = dataclasses.field(default=0, init=False)
    _streak: list[dict[str, Any]] = dataclasses.field(default_factory=list, init=False)

    def watch(self, last: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Take the metrics of consecutive steps that end with step `last`.

        Raises:
          NonFiniteStreak: the streak is long enough; call `roll_back`.
        """
        for step, row in enumerate(rows, start=last - len(rows) + 1):
            if row["skipped"]:
                self._streak.append({"step": step, "loss": row["loss"], "gradient_norm": row["gradient_norm"]})
            else:
                self._streak = []
        if rows[-1]["skipped"] >= self.recipe.train.max_skipped:
            raise NonFiniteStreak

    def saved(self) -> None:
        """Reset the count of rollbacks after a new checkpoint."""
        self.rollbacks = 0

    def roll_back(self, state: TrainState) -> tuple[TrainState, Continuation]:
        """Restore the last checkpoint in the shardings of the abstract `state`, and drop the data of the streak.

        Raises:
          UserError: there is no checkpoint, or `train.max_rollbacks` rollbacks did not help; a file has the batches and keys.
        """
        streak, self._streak = self._streak, []
        first, last = streak[0]["step"] - 1, streak[-1]["step"]  # as data steps, which count from 0
        report = self._report(streak)
        self.checkpoints.wait()
        if self.checkpoints.latest() is None or self.rollbacks >= self.recipe.train.max_rollbacks:
            self._give_up(streak, report)
        self.rollbacks += 1
        restored, continuation = self.checkpoints.restore(state)
        positions = [self.data.skipped.data_step(step) for step in (first, last - 1)]
        self.data.skipped = self.data.skipped.with_window(positions[0], positions[1] + 1)
        logger.warning(
            "loss or gradient was not finite for %d steps up to step %d; going back to step %d and leaving their data out (%s)",
            *(len(streak), last, int(restored.step), report),
        )
        return restored, continuation

    def _report(self, streak: list[dict[str, Any]]) -> pathlib.Path:
        """Write everything needed to repeat the steps by hand; every process writes its part of the batches."""
        rows = []
        for row in streak:
            position = self.data.skipped.data_step(row["step"] - 1)
            key = jax.random.fold_in(jax.random.key(self.recipe.seed), row["step"] - 1)
            numbers = {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
            batch = self.data.drawn(position, position + 1) or [{"data_step": position}]
            rows.append({**numbers, "key": np.asarray(jax.random.key_data(key)).tolist(), **batch[0]})
        # Named by data step: another try may fail at the same steps, but never on the same data.
        path = self.workdir / FOLDER / f"{rows[-1]['data_step']:07d}-{jax.process_index()}.json"
        write_json(path, {"seed": self.recipe.seed, "skipped_windows": self.data.skipped.ranges, "steps": rows})
        return path

    def _give_up(self, streak: list[dict[str, Any]], report: pathlib.Path) -> NoReturn:
        again = "run again" if self.checkpoints.latest() is None else "resume from the last checkpoint with --override"
        tries = f", after {self.rollbacks} rollback(s)" if self.rollbacks else ""
        raise UserError(
            f"{self.workdir}: loss or gradient was not finite for {len(streak)} steps up to step {streak[-1]['step']}{tries}; "
            f"they changed no weight, and their batches and keys are in {report}; lower "
            f"--config.optimizer.learning_rate and {again}"
        )
