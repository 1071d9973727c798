"""`launch/slurm.sbatch` on a real SLURM of two nodes: whatever interrupts a job, no step is lost or done twice.

Collected where SLURM is installed and the tests run as root; the summary says so where they do not (conftest.py).
"""

import subprocess
from pathlib import Path

import pytest

from tests.cluster import recipes, slurm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def two_nodes(tmp_path_factory: pytest.TempPathFactory):
    with slurm.cluster(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


def test_a_requeued_job_resumes_at_the_step_where_it_stopped(tmp_path: Path) -> None:
    log = slurm.train_through(slurm.requeue, tmp_path, recipes.tokenizer(tmp_path, slurm.STEPS))
    assert "stopped by a signal after step" in log and "preflight: process 0 on n1, process 1 on n2" in log


def test_a_job_at_its_time_limit_saves_and_requeues_itself(tmp_path: Path) -> None:
    log = slurm.train_through(slurm.come_to_the_limit, tmp_path, recipes.tokenizer(tmp_path, slurm.STEPS))
    assert "stopped by a signal after step" in log and "the time limit is near; requeued" in log


def test_a_job_that_loses_a_process_names_its_node_and_requeues_itself(tmp_path: Path) -> None:
    config = recipes.write(
        tmp_path, slurm.STEPS, system="mbq_vae", model=recipes.tiny.TOKENIZER, checkpoint={"every": 1, "keep": 100}
    )
    log = slurm.train_through(slurm.lose_a_process, tmp_path, config)
    assert "error: process 1 on n2 is gone" in log and "a process is gone (status" in log


def test_bad_input_ends_the_job_for_good(tmp_path: Path) -> None:
    config, log = recipes.tokenizer(tmp_path, 2), tmp_path / "job.log"
    job = slurm.submit(f"--config={config}", f"--workdir={tmp_path}/run", "--config.train.stepz=3", log=log)
    slurm.wait_for(lambda: slurm.state(job) in slurm.ENDED, "the end of the job")
    assert slurm.state(job) == "FAILED"
    assert "config.train.stepz: no such key; did you mean" in log.read_text()
    assert (
        "ExitCode=2:0"
        in subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True).stdout
    )
