"""A real SLURM on this machine, configured as two nodes for the duration of a `with` block; no other daemon may run.

Requires root, because munge and SLURM must trust each other's files, and Debian's slurm-wlm.
"""

import contextlib
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

from motionaura_jax.training.monitoring.writers import read_metrics
from motionaura_jax.weights import steps
from tests import compilation

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
STEPS = 30
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
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
    """Return the missing SLURM programs and privileges; empty if the test can run."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return lacking + ([] if os.geteuid() == 0 else ["root"])


def free_ports(count: int) -> list[int]:
    """Return free local ports."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def wait_for(condition, what: str, seconds: float = 240, step: float = 0.5):
    """Return the first true value of `condition()`."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"{what} did not come within {seconds} s"
        time.sleep(step)
    return value


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Start munge, the controller and two nodes; at the end stop jobs and daemons by their pid files."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)  # as munge requires
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname(), folder=folder, ports=free_ports(3)))
    before = dict(os.environ)
    os.environ |= {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{before['PATH']}:/usr/sbin"}
    try:
        start_munge(folder)
        call("slurmctld")
        for node in ("n1", "n2"):
            call("slurmd", "-N", node)
        wait_for(idle, "two idle nodes", 60)
        yield
        call("scancel", "--user=root")
        wait_for(lambda: not call("squeue", "-h").strip(), "the end of all jobs", 90)
    finally:
        for path in folder.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)
        wait_for(lambda: not list(folder.glob("*.pid")), "the end of the daemons", 30)
        shutil.rmtree(folder)
        os.environ.clear()
        os.environ.update(before)


def start_munge(folder: Path) -> None:
    """Start munge with a separate key: the machine's own may be stopped or belong to a real cluster."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    call("munged", *(f"--{flag}={folder / name}" for flag, name in files.items()), f"--seed-file={folder}/munge.seed")


def submit(config: Path, *flags: str) -> str:
    """Submit launch/slurm.sbatch, with `run` and `job.log` next to `config`; return the job id."""
    folder = config.parent
    # `-P -m motionaura_jax.train` becomes tests/cluster/worker.py; all else is Python.
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$3" != motionaura_jax.train ] || {{ shift 3; set -- {ROOT}/tests/cluster/worker.py "$@"; }}\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    variables = {
        "PYTHON": python,
        "PYTHONPATH": ROOT,
        "MAX_RESTARTS": 1,
        # Both nodes share this machine's address and have no resolvable name, so pass the address of process 0.
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}",
        **compilation.QUICKLY,
    }
    exported = "ALL," + ",".join(f"{key}={value}" for key, value in variables.items())
    own = (f"--chdir={folder}", f"--output={folder}/job.log", f"--export={exported}")
    script = f"{ROOT}/launch/slurm.sbatch"
    return call("sbatch", "--parsable", *own, script, f"--config={config}", f"--workdir={folder}/run", *flags).strip()


def state(job: str) -> str:
    """Return the state of a job, such as RUNNING; empty once SLURM has forgotten it."""
    lines = call("scontrol", "show", "job", job).split()
    return next(word.split("=")[1] for word in lines if word.startswith("JobState="))


def idle() -> bool:
    """Return True if both nodes are idle."""
    return call("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2"


def logged(workdir: Path) -> list[int]:
    """Return the steps in `metrics.jsonl`, in order."""
    return [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]


def requeue(job: str) -> None:
    """Requeue the job as a user or a preemption does: SLURM signals the processes and restarts it."""
    call("scontrol", "requeue", job)


def come_to_the_limit(job: str) -> None:
    """Send the signal that `--signal` sends before the time limit: the script ends the processes and requeues the job."""
    call("scancel", "--batch", "--signal=USR1", job)


def lose_a_process(job: str) -> None:
    """Kill one of the two processes, as the OOM killer would."""
    pids = [int(line.split()[0]) for line in call("scontrol", "listpids", f"{job}.0", "n2").splitlines()[1:]]
    os.kill(max(pids), signal.SIGKILL)


def interrupt(job: str, workdir: Path, interruption: Callable[[str], None], step: int) -> int:
    """Interrupt a job after a step and let it restart; return the step of its newest checkpoint."""
    wait_for(lambda: len(logged(workdir)) >= step or state(job) in ENDED, f"step {step}")
    interruption(job)
    wait_for(lambda: state(job) == "PENDING", "the requeue")
    newest = int(steps.newest(workdir).name)
    # Otherwise SLURM holds the job for two minutes, to tell the end of one start from that of the next.
    wait_for(idle, "two nodes that have done with the job")
    call("scontrol", "update", f"JobId={job}", "StartTime=now")
    return newest


def train_through(config: Path, *interruptions: Callable[[str], None]) -> str:
    """Train `STEPS` steps on two nodes, interrupting each start but the last after three steps; return the log.

    Raises:
      AssertionError: a step is missing or repeated, or a start did not resume from the newest checkpoint.
    """
    workdir, log = config.parent / "run", config.parent / "job.log"
    job, resumed = submit(config), [0]
    for interruption in interruptions:
        resumed.append(interrupt(job, workdir, interruption, resumed[-1] + 3))
        assert resumed[-2] < resumed[-1] < STEPS
    wait_for(lambda: state(job) in ENDED, "the end of the job")
    text = log.read_text()
    assert state(job) == "COMPLETED", f"{call('scontrol', 'show', 'job', job)}\n{text[-3000:]}"
    assert logged(workdir) == list(range(1, STEPS + 1)), logged(workdir)
    for start, newest in enumerate(resumed[1:], 2):
        later = text.split(f"start {start}")[1]
        assert f"step {newest + 1}/{STEPS}" in later and f"step {newest}/{STEPS}" not in later
    return text
