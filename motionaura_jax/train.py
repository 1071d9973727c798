"""Trains any system: the only loop, read from top to bottom.

    python -m motionaura_jax.train --config=configs/tokenizer.py:tiny --workdir=runs/tokenizer [--config.KEY=VALUE ...]

Running the same command again resumes; the workdir is the only state.
"""

import contextlib
import dataclasses
import logging
import pathlib
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from motionaura_jax import cli
from motionaura_jax.errors import UserError
from motionaura_jax.limits import Count, Natural

if TYPE_CHECKING:
    from motionaura_jax.recipe import Recipe
    from motionaura_jax.systems.base import System
    from motionaura_jax.training.checkpoint import Checkpoints
    from motionaura_jax.training.data import TrainingData
    from motionaura_jax.training.progress import TrainingProgress
    from motionaura_jax.training.state import TrainState
    from motionaura_jax.training.step import StepFunction
    from motionaura_jax.training.writers import MetricWriter

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Run:
    """What one training run holds on to; `state` is replaced at every step."""

    system: "System"
    workdir: pathlib.Path
    data: "TrainingData"
    frozen: Any
    train_step: "StepFunction"
    checkpoints: "Checkpoints"
    writer: "MetricWriter"
    state: "TrainState"


def fit(system: "System", workdir: pathlib.Path, *, override: bool = False) -> dict[str, Any]:
    """Trains `system` in `workdir` until `train.steps`, resuming from its newest checkpoint.

    Returns:
      `step`, `loss`, the last held-out metrics, and `stopped` where a signal ended the run early.

    Raises:
      UserError: unusable data, another config in the workdir, a mesh that the devices, the batch or the tokens do not
        divide over, a full disk, a loss that stays non-finite.
    """
    import jax

    from motionaura_jax.parallel.mesh import make_mesh

    with contextlib.ExitStack() as closing:
        closing.enter_context(jax.set_mesh(make_mesh(system.recipe.mesh)))
        run = _start(system, workdir, override)
        first, last = int(run.state.step), system.recipe.train.steps
        logger.info("training steps %d to %d in %s", first, last, workdir)
        closing.callback(run.writer.close)
        closing.callback(run.checkpoints.close)
        return {"workdir": str(workdir), "step": first, **_loop(run, first, last)}


def _start(system: "System", workdir: pathlib.Path, override: bool) -> Run:
    """Opens the workdir, the data and the state; all that can be refused is refused here."""
    import jax

    from motionaura_jax.parallel import mesh as meshes
    from motionaura_jax.training import checkpoint, data, optimizer, state, step, writers
    from motionaura_jax.training import workdir as workdirs
    from motionaura_jax.weights import steps
    from motionaura_jax.weights.load import load_recipe, load_start

    # ---------------------------------------------------------------- Weights of other runs
    # Before the workdir takes its config: a wrong path can then be mended without another workdir.
    recipe, fresh, mesh = system.recipe, steps.newest(workdir) is None, jax.sharding.get_mesh()
    for bucket in recipe.data.all_buckets():
        meshes.check_batch(mesh.shape, bucket.batch_size, recipe.train.accumulation)
    if recipe.meaning and not fresh:
        recipe.check_start(load_recipe(workdir, type(recipe), recipe.system), str(workdir))
    system.check_data()
    frozen = system.frozen()
    start = load_start(system) if recipe.init_from and fresh else None

    # ---------------------------------------------------------------- Config and data
    saved = workdirs.open_workdir(workdir, recipe, override=override)
    clips = data.TrainingData(recipe, workdir, *meshes.batch_part(mesh))
    logger.info("%s", clips.describe())

    # ---------------------------------------------------------------- State
    optimize = optimizer.build(recipe.optimizer, recipe.train.steps)
    abstract = state.abstract(system, optimize, mesh)
    shardings = state.shardings(abstract, mesh)
    state.describe(recipe.system, abstract, mesh)
    checkpoints = checkpoint.Checkpoints(workdir, recipe.checkpoint, saved)
    if fresh:
        current = jax.jit(lambda: state.create(system, optimize, recipe.seed), out_shardings=shardings)()
        batches = (system.to_arrays(batch) for batch in clips.preparation())
        start = start or system.prepare(current.params, current.extra, batches)
        current = state.restart(current, *start)
    else:
        current = checkpoints.restore(abstract)
    return Run(
        system=system,
        workdir=workdir,
        data=clips,
        frozen=jax.device_put(frozen, state.frozen_shardings(frozen, mesh)),
        train_step=step.make_train_step(system, optimize, shardings),
        checkpoints=checkpoints,
        writer=writers.MetricWriter(workdir, int(current.step)),
        state=current,
    )


def _loop(run: Run, first: int, last: int) -> dict[str, Any]:
    import jax

    from motionaura_jax.parallel.mesh import spread_batch
    from motionaura_jax.training.progress import TrainingProgress

    recipe, mesh = run.system.recipe, jax.sharding.get_mesh()
    result: dict[str, Any] = {}
    window: list[Any] = []
    with _StopSignal() as stop, TrainingProgress(last, first) as bar:
        batches = run.data.batches(first)
        for number in range(first + 1, last + 1):
            batch = spread_batch(mesh, run.system.to_arrays(next(batches)))
            run.state, metrics = run.train_step(run.state, run.frozen, batch)
            window.append(metrics)
            if number == first + 1:
                jax.block_until_ready(metrics)
                bar.pause(number)
            stopping = stop.requested  # read once: a signal may come at any line
            final = number == last or stopping

            # ------------------------------------------------------------ Log
            if number % recipe.train.log_every == 0 or final:
                result |= _log(run, number, window, bar)
                window = []

            # ------------------------------------------------------------ Checkpoint
            if number % recipe.checkpoint.every == 0 or final:
                run.checkpoints.save(run.state)
                bar.pause(number)

            # ------------------------------------------------------------ Evaluate
            if (number % recipe.evaluate.every == 0 or number == last) and not stopping:
                result |= _evaluate(run, number, bar)
                bar.pause(number)
            if stopping:
                bar.note(f"stopped by a signal after step {number}; run the same command again to resume")
                return {**result, "stopped": True}
    return result


