"""Trains any system: the only loop, read from top to bottom.

    python -m motionaura_jax.train --config=configs/tokenizer.py:tiny --workdir=runs/tokenizer [--config.KEY=VALUE ...]

Running the same command again resumes; the workdir is the only state.
"""

import contextlib
import dataclasses
import logging
import pathlib
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from motionaura_jax.core import cli
from motionaura_jax.core.limits import Count, Natural

if TYPE_CHECKING:
    from motionaura_jax.core.recipe import Recipe
    from motionaura_jax.systems.base import System
    from motionaura_jax.training.checkpoint import Checkpoints
    from motionaura_jax.training.data import TrainingData
    from motionaura_jax.training.monitoring.goodput import Goodput
    from motionaura_jax.training.monitoring.progress import TrainingProgress
    from motionaura_jax.training.monitoring.watch import Watch
    from motionaura_jax.training.monitoring.writers import MetricWriter
    from motionaura_jax.training.state import TrainState
    from motionaura_jax.training.step import StepFunction

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Run:
    """What one training run holds on to; `state` is replaced at every step.

    Attributes:
      open_window: metrics of the steps since the last log step, as the run starts or goes back.
    """

    system: "System"
    workdir: pathlib.Path
    data: "TrainingData"
    frozen: Any
    train_step: "StepFunction"
    checkpoints: "Checkpoints"
    writer: "MetricWriter"
    state: "TrainState"
    goodput: "Goodput"
    open_window: Sequence[tuple[int, Mapping[str, float]]]


def fit(system: "System", workdir: pathlib.Path, *, override: bool = False) -> dict[str, Any]:
    """Trains `system` in `workdir` until `train.steps`, resuming from its newest checkpoint.

    Returns:
      `step`, `loss`, the last held-out metrics, and `stopped` where a signal ended the run early.

    Raises:
      UserError: unusable data, another config or another run in the workdir, a mesh that the devices, the batch or the
        tokens do not divide over, a full disk, a loss that stays non-finite.
    """
    import jax

    from motionaura_jax.parallel.mesh import make_mesh
    from motionaura_jax.training import lock
    from motionaura_jax.training.monitoring.goodput import Goodput

    with contextlib.ExitStack() as closing:
        closing.enter_context(jax.set_mesh(make_mesh(system.recipe.mesh)))
        closing.enter_context(lock.held(workdir))
        goodput = closing.enter_context(Goodput(workdir))
        run = _start(system, workdir, override, goodput)
        first, last = int(run.state.step), system.recipe.train.steps
        logger.info("training steps %d to %d in %s", first, last, workdir)
        closing.callback(lambda: run.writer.close())  # a rollback opens another one
        closing.callback(run.checkpoints.close)
        return {"workdir": str(workdir), "step": first, **_loop(run, first, last)}


def _start(system: "System", workdir: pathlib.Path, override: bool, goodput: "Goodput") -> Run:
    """Opens the workdir, the data and the state; all that can be refused is refused here."""
    import jax

    from motionaura_jax.data.windows import SkippedWindows
    from motionaura_jax.parallel import mesh as meshes
    from motionaura_jax.training import checkpoint, data, optimizer, provenance, state, step
    from motionaura_jax.training import workdir as workdirs
    from motionaura_jax.training.monitoring import writers
    from motionaura_jax.weights import steps
    from motionaura_jax.weights.load import load_recipe, load_start

    # ---------------------------------------------------------------- Weights of other runs
    # Before the workdir takes its config: a wrong path can then be mended without another workdir.
    recipe, mesh = system.recipe, jax.sharding.get_mesh()
    for bucket in recipe.data.all_buckets():
        meshes.check_batch(mesh.shape, bucket.batch_size, recipe.train.accumulation)
    newest = steps.newest(steps.folder_of(workdir, recipe.checkpoint.folder))
    if recipe.meaning and newest:
        recipe.check_start(load_recipe(newest, type(recipe), recipe.system), str(workdir))
    system.check_data()
    frozen = system.frozen()
    start = load_start(system) if recipe.init_from and newest is None else None

    # ---------------------------------------------------------------- Config and data
    saved = workdirs.open_workdir(workdir, recipe, override=override)
    clips = data.TrainingData(recipe, workdir, *meshes.batch_parts(mesh), fields=system.fields)
    logger.info("%s", clips.describe())

    # ---------------------------------------------------------------- State
    optimize = optimizer.build(recipe.optimizer, recipe.train.steps)
    abstract = state.abstract(system, optimize, mesh)
    shardings = state.shardings(abstract, mesh)
    state.describe(recipe.system, abstract, mesh)
    origin = provenance.provenance(clips.content_hash)
    checkpoints = checkpoint.Checkpoints(workdir, recipe.checkpoint, saved, origin)
    if newest is None:
        checkpoints.check_new()
        current = jax.jit(lambda: state.create(system, optimize, recipe.seed), out_shardings=shardings)()
        batches = (system.to_arrays(batch) for batch in clips.preparation())
        start = start or system.prepare(current.params, current.extra, batches)
        current, beside = state.restart(current, *start), checkpoint.Beside()
    else:
        current, beside = checkpoints.restore(abstract)
        workdirs.record(workdir, saved)
        clips.skipped = SkippedWindows.of(beside.skipped_windows)
        checkpoints.rate_again(writers.read_metrics(workdir / writers.FILE))
    goodput.resume(int(current.step))
    return Run(
        system=system,
        workdir=workdir,
        data=clips,
        frozen=jax.device_put(frozen, state.frozen_shardings(frozen, mesh)),
        train_step=step.make_train_step(system, optimize, shardings),
        checkpoints=checkpoints,
        writer=writers.MetricWriter(workdir, int(current.step)),
        state=current,
        goodput=goodput,
        open_window=beside.open_window,
    )


