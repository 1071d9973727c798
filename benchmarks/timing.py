"""Interleaved timing of alternatives in one process, for ratios that stay meaningful on a shared machine.

Every round calls each case once, so that a burst of outside load hits all of them alike.  Compare by the ratio of CPU
seconds: on a busy machine it varies far less than wall time.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over the rounds.

    Attributes:
      wall: wall seconds.
      cpu: CPU seconds over all threads of this process.
    """

    wall: float
    cpu: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """JAX function compiled for its arguments.

    Attributes:
      call: runs the function and waits for the result.
      compile_cpu: CPU seconds of tracing and compiling.
      temp_bytes: memory of intermediate results; 0 if the backend does not report it.
    """

    call: Callable[[], object]
    compile_cpu: float
    temp_bytes: int


def compile_case(function: Callable, *args) -> Compiled:
    """Compile `function(*args)` ahead of time; turn the persistent compilation cache off to time that."""
    start = time.process_time()
    executable = jax.jit(function).lower(*args).compile()
    compile_cpu = time.process_time() - start
    memory = executable.memory_analysis()
    return Compiled(
        call=lambda: jax.block_until_ready(executable(*args)),
        compile_cpu=compile_cpu,
        temp_bytes=memory.temp_size_in_bytes if memory else 0,
    )


def interleave(cases: Mapping[str, Callable[[], object]], *, rounds: int = 7) -> dict[str, Timing]:
    """Time the cases in turn, after one warm-up call each.

    Args:
      cases: name -> a call that returns only when its work is done.
      rounds: timed calls per case.
    """
    for call in cases.values():
        call()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Timing(wall=statistics.median(wall for wall, _ in rows), cpu=statistics.median(cpu for _, cpu in rows))
        for name, rows in samples.items()
    }


def ratio(reference: Timing, ours: Timing) -> Timing:
    """Return our speedup over the reference, in wall and CPU seconds."""
    return Timing(wall=reference.wall / ours.wall, cpu=reference.cpu / ours.cpu)
