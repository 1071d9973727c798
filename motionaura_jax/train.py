"""Train any system.

    python -m motionaura_jax.train --config=tokenizer:tiny --workdir=runs/tokenizer [--config.KEY=VALUE ...]

The same command again resumes; the workdir is the only state.
"""

import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from motionaura_jax.core import cli, process
from motionaura_jax.core.limits import Natural, Processes, Seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = cli.Parser("train", "Train a system from a config file; the same command again resumes.")
    parser.add_argument("--config", required=True, type=cli.place, help=cli.CONFIG)
    parser.add_argument("--workdir", required=True, type=cli.path, help="folder of the run")
    parser.add_argument("--override", action="store_true", help="continue even if the workdir has another config")
    parser.epilog = "Every key can be set: --config.KEY=VALUE, e.g. --config.data.manifest=videos/"
    requeue = "exit with status 75 instead of 0 if a signal stops the run, so that a scheduler starts it again"
    parser.add_argument("--requeue", action="store_true", help=requeue)
    place = _place_flags(parser)
    args, overrides = parser.parse_with_overrides(argv)
    given = {name: value for name in place if (value := getattr(args, name)) is not None}
    result: dict[str, Any] = {}

    def work() -> dict[str, Any] | None:
        process.set_up_xla_flags()
        result.update(_train(args.config, overrides, args.workdir, args.override, given))
        return result if distributed.is_primary() else None

    from motionaura_jax.parallel import distributed

    try:
        status = cli.run(work, as_json=args.json)
    except Exception:
        if distributed.process_count() == 1:
            raise
        # Print now: the interpreter would first wait for the other processes.
        traceback.print_exc()
        status = distributed.FAILED
    return distributed.leave(distributed.AGAIN if args.requeue and result.get("stopped") else status)


def _place_flags(parser: cli.Parser) -> list[str]:
    """Add the flags that place this process in a run of several; return their names."""
    group = parser.add_argument_group("several processes (detected on SLURM, Open MPI and TPU pods)")
    flags = [
        group.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0"),
        group.add_argument("--num_processes", type=cli.number(Processes), help="number of processes"),
        group.add_argument("--process_id", type=cli.number(Natural), help="number of this process, from 0"),
        group.add_argument(
            "--heartbeat_timeout", type=cli.number(Seconds), help="seconds until a silent process counts as gone"
        ),
        group.add_argument("--start_timeout", type=cli.number(Seconds), help="seconds to wait for all processes"),
    ]
    return [flag.dest for flag in flags]


def _train(
    location: str, overrides: Sequence[str], workdir: pathlib.Path, override: bool, place: Mapping[str, Any]
) -> dict[str, Any]:
    """Join the other processes, check that all agree, and train."""
    from motionaura_jax.core import config, files
    from motionaura_jax.parallel import cluster, distributed, preflight
    from motionaura_jax.planning import exhaustion
    from motionaura_jax.systems import loading, registry
    from motionaura_jax.training import loop

    with distributed.joined(cluster.Wanted(**place)):
        values = config.read(location, overrides)
        recipe = config.build(registry.system_class(values.get("system", "")).Recipe, values)
        if distributed.is_primary():
            files.check_folder(workdir)
        exhaustion.check_batch(recipe, distributed.process_count())
        preflight.check(workdir, config.to_dict(recipe))
        system = loading.open_system(recipe, workdir)
        with exhaustion.explained(system.recipe, workdir):
            return loop.fit(system, workdir, override=override)


if __name__ == "__main__":
    raise SystemExit(main())