def _loop(run: Run, first: int, last: int) -> dict[str, Any]:
    """Trains to step `last`, back from the last checkpoint wherever loss or gradient does not stay finite."""
    from motionaura_jax.training import state
    from motionaura_jax.training.monitoring.watch import watching
    from motionaura_jax.training.monitoring.writers import MetricWriter
    from motionaura_jax.training.recovery import NonFiniteStreak

    with watching(run.system, run.workdir, run.data, run.checkpoints, first) as watch:
        while True:
            watch.pause(first)
            run.goodput.book("start")
            try:
                return _steps(run, watch, first, last)
            except NonFiniteStreak:
                run.state = state.outline(run.state)  # frees the memory that the restored one needs
                run.state, beside = watch.recovery.roll_back(run.state)
                run.open_window, first = beside.open_window, int(run.state.step)
                run.goodput.lose(first)
                run.writer.close()
                run.writer = MetricWriter(run.workdir, first)
                run.writer.scalars(first, {"alarm_rollback": watch.recovery.rollbacks})


def _steps(run: Run, watch: "Watch", first: int, last: int) -> dict[str, Any]:
    import jax

    from motionaura_jax.parallel.mesh import spread_batch
    from motionaura_jax.training.in_flight import InFlight
    from motionaura_jax.training.prefetch import Prefetch

    recipe, goodput, mesh = run.system.recipe, run.goodput, jax.sharding.get_mesh()
    result: dict[str, Any] = {}
    in_flight, save_due = InFlight(run.open_window), False
    place = lambda batch: spread_batch(mesh, run.system.to_arrays(batch))  # noqa: E731
    with Prefetch(run.data.batches(first), place) as batches:
        for number in range(first + 1, last + 1):
            batch = next(batches)
            goodput.book("data" if in_flight.idle else "steps")

            # ------------------------------------------------------------ Step
            watch.flops.add(run.state, run.frozen, batch)
            watch.profiler.before_step()
            before = run.state
            with jax.transfer_guard("disallow"):
                run.state, metrics = run.train_step(before, run.frozen, batch)
            run.checkpoints.let_go(before)
            in_flight.add(number, metrics)
            watch.profiler.after_step(metrics)
            watch.watchdog.beat(number)
            if goodput.compiled:
                in_flight.wait()
                watch.pause(number)
            goodput.book("steps")
            stopping = watch.stop.after(number)
            evaluating = (number % recipe.evaluate.every == 0 or number == last) and not stopping
            save_due = save_due or number % recipe.checkpoint.every == 0 or stopping

            # ------------------------------------------------------------ Log: a step late, so that the device has work
            known = number if evaluating or save_due else number - 1
            for until, rows in in_flight.windows(recipe.train.log_every, known, rest=number == last):
                result |= _log(run, watch, until, rows)

            # ------------------------------------------------------------ Checkpoint: never while steps are not finite
            if number == last or (save_due and not in_flight.latest("skipped")):
                _save(run, watch, number, in_flight.open_window())
                save_due = False

            # ------------------------------------------------------------ Evaluate
            if evaluating:
                goodput.book("steps")
                watch.pause(number)
                result |= _evaluate(run, number, watch.bar)
                watch.pause(number)
                goodput.book("evaluation")
            if stopping:
                watch.bar.note(f"stopped by a signal after step {number}; run the same command again to resume")
                return {**result, "step": number, "stopped": True}
    return result


