"""What is asked about a run, what is answered, and the process that answers; free of jax imports."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from motionaura_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A run.

    Attributes:
      values: the config as plain values.
      mesh: devices along each axis.
      topology: of a TPU, as libtpu calls it; None asks about virtual devices of a CPU.
      compiled: whether the step is compiled; without it only the sizes of the state are known.
    """

    values: Mapping[str, Any]
    mesh: Mapping[str, int]
    topology: str | None = None
    compiled: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one training step needs; bytes are those of one device.

    Attributes:
      devices: how many share the work.
      parameters: number of all parameters of the system.
      trained: number of those that are not frozen; None means all.
      held: bytes between steps: parameters, optimizer, average, extra, frozen, batch.
      uncounted: what all figures leave out, in words.
      temporary: bytes that only live within the step: activations, gradients, what is gathered.
      results: bytes of results that take the place of no argument.
      model_flops: arithmetic that the mathematics needs, on all devices.
      xla_flops: what XLA counts on one device; it counts the body of a loop once.
      collectives: bytes that a device receives per step, by kind of exchange.
      compile_seconds: to trace, lower and compile the step.
    """

    devices: int
    parameters: int
    held: Mapping[str, int]
    trained: int | None = None
    uncounted: str = ""
    temporary: int = 0
    results: int = 0
    model_flops: float = math.nan
    xla_flops: float = math.nan
    collectives: Mapping[str, int] = dataclasses.field(default_factory=dict)
    compile_seconds: float = math.nan

    @property
    def state(self) -> int:
        """Bytes that stay on the device from step to step."""
        return sum(self.held.values())

    @property
    def peak(self) -> int:
        """Bytes that the device needs at once."""
        return self.state + self.temporary + self.results


def ask(question: Question, timeout: float | None = None) -> Estimate:
    """Answers in a process of its own, on a CPU, with as many virtual devices as the mesh has.

    Raises:
      UserError: what is wrong with the run.
      TimeoutError: no answer within `timeout` seconds.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(math.prod(question.mesh.values())),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache says nothing about the time to compile it
    }
    command = [sys.executable, "-m", "motionaura_jax.planning.measure"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(dataclasses.asdict(question)),
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    if done.returncode:
        raise RuntimeError(f"the estimate failed with status {done.returncode}:\n{done.stderr[-4000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise UserError(answer["error"])
    return Estimate(**answer)
