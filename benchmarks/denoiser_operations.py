"""Profile of the compiled forward pass by XLA operation, from a runtime trace.

    python -m benchmarks.denoiser_operations [--form=naive] [--passes=6] [--top=40]

Rows are the XLA operations of `benchmarks.denoiser`'s "folded" or "naive" network, each with the source of the last
operation fused into it.  Milliseconds are summed over threads, but an operation that is itself multithreaded, such as a
large matrix product, counts once.
"""

import argparse
import collections
import contextlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks import denoiser
from motionaura_jax.core import process

OPERATION = re.compile(r'%([\w.\-]+) = (\w+\[\S+) .*?op_name="([^"]*)"')


def traced(call: Callable[[], object], passes: int) -> dict[str, tuple[float, int]]:
    """Return name -> (milliseconds, executions) per pass for every operation that the runtime reports."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(passes):
                call()
        trace = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
        times = collections.defaultdict[str, list[float]](list)
        for plane in trace.planes:
            for line in plane.lines:
                for event in line.events:
                    times[event.name].append(event.duration_ns)
    return {name: (sum(found) / passes / 1e6, len(found) // passes) for name, found in times.items()}


def main() -> None:
    """Run the command line."""
    process.keep_freed_memory()  # as every command does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=("folded", "naive"), default="folded", help="(default: %(default)s)")
    parser.add_argument("--passes", type=int, default=6, help="traced passes (default: %(default)s)")
    parser.add_argument("--top", type=int, default=40, help="operations to show (default: %(default)s)")
    options = parser.parse_args()
    folded = options.form == "folded"
    with contextlib.nullcontext() if folded else denoiser.naive_transforms():
        program, arguments = denoiser.forward_program("re_fft2", folded)
    call = lambda: jax.block_until_ready(program(*arguments))  # noqa: E731
    call()
    origins = {name: (shape, origin) for name, shape, origin in OPERATION.findall(program.as_text())}
    print("| ms | times | operation | result | from |\n|---|---|---|---|---|")
    times = {name: found for name, found in traced(call, options.passes).items() if name in origins}
    for name, (milliseconds, count) in sorted(times.items(), key=lambda item: -item[1][0])[: options.top]:
        shape, origin = origins[name]
        print(f"| {milliseconds:.2f} | {count} | {name} | {shape} | {'/'.join(origin.split('/')[-4:])} |")


if __name__ == "__main__":
    main()
