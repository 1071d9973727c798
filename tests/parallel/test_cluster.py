"""The GPUs that a process selects on its node, from the launcher's environment variables."""

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import cluster


def mpirun(local, tasks, **environment):
    """Return the variables that Open MPI sets for process `local` of `tasks` on a node."""
    place = {"OMPI_COMM_WORLD_LOCAL_RANK": str(local), "OMPI_COMM_WORLD_LOCAL_SIZE": str(tasks)}
    return {**place, **environment}


def srun(local, tasks, node=0, **environment):
    """Return the variables that SLURM sets for task `local` of a node; `tasks` is the number of tasks."""
    place = {"SLURM_LOCALID": str(local), "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}
    return {**place, **environment}


def gpus(names):
    return {"CUDA_VISIBLE_DEVICES": names}


@pytest.mark.parametrize("launch", [mpirun, lambda local, tasks, **others: srun(local, f"1,{tasks}", 1, **others)])
@pytest.mark.parametrize(
    ("names", "shares"),
    [
        (None, [(0,), (1,), (2,)]),
        ("4,5,6", [(0,), (1,), (2,)]),
        ("GPU-a,GPU-b,GPU-c,GPU-d,GPU-e,GPU-f,GPU-g", [(0, 1), (2, 3), (4, 5)]),
        ("6", [None] * 3),  # each sees only its own
        ("", [None] * 3),
    ],
)
def test_processes_of_one_node_share_its_gpus(launch, names, shares):
    environment = {} if names is None else gpus(names)
    assert [cluster.share_of_devices(launch(local, 3, **environment)) for local in range(3)] == shares


@pytest.mark.parametrize(
    "environment",
    [{}, gpus("0,1"), mpirun(0, 1), mpirun(0, 1, **gpus("0,1")), srun(0, "2,1(x3)", 3), srun(0, "1(x4)", 2)],
)
def test_a_process_alone_on_its_node_takes_all_gpus(environment):
    assert cluster.share_of_devices(environment) is None


def test_devices_that_are_named_are_left_to_jax():
    assert cluster.share_of_devices(mpirun(1, 2, JAX_LOCAL_DEVICE_IDS="3")) is None


def test_more_processes_than_gpus_are_one_line():
    with pytest.raises(UserError, match="3 processes on a node with 2 GPUs; start at most one process for each GPU"):
        cluster.share_of_devices(mpirun(0, 3, **gpus("0,1")))
