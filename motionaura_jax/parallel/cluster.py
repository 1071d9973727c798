"""Place of this process in a run, from flags, environment variables or JAX's cluster detection.

JAX detects SLURM, Open MPI, TPU pods and indexed Kubernetes jobs. This module adds what JAX lacks:

- flags and variables for the number of processes and of this process (JAX reads a variable for the address only);
- the place before `jax.distributed.initialize`, for `membership`;
- several GPUs per process (JAX gives each process of SLURM and Open MPI one GPU);
- a plain start for single-process jobs and for Kubernetes pods outside an indexed job, where JAX raises an error.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Checked, Natural, Processes, Seconds

VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
"""Environment variables with the meaning of the flags of these names; launch/local.sh sets them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One process among those of a run.

    Attributes:
      coordinator: HOST:PORT at which process 0 waits for the others.
      count, index: number of processes, and number of this process.
      devices: accelerators of the machine that this process may use; None for all visible ones.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted(Checked):
    """Flags of a command about its place. `find` fills those that are None.

    Attributes:
      heartbeat_timeout: seconds of silence after which a process counts as gone and the others end.
      start_timeout: seconds that processes wait for each other at the start.
    """

    coordinator_address: str | None = None
    num_processes: Processes | None = None
    process_id: Natural | None = None
    heartbeat_timeout: Seconds = 100
    start_timeout: Seconds = 120


def find(wanted: Wanted, environment: Mapping[str, str] | None = None) -> Place | None:
    """Return the place of this process, or None for single-process jobs.

    Flags come first, then `VARIABLES`, then the cluster.

    Raises:
      UserError: a part is missing, is not a number, or contradicts another.
    """
    environment = os.environ if environment is None else environment
    told = {name: _first(getattr(wanted, name), _variable(environment, name)) for name in VARIABLES}
    if None in told.values():
        found = _detect(environment, wanted.start_timeout)
        told = {name: _first(value, found.get(name)) for name, value in told.items()}
    if all(value is None for value in told.values()):
        return None
    for name, value in told.items():
        if value is None:
            raise UserError(f"--{name} is not given and no cluster provides it; pass --{name} or set {VARIABLES[name]}")
    if not told["process_id"] < told["num_processes"]:
        raise UserError(
            f"process_id={told['process_id']} of num_processes={told['num_processes']}; processes count from 0"
        )
    if not re.fullmatch(r".+:\d+", told["coordinator_address"]):
        raise UserError(f"coordinator_address={told['coordinator_address']}: give HOST:PORT of process 0")
    return Place(
        coordinator=told["coordinator_address"],
        count=told["num_processes"],
        index=told["process_id"],
        devices=share_of_devices(environment),
    )


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _variable(environment: Mapping[str, str], name: str) -> Any:
    text = environment.get(VARIABLES[name])
    if not text or name == "coordinator_address":
        return text or None
    if not text.isdecimal():
        raise UserError(f"{VARIABLES[name]}={text}: not a number; set it to a whole number or unset it")
    return int(text)


def _detect(environment: Mapping[str, str], timeout: int) -> dict[str, Any]:
    """Ask JAX's detectors; return {} for single-process jobs.

    They are internal: the public way to them, `jax.distributed.initialize()`, already joins the run.
    """
    from jax._src.clusters import ClusterEnv, K8sCluster

    def present(cluster: type[ClusterEnv]) -> bool:
        # Outside an indexed job a pod runs alone, and may lack the rights to ask Kubernetes about itself.
        lone_pod = cluster is K8sCluster and "JOB_COMPLETION_INDEX" not in environment
        return not cluster.opt_in_only_method and not lone_pod and cluster.is_env_present()

    cluster = next(filter(present, ClusterEnv._cluster_types), None)
    if cluster is None:
        return {}
    try:
        if cluster.get_process_count() == 1:
            return {}
        return {
            "coordinator_address": cluster.get_coordinator_address(timeout, environment.get("JAX_COORDINATOR_PORT")),
            "num_processes": cluster.get_process_count(),
            "process_id": cluster.get_process_id(),
        }
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"{cluster.__name__}: cannot tell the place of this process ({error}); "
            f"pass --coordinator_address, --num_processes and --process_id"
        ) from error


def share_of_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the GPUs of this process if several processes of its node see the same ones; else None, for all.

    If the number of GPUs of the node is unknown, as under Open MPI, each process takes one, as in JAX.

    Raises:
      UserError: the node has more processes than GPUs.
    """
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None  # JAX reads the variable itself
    local, tasks = _on_this_node(environment)
    if tasks == 1:
        return None
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return (local,)
    visible = [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    if len(visible) < 2:
        return None  # one of its own, or none at all
    if len(visible) < tasks:
        raise UserError(f"{tasks} processes on a node with {len(visible)} GPUs; start at most one process for each GPU")
    share = len(visible) // tasks
    return tuple(range(local * share, (local + 1) * share))


def _on_this_node(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of this process on its node and the number of processes there."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        return int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]), int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
    counts = [  # "2(x3),1" stands for three nodes with two tasks and one with one
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
        for _ in range(int(times or 1))
    ]
    node = int(environment.get("SLURM_NODEID", 0))
    return int(environment.get("SLURM_LOCALID", 0)), counts[node] if node < len(counts) else 1
