"""Questions about a run, estimates that answer them, and the process that computes an answer. Imports no jax."""

import dataclasses
import json
import math
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from motionaura_jax.core import process
from motionaura_jax.core.errors import UserError

MAX_DEVICES = 4096
"""Most virtual devices of one estimate."""

_COMPILING = "--xla_gpu_enable_triton_gemm=false"
"""XLA flags of every estimate: without a GPU to try kernels on, some matrix products by Triton do not compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """Run to estimate.

    Attributes:
      values: config as plain values.
      mesh: number of devices along each axis.
      topology: devices to compile for, as `machines.topology` names them; None means virtual devices of a CPU.
      compiled: compile the step; otherwise the estimate has only the sizes of the state.
    """

    values: Mapping[str, Any]
    mesh: Mapping[str, int]
    topology: str | None = None
    compiled: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Resources of one training step. Bytes are per device.

    Attributes:
      devices: number of devices that share the work.
      parameters: number of all parameters of the system.
      trained: number of parameters that are not frozen; None means all.
      held: bytes between steps: parameters, optimizer, average, extra, frozen, batch.
      uncounted: parts that no figure includes, in words.
      temporary: bytes that live only within the step: activations, gradients, gathered parameters.
      results: bytes of results that do not reuse the memory of an argument.
      model_flops: operations that the mathematics requires, over all devices.
      xla_flops: operations on one device as XLA counts them; it counts the body of a loop once.
      collectives: bytes that a device receives per step, by kind of collective.
      exposed: the part of them that a GPU waits for, because no product hides the transfer; empty for other devices.
      launches: kernels that one device runs per step; None for the program of a CPU.
      ffts: Fourier transforms among them.
      compile_seconds: time to trace, lower and compile the step.
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
    exposed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    launches: int | None = None
    ffts: int | None = None
    compile_seconds: float = math.nan

    @property
    def state(self) -> int:
        """Return the bytes that stay on the device from step to step."""
        return sum(self.held.values())

    @property
    def peak(self) -> int:
        """Return the bytes that the device needs at once."""
        return self.state + self.temporary + self.results


def ask(question: Question, timeout: float | None = None) -> Estimate:
    """Compute the answer in a child process, on a CPU with as many virtual devices as the mesh has.

    Raises:
      UserError: the run is invalid, or has more devices than one process can stand for.
      TimeoutError: no answer within `timeout` seconds.
    """
    devices = math.prod(question.mesh.values())
    if devices > MAX_DEVICES:
        raise UserError(f"--mesh: {devices} devices; an estimate is possible for at most {MAX_DEVICES}")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{_COMPILING} {process.xla_flags('gpu')}",  # no other device reads them
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program would hide the compile time
    }
    try:
        done = subprocess.run(
            process.child_command("motionaura_jax.planning.measure"),
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
