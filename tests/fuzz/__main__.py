"""Fuzzing by hand: `python -m tests.fuzz --hours=1`, and `python -m tests.fuzz --replay=FILE` for one escape."""

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz import campaign
from tests.fuzz.readers import GROUPS


def main() -> int:
    """Read mutations and report; the exit status is 1 if any escaped."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--hours", type=float, default=1 / 60, help="how long to run")
    parser.add_argument("--mutations", type=int, help="stop after this many mutations")
    parser.add_argument("--seed", type=int, default=0, help="each seed makes other mutations")
    parser.add_argument("--readers", default=",".join(GROUPS), help=f"groups among {','.join(GROUPS)}")
    parser.add_argument("--workers", type=int, default=1, help="number of worker processes")
    parser.add_argument("--output", type=Path, default=Path("escapes"), help="folder for the escapes")
    parser.add_argument("--replay", type=Path, nargs="*", help="kept escapes to read again, files or folders")
    flags = parser.parse_args()
    if flags.replay is not None:
        return _replay(flags.replay)
    groups = flags.readers.split(",")
    if unknown := [group for group in groups if group not in GROUPS]:
        parser.error(f"--readers={unknown[0]}: known are {', '.join(GROUPS)}")
    begin = time.monotonic()
    tally = campaign.run(
        seconds=3600 * flags.hours,
        groups=groups,
        folder=flags.output,
        seed=flags.seed,
        workers=flags.workers,
        limit=flags.mutations,
        progress=lambda tally: print(_line(tally, time.monotonic() - begin), flush=True),
    )
    print(f"slowest reading: {tally.slowest[0]:.1f} s ({tally.slowest[1]})")
    print(f"largest reading: {tally.largest[0] / 2**20:.0f} MiB ({tally.largest[1]})")
    for signature, count in tally.escapes.most_common():
        print(f"{count} x {signature}: {tally.files[signature]}")
    return 1 if tally.escapes else 0


def _line(tally: campaign.Tally, seconds: float) -> str:
    escapes = tally.escapes.total()
    return (
        f"{seconds:6.0f} s: {tally.total} mutations ({tally.total / seconds:.0f} per second), {tally.outcomes['read']} read, "
        f"{tally.outcomes['refused']} refused, {escapes} escapes of {len(tally.escapes)} kinds"
    )


def _replay(places: list[Path]) -> int:
    paths = [path for place in places for path in (sorted(place.glob("*.json")) if place.is_dir() else [place])]
    escaped = 0
    for path, outcome in campaign.replay(paths):
        escaped += outcome.escaped
        print(
            f"{path}: {outcome.kind} after {outcome.seconds:.1f} s, {outcome.memory / 2**20:.0f} MiB\n  {outcome.detail}"
        )
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
