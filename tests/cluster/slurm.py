"""A real SLURM on this machine: two nodes by configuration, for the time of a `with` block.  Needs root, slurm-wlm and munge.

python -m tests.cluster.slurm WORKDIR    trains with `sbatch launch/slurm.sbatch`, requeues midway, checks the result
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
STEPS = 12

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
KillWait=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """What of a SLURM is not here; empty where the test can run."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return lacking + ([] if os.geteuid() == 0 else ["root"])


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def wait_for(condition, what: str, seconds: float = 240, step: float = 0.5):
    """Returns the first true value of `condition()`."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"{what} did not come within {seconds} s"
        time.sleep(step)
    return value


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Starts munge (unless it runs), the controller and two nodes; ends them by the pids that they wrote."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    (folder / "state").mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, ports=free_ports(3)))
    os.environ["SLURM_CONF"] = str(config)
    os.environ["PATH"] += ":/usr/sbin"
    own_munge = subprocess.run(["munge", "-n"], capture_output=True).returncode != 0
    try:
        if own_munge:
            os.makedirs("/run/munge", exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            call("runuser", "-u", "munge", "--", "munged")
        call("slurmctld")
        for node in ("n1", "n2"):
            call("slurmd", "-N", node)
        wait_for(lambda: call("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", "two idle nodes", 60)
        yield folder
    finally:
        pids = [*folder.glob("*.pid"), *([Path("/run/munge/munged.pid")] if own_munge else [])]
        for path in pids:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)
        os.environ.pop("SLURM_CONF")


def submit(*flags: str, log: Path, **variables: str) -> str:
    """Submits launch/slurm.sbatch and returns the number of the job."""
    # Both nodes have the address of this machine, and no name that resolves: where process 0 waits is told.
    environment = {"PYTHON": sys.executable, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}", **variables}
    exported = "ALL," + ",".join(f"{key}={value}" for key, value in environment.items())
    return call(
        "sbatch",
        "--parsable",
        f"--chdir={ROOT}",
        f"--output={log}",
        f"--export={exported}",
        "launch/slurm.sbatch",
        *flags,
    ).strip()


def state(job: str) -> str:
    """The state of a job, such as RUNNING, and nothing once SLURM has forgotten it."""
    lines = call("scontrol", "show", "job", job).split()
    return next(word.split("=")[1] for word in lines if word.startswith("JobState="))


def logged(workdir: Path) -> list[int]:
    """The steps in `metrics.jsonl`, in order."""
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row["step"] for row in rows if "loss" in row]


def train_through_a_requeue(folder: Path, config: Path) -> str:
    """Trains `STEPS` steps on two nodes with a requeue after the third; returns the log.

    Raises:
      AssertionError: a step is missing or done twice, or the run did not resume where it stopped.
    """
    workdir, log = folder / "run", folder / "job.log"
    job = submit(f"--config={config}", f"--workdir={workdir}", log=log)
    wait_for(lambda: len(logged(workdir)) >= 3 or state(job) == "FAILED", "step 3")
    call("scontrol", "requeue", job)
    wait_for(lambda: state(job) == "PENDING", "the requeue")
    stopped = logged(workdir)[-1]
    checkpoints = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert max(checkpoints) == stopped < STEPS, (checkpoints, stopped)
    call("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM would hold it for two minutes
    wait_for(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED"), "the end of the job")
    text = log.read_text()
    assert state(job) == "COMPLETED", text[-3000:]
    assert logged(workdir) == list(range(1, STEPS + 1)), logged(workdir)
    assert "start 1" in text and "start 2" in text
    return text


def main() -> None:
    """Runs the check in the folder that is named, with the smallest tokenizer."""
    from tests.cluster.recipes import tokenizer

    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with cluster():
        print(train_through_a_requeue(folder, tokenizer(folder, STEPS)))


if __name__ == "__main__":
    main()