def _log(run: Run, watch: "Watch", number: int, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Averages the metrics of the steps since the last log and looks at each, and at the last save, for what should not be."""
    run.checkpoints.check()
    common = set.intersection(*map(set, rows))  # a run that goes on with other settings may measure less
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1] if name in common}
    means["skipped"] = rows[-1]["skipped"]
    speed = watch.bar.report(number, means, run.data.clips_per_step)
    speed |= watch.flops.rates(speed["steps_per_second"]) | run.goodput.shares()
    run.writer.scalars(number, {**means, **speed, "rejected_files": run.data.rejected_count})
    run.goodput.write()
    for row in rows:
        for name, (line, value) in watch.alarms.check(row).items():
            logger.warning("step %d: %s", number, line)
            run.writer.scalars(number, {f"alarm_{name}": value})
    watch.recovery.watch(number, rows)
    return {"step": number, "loss": means["loss"], "goodput": speed["goodput"]}


def _save(run: Run, watch: "Watch", number: int, open_window: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    from motionaura_jax.training.checkpoint import Beside

    run.goodput.book("steps")
    watch.pause(number)
    run.checkpoints.save(run.state, Beside(run.data.skipped.ranges, open_window))
    watch.recovery.saved()
    run.goodput.saved(number)
    run.goodput.book("checkpoint")
    run.goodput.write()
    watch.pause(number)


def _evaluate(run: Run, number: int, bar: "TrainingProgress") -> dict[str, float]:
    """Measures on the held-out clips and keeps the pictures under `samples/`."""
    from motionaura_jax.data.media import contact_sheet, write_video
    from motionaura_jax.parallel import distributed

    batches: Iterable[Any] = (run.system.to_arrays(batch) for batch in run.data.evaluation)
    evaluation = run.system.evaluate(run.state.inference_params, run.state.extra, run.frozen, batches)
    metrics = {f"eval_{name}": value for name, value in evaluation.metrics.items()}
    run.writer.scalars(number, metrics)
    run.checkpoints.rate(number, metrics)
    bar.note(f"step {number}  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    if evaluation.videos and distributed.is_primary():
        folder = run.workdir / "samples" / f"{number:07d}"
        sheet = contact_sheet(list(evaluation.videos.items()), folder.with_suffix(".png"))
        run.writer.picture(number, "held out", sheet)
        for name, video in evaluation.videos.items():
            write_video(folder / f"{name}.mp4", video, evaluation.fps)
    return metrics


def open_system(recipe: "Recipe", workdir: pathlib.Path) -> "System":
    """Builds the system of a recipe; one that resumes takes what the recipe leaves open from the run in `workdir`.

    Raises:
      UserError: another system in the workdir, or parts of other runs that cannot be opened.
    """
    from motionaura_jax.systems import base
    from motionaura_jax.weights import steps
    from motionaura_jax.weights.load import load_recipe

    newest = steps.newest(steps.folder_of(workdir, recipe.checkpoint.folder))
    if recipe.meaning and newest:
        recipe = recipe.completed(load_recipe(newest, type(recipe), recipe.system))
    return base.system_class(recipe.system)(recipe)


def _train(
    location: str, overrides: Sequence[str], workdir: pathlib.Path, override: bool, place: Mapping[str, Any]
) -> dict[str, Any]:
    """Trains together with the other processes of the run."""
    from motionaura_jax.core import config
    from motionaura_jax.parallel import cluster, distributed, preflight
    from motionaura_jax.planning import exhaustion
    from motionaura_jax.systems import base

    with distributed.joined(cluster.Wanted(**place)):
        values = config.read(location, overrides)
        recipe = config.build(base.system_class(values.get("system", "")).Recipe, values)
        preflight.check(workdir, config.to_dict(recipe))
        system = open_system(recipe, workdir)
        with exhaustion.explained(system.recipe, workdir):
            return fit(system, workdir, override=override)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = cli.Parser("train", "Train a system from a config file; the same command again resumes.")
    parser.add_argument("--config", required=True, help="FILE.py:PRESET[,PRESET...], or a saved config.json")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--override", action="store_true", help="go on although the workdir has another config")
    parser.epilog = "Every key can be set: --config.KEY=VALUE, e.g. --config.data.manifest=videos/"
    requeue = "where a signal stops the run, end with status 75 and not 0, so that a scheduler starts it again"
    parser.add_argument("--requeue", action="store_true", help=requeue)
    place = _place_flags(parser)
    args, overrides = parser.parse_with_overrides(argv)
    told = {name: value for name in place if (value := getattr(args, name)) is not None}
    result: dict[str, Any] = {}

    def work() -> dict[str, Any] | None:
        result.update(_train(args.config, overrides, args.workdir, args.override, told))
        return result if distributed.is_primary() else None

    from motionaura_jax.parallel import distributed, wire

    try:
        status = cli.run(work, as_json=args.json)
    except Exception:
        if distributed.process_count() == 1:
            raise
        traceback.print_exc()
        status = wire.FAILED
    return distributed.leave(wire.AGAIN if args.requeue and result.get("stopped") else status)


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