def _log(run: Run, number: int, window: list[Any], bar: "TrainingProgress") -> dict[str, float]:
    """Fetches and averages the metrics since the last log step: the loop's only wait for the device."""
    import jax

    rows = jax.device_get(window)
    means = {name: float(sum(row[name] for row in rows)) / len(rows) for name in rows[0]}
    skipped = int(rows[-1]["skipped"])
    means["skipped"] = skipped
    if skipped >= run.system.recipe.train.max_skipped:
        again = "run again" if run.checkpoints.latest() is None else "resume from the last checkpoint with --override"
        raise UserError(
            f"{run.workdir}: loss or gradient was not finite for {skipped} steps up to step {number}, which changed no "
            f"weight; lower --config.optimizer.learning_rate and {again}"
        )
    speed = bar.report(number, means, run.data.clips_per_step)
    run.writer.scalars(number, {**means, **speed, "rejected_files": run.data.rejected_count})
    return {"step": number, "loss": means["loss"]}


def _evaluate(run: Run, number: int, bar: "TrainingProgress") -> dict[str, float]:
    """Measures on the held-out clips and keeps the pictures under `samples/`."""
    from motionaura_jax.data.media import contact_sheet, write_video
    from motionaura_jax.parallel import distributed

    batches: Iterable[Any] = (run.system.to_arrays(batch) for batch in run.data.evaluation)
    evaluation = run.system.evaluate(run.state.inference_params, run.state.extra, run.frozen, batches)
    metrics = {f"eval_{name}": value for name, value in evaluation.metrics.items()}
    run.writer.scalars(number, metrics)
    bar.note(f"step {number}  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    if evaluation.videos and distributed.is_primary():
        folder = run.workdir / "samples" / f"{number:07d}"
        sheet = contact_sheet(list(evaluation.videos.items()), folder.with_suffix(".png"))
        run.writer.picture(number, "held out", sheet)
        for name, video in evaluation.videos.items():
            write_video(folder / f"{name}.mp4", video, evaluation.fps)
    return metrics


class _StopSignal:
    """Notes SIGINT and SIGTERM, so that a run saves before it ends; a second signal ends it at once."""

    requested = False

    def __enter__(self) -> "_StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def open_system(recipe: "Recipe", workdir: pathlib.Path) -> "System":
    """Builds the system of a recipe; one that resumes takes what the recipe leaves open from the run in `workdir`.

    Raises:
      UserError: another system in the workdir, or parts of other runs that cannot be opened.
    """
    from motionaura_jax.systems import base
    from motionaura_jax.weights import steps
    from motionaura_jax.weights.load import load_recipe

    if recipe.meaning and steps.newest(workdir) is not None:
        recipe = recipe.completed(load_recipe(workdir, type(recipe), recipe.system))
    return base.system_class(recipe.system)(recipe)


def _train(
    location: str, overrides: Sequence[str], workdir: pathlib.Path, override: bool, place: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Trains together with the other processes of the run, of which the first has the result."""
    from motionaura_jax import config
    from motionaura_jax.parallel import cluster, distributed, preflight
    from motionaura_jax.systems import base

    with distributed.joined(cluster.Wanted(**place)):
        values = config.read(location, overrides)
        recipe = config.build(base.system_class(values.get("system", "")).Recipe, values)
        preflight.check(workdir, config.to_dict(recipe))
        result = fit(open_system(recipe, workdir), workdir, override=override)
        return result if distributed.is_primary() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = cli.Parser("train", "Train a system from a config file; the same command again resumes.")
    parser.add_argument("--config", required=True, help="FILE.py:PRESET[,PRESET...], or a saved config.json")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--override", action="store_true", help="go on although the workdir has another config")
    parser.epilog = "Every key can be set: --config.KEY=VALUE, e.g. --config.data.manifest=videos/"
    place = _place_flags(parser)
    args, overrides = parser.parse_with_overrides(argv)
    told = {name: value for name in place if (value := getattr(args, name)) is not None}
    work = lambda: _train(args.config, overrides, args.workdir, args.override, told)  # noqa: E731
    status = cli.run(work, as_json=args.json)
    from motionaura_jax.parallel import distributed

    return distributed.leave(status)


def _place_flags(parser: cli.Parser) -> list[str]:
    """Adds the flags of a run on several processes, which a cluster makes superfluous; returns their names."""
    group = parser.add_argument_group("several processes (found out by itself on SLURM, Open MPI, TPU pods)")
    flags = [
        group.add_argument("--coordinator_address", metavar="HOST:PORT", help="where process 0 waits for the others"),
        group.add_argument("--num_processes", type=cli.number(Count), help="number of processes"),
        group.add_argument("--process_id", type=cli.number(Natural), help="which of them this is, from 0"),
        group.add_argument(
            "--heartbeat_timeout", type=cli.number(Count), help="seconds after which one counts as gone"
        ),
        group.add_argument(
            "--start_timeout", type=cli.number(Count), help="seconds to wait for each other at the start"
        ),
    ]
    return [flag.dest for flag in flags]


if __name__ == "__main__":
    raise SystemExit(main())
