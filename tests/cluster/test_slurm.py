"""`launch/slurm.sbatch` on a real two-node SLURM: no interruption loses or repeats a step."""

import re
from pathlib import Path

import pytest

from tests.cluster import recipes, slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"a real SLURM needs {', '.join(slurm.missing())}"),
]

RECIPE = {"train": {"steps": slurm.STEPS, "log_every": 1}, "batch_seconds": 0.2}


@pytest.fixture(scope="module", autouse=True)
def two_nodes():
    with slurm.cluster():
        yield


def test_a_requeued_job_resumes_at_the_step_where_it_stopped(tmp_path: Path) -> None:
    log = slurm.train_through(recipes.toy(tmp_path, **RECIPE), slurm.requeue)
    assert "stopped by a signal after step" in log and "preflight: process 0 on n1, process 1 on n2" in log


def test_a_job_requeues_itself_at_its_time_limit_and_again_after_it_lost_a_process(tmp_path: Path) -> None:
    config = recipes.toy(tmp_path, **RECIPE, checkpoint={"every": 1, "keep": 100})
    # Reaching the time limit does not use up the one restart that `slurm.submit` allows.
    log = slurm.train_through(config, slurm.come_to_the_limit, slurm.lose_a_process)
    limit, loss = log.split("start 2")
    assert "stopped by a signal after step" in limit and "the time limit is near; requeued" in limit
    assert "error: process 1 on n2 is gone" in loss
    assert re.search(r"a process is gone \(status \d+\), loss 1; requeued", loss)
    assert not list(tmp_path.glob("*.losses"))


def test_bad_input_ends_the_job_for_good(tmp_path: Path) -> None:
    job = slurm.submit(recipes.toy(tmp_path), "--config.train.stepz=3")
    slurm.wait_for(lambda: slurm.state(job) in slurm.ENDED, "the end of the job")
    log = (tmp_path / "job.log").read_text()
    assert slurm.state(job) == "FAILED" and "ExitCode=2:0" in slurm.call("scontrol", "show", "job", job), log
    assert "config.train.stepz: no such key; did you mean" in log
