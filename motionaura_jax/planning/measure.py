"""Compilation of a training step without its devices, and the resources that the compiled program needs.

Everything is abstract: arguments are shapes, and devices are virtual (CPU) or described (GPU, TPU). Run as a module, it answers
one `Question` in JSON on stdin, because a process cannot change its devices after JAX has started.
"""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import collectives
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import batch_sharding, check_batch, make_mesh
from motionaura_jax.planning import machines
from motionaura_jax.planning.estimate import Estimate, Question
from motionaura_jax.systems import base, registry
from motionaura_jax.training import optimizer, state, step
from motionaura_jax.training.groups import Groups
from motionaura_jax.training.monitoring import flops


def measure(question: Question) -> Estimate:
    """Compute the answer on the devices of this process, or on those of a topology.

    Raises:
      UserError: the config or the mesh is invalid, or the topology's library is missing.
    """
    devices = jax.devices() if question.topology is None else _described(question.topology)
    mesh = make_mesh(MeshConfig(**question.mesh), devices)
    system: base.System = registry.system_class(question.values.get("system", "")).planned(
        {**question.values, "mesh": question.mesh}
    )
    recipe = system.recipe
    for bucket in recipe.data.all_buckets():
        check_batch(mesh.shape, bucket.batch_size, recipe.train.accumulation)
    with jax.set_mesh(mesh):
        optimize = optimizer.of(system)
        current = state.abstract(system, optimize, mesh)
        places = state.shardings(current, mesh)
        frozen = system.frozen()
        frozen = state.placed(frozen, state.frozen_shardings(frozen, mesh))
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)),
            dict(system.batch_spec()),
        )
        held = {
            "parameters": current.params,
            "optimizer": current.opt_state,
            "average": current.ema,
            "extra": current.extra,
            "frozen": frozen,
            "batch": batch,
        }

        known: dict[str, Any] = {
            "devices": mesh.size,
            "parameters": state.parameter_count(current.params),
            "trained": state.parameter_count(Groups.of(system).partition(current.params)[0]),
            "uncounted": system.uncounted(),
            "held": {name: state.device_bytes(tree) for name, tree in held.items()},
        }
        if not question.compiled:
            return Estimate(**known)
        function = step.make_train_step(system, optimize, places)
        return Estimate(
            **known,
            **_compile(mesh, function, current, frozen, batch),
            model_flops=flops.model_flops(system, current, frozen, batch),
        )


def _compile(mesh: Any, function: Any, *arguments: PyTree) -> dict[str, Any]:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start

    memory, program = compiled.memory_analysis(), compiled.as_text()
    kernels = collectives.runs(program) if mesh.devices.flat[0].platform == "gpu" else None
    return {
        "temporary": memory.temp_size_in_bytes,
        # Results that reuse the memory of an argument need no more.
        "results": max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        "xla_flops": float((compiled.cost_analysis() or {}).get("flops", math.nan)),
        "collectives": collectives.bytes_by_kind(collectives.collectives(program)),
        "exposed": collectives.exposed_by_kind(program) if kernels else {},
        "launches": kernels and kernels.total(),
        "ffts": kernels and kernels["fft"],
        "compile_seconds": seconds,
    }


def _described(topology: str) -> Sequence[Any]:
    """Return the devices of a topology, which can be compiled for but not used."""
    from jax.experimental import topologies

    name, _, sizes = topology.partition(":")
    gpu = machines.machine(name).gpu
    try:
        if gpu is None:
            return topologies.get_topology_desc(topology, "tpu").devices
        return topologies.get_topology_desc(platform="cuda", target_config=gpu.target, topology=sizes).devices
    except Exception as error:  # libtpu and the CUDA plugin, present or not, raise many types
        library, remedy = ("libtpu", "tpu") if gpu is None else ("the CUDA plugin of JAX", machines.GPU_EXTRA)
        raise UserError(
            f"--device: {library} cannot describe {topology} ({error}); {machines.install(remedy)}"
        ) from error


def main(stream: Any = None) -> int:
    """Read a question from stdin and print the estimate, or the error, as one line of JSON."""
    question = Question(**json.load(stream or sys.stdin))
    answer: Mapping[str, Any]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            answer = dataclasses.asdict(measure(question))
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
