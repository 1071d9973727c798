"""A real SLURM on this machine: two nodes by configuration, for the time of a `with` block.  Needs root, slurm-wlm and munge.

python -m tests.cluster.slurm WORKDIR    what tests/cluster/test_slurm.py does first, with the log
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
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
STEPS = 12
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

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
    own_munge = subprocess.run(["munge", "-n"], capture_output=True).returncode != 0
    path = os.environ["PATH"]
    os.environ |= {"SLURM_CONF": str(config), "PATH": f"{path}:/usr/sbin"}
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
        for pid in pids:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGTERM)
        os.environ["PATH"] = path
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


def requeue(job: str) -> None:
    """What a person or a preemption does: SLURM signals the processes and starts the job again."""
    call("scontrol", "requeue", job)


def come_to_the_limit(job: str) -> None:
    """What `--signal` does ahead of the time limit: the script ends the processes and requeues the job."""
    call("scancel", "--batch", "--signal=USR1", job)


def lose_a_process(job: str) -> None:
    """Kills one of the two processes, as a lack of memory does."""
    pids = [int(line.split()[0]) for line in call("scontrol", "listpids", f"{job}.0", "n2").splitlines()[1:]]
    os.kill(max(pids), signal.SIGKILL)


def train_through(interruption: Callable[[str], None], folder: Path, config: Path) -> str:
    """Trains `STEPS` steps on two nodes, interrupted after the third; returns the log.

    Raises:
      AssertionError: a step is missing or done twice, or the run did not resume from its newest checkpoint.
    """
    workdir, log = folder / "run", folder / "job.log"
    job = submit(f"--config={config}", f"--workdir={workdir}", log=log)
    wait_for(lambda: len(logged(workdir)) >= 3 or state(job) in ENDED, "step 3")
    interruption(job)
    wait_for(lambda: state(job) == "PENDING", "the requeue")
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert 0 < newest < STEPS
    call("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM would hold it for two minutes
    wait_for(lambda: state(job) in ENDED, "the end of the job")
    text = log.read_text()
    assert state(job) == "COMPLETED", text[-3000:]
    assert logged(workdir) == list(range(1, STEPS + 1)), logged(workdir)
    assert "start 2" in text and f"step {newest + 1}/{STEPS}" in text.split("start 2")[1]
    assert f"step {newest}/{STEPS}" not in text.split("start 2")[1]
    return text


def main() -> None:
    """Runs the check in the folder that is named, with the smallest tokenizer."""
    from tests.cluster.recipes import tokenizer

    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with cluster():
        print(train_through(requeue, folder, tokenizer(folder, STEPS)))


if __name__ == "__main__":
    main()
