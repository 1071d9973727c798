"""The cluster launchers start the same module with existing flags, and restart jobs that can continue.

SLURM runs for real (tests/cluster).  The others are tested by the commands they would run, with stubs for the programs they call.
"""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from motionaura_jax.core import cli, config
from motionaura_jax.parallel import cluster, distributed
from motionaura_jax.systems import registry
from tests.test_launch import Checkout, one_error

MODULE = "-P -m motionaura_jax.train"


@pytest.mark.parametrize("name", ["common.sh", "demo.sh", "local.sh", "slurm.sbatch", "test.sh", "tpu_pod.sh"])
def test_scripts_are_bash(root: Path, name: str) -> None:
    done = subprocess.run(["bash", "-n", root / "launch" / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "gke_jobset.yaml", "tpu_pod.sh", "skypilot.yaml"])
def test_all_start_the_same_module(root: Path, name: str) -> None:
    text = (root / "launch" / name).read_text()
    assert MODULE in text.replace(", ", " ")
    assert f"launch/{name}" in text and f"launch/{name}" in (root / "docs" / "clusters.md").read_text()


def test_examples_of_text_to_video_name_a_tokenizer_and_videos(root: Path) -> None:
    pages = "\n".join((root / "docs" / name).read_text() for name in ("clusters.md", "parallelism.md"))
    commands = [
        line for line in pages.replace("\\\n", "").splitlines() if "--workdir" in line and "text_to_video.py" in line
    ]
    assert len(commands) == 5
    for command in commands:
        assert "--config.tokenizer=" in command and "--config.data.manifest=" in command, command


# ---------------------------------------------------------------- SLURM

LOST = [distributed.AGAIN, 134, 135, 137, 139, 143]
"""Statuses after which another start may succeed: that of a lost process, and of one that a signal ended."""


class Job:
    """Job starts by launch/slurm.sbatch, with stubs for SLURM's programs."""

    def __init__(self, root: Path, folder: Path):
        self.checkout, self.losses = Checkout(root, folder), folder / "motionaura-7.losses"
        for name in ("scontrol", "scancel"):
            self.checkout.command(name, f'#!/bin/sh\necho {name} "$*" >>"$CALLS"\n')
        self.checkout.command("sleep", "#!/bin/sh\n")

    def start(self, step: str, **variables: str) -> tuple[int, bool, str]:
        """Start a job whose `srun` runs `step`; return its status, whether it requeued the job, and its output."""
        self.checkout.command("srun", f"#!/bin/sh\n{step}\n")
        slurm = {"NAME": "motionaura", "ID": "7", "NODELIST": "n[1-2]"}
        environment = {"PYTHON": "true", **{f"SLURM_JOB_{key}": value for key, value in slurm.items()}, **variables}
        done = self.checkout.run("slurm.sbatch", place=str(self.losses.parent), **environment)
        return done.returncode, "scontrol requeue 7" in self.checkout.called(), done.stderr


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Job:
    return Job(root, tmp_path)


@pytest.mark.parametrize("status", LOST)
def test_only_losses_count_as_restarts(job: Job, status: int) -> None:
    limits = {"MAX_RESTARTS": "2", "SLURM_RESTART_COUNT": "30"}
    for count in (1, 2):
        ended, requeued, said = job.start(f"exit {status}", **limits)
        assert requeued and f"a process is gone (status {status}), loss {count}; requeued" in said
    ended, requeued, said = job.start(f"exit {status}", **limits)
    assert ended == status and not requeued and "lost a process 3 times, more than MAX_RESTARTS" in said
    assert not job.losses.exists()


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_job_that_is_done_or_wrong_ends(job: Job, status: int) -> None:
    job.start("exit 75")
    assert job.start(f"exit {status}")[:2] == (status, False)
    assert not job.losses.exists()


def test_the_time_limit_is_no_loss(job: Job) -> None:
    step = 'kill -USR1 $PPID; until grep -q "scancel --signal=TERM 7.0" "$CALLS"; do :; done; /bin/sleep 0.2'
    _, requeued, said = job.start(step, MAX_RESTARTS="0")
    assert requeued and "the time limit is near; requeued" in said and not job.losses.exists()


@pytest.mark.parametrize("status", [0, 143])
def test_slurm_itself_starts_a_job_again_that_it_ended(job: Job, status: int) -> None:
    job.start("exit 75")
    assert job.start(f"kill $PPID; /bin/sleep 0.2; exit {status}")[:2] == (status, False)
    assert len(job.losses.read_text().splitlines()) == 1


def test_a_job_with_gpus_needs_a_jax_for_them(job: Job) -> None:
    gpus = {"PYTHON": "python3", "SLURM_GPUS_ON_NODE": "8"}
    assert job.start("exit 0", **gpus)[0] == 0
    status, _, said = job.start("exit 0", **gpus, PLUGIN_STATUS="1")
    assert status == 2 and "has no JAX for the GPUs of the job" in said


# ---------------------------------------------------------------- GKE


@pytest.fixture(params=["gpu", "tpu"])
def jobset(request: pytest.FixtureRequest, root: Path) -> dict:
    documents = yaml.safe_load_all((root / "launch" / "gke_jobset.yaml").read_text())
    (found,) = [each for each in documents if each["metadata"]["labels"] == {"accelerator": request.param}]
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    return found


def job_of(jobset: dict) -> dict:
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"]
    return job


def container_of(jobset: dict) -> dict:
    (container,) = job_of(jobset)["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_pods_run_the_module_with_keys_that_exist(root: Path, jobset: dict) -> None:
    container = container_of(jobset)
    assert container["command"] == ["python", "-P", "-m", "motionaura_jax.train", "--requeue"]
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in container["args"])
    place = flags.pop("config").replace("/opt/motionaura_jax", str(root))
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(flags.pop("workdir").startswith(f"{mount}/") for mount in mounts)
    values = config.read(place, [f"--{key}={value}" for key, value in flags.items()])
    config.build(registry.system_class(values["system"]).Recipe, values)


def test_a_jobset_starts_again_except_after_bad_input(jobset: dict) -> None:
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 10
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    spec = job_of(jobset)["template"]["spec"]
    assert spec["backoffLimit"] == 0 and spec["template"]["spec"]["restartPolicy"] == "Never"
    ((rule),) = spec["podFailurePolicy"]["rules"]
    codes = {
        "containerName": container_of(jobset)["name"],
        "operator": "In",
        "values": [cli.FAILED, distributed.FAILED],
    }
    assert rule == {"action": "FailJob", "onExitCodes": codes}


def test_a_bucket_may_be_the_disk_of_the_pods(jobset: dict) -> None:
    metadata = job_of(jobset)["template"]["spec"]["template"]["metadata"]
    assert metadata == {
        "annotations": {"gke-gcsfuse/volumes": "true"}
    }  # otherwise GKE does not add the sidecar that mounts it


def test_gpu_pods_are_told_their_place_and_tpu_pods_find_it(jobset: dict) -> None:
    name, job = jobset["metadata"]["name"], job_of(jobset)
    variables = {each["name"]: each.get("value") for each in container_of(jobset)["env"]}
    told = {key: value for key, value in variables.items() if key in cluster.VARIABLES.values()}
    if jobset["metadata"]["labels"]["accelerator"] == "tpu":
        assert not told
        return
    told["JAX_PROCESS_ID"] = "1"  # of the pod, by its annotation
    place = cluster.find(cluster.Wanted(), {key: value.replace("$(JOBSET)", name) for key, value in told.items()})
    assert place is not None and place.count == job["template"]["spec"]["parallelism"]
    assert place.coordinator.startswith(f"{name}-{job['name']}-0-0.{name}:")


# ---------------------------------------------------------------- SkyPilot


def test_skypilot_tells_each_node_its_place_and_learns_of_a_lost_process(root: Path, tmp_path: Path) -> None:
    task = yaml.safe_load((root / "launch" / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == LOST
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\necho "$JAX_COORDINATOR_ADDRESS $JAX_PROCESS_ID/$JAX_NUM_PROCESSES $*"; kill -KILL $$\n'
    )
    python.chmod(0o755)
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    flags = {"FLAGS": "--config=a.json --workdir=/runs/a", "PATH": "/usr/bin:/bin"}
    script = tmp_path / "run.sh"
    script.write_text(task["run"])
    done = subprocess.run(["bash", script], env={**nodes, **flags}, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"10.0.0.1:8476 1/2 {MODULE} --requeue --config=a.json --workdir=/runs/a\n"
    assert done.returncode in LOST


# ---------------------------------------------------------------- TPU pods

GCLOUD = """#!/bin/bash
# A TPU that is what the file `state` says; training ends with the statuses in the file `statuses`, one after the other.
echo "${*:4}" >>calls
case $4 in
  accelerator-types | versions)
    [ "$4" != "$UNKNOWN" ] || { printf 'ERROR: NOT_FOUND\nmore\n' >&2; exit 1; } ;;
  describe) cat state ;;
  create) echo READY >state ;;
  delete) : >state ;;
  ssh)
    case $* in *'bin/python -P -m motionaura_jax.train'*) ;; *) exit 0 ;; esac
    read -r status <statuses; sed -i 1d statuses
    case $status in gone) echo PREEMPTED >state; exit 255 ;; *) exit "$status" ;; esac ;;
esac
"""


def train_on_tpu(root: Path, folder: Path, statuses: list[str], state: str = "", **variables: str):
    """Run launch/tpu_pod.sh with a stub for gcloud; return the exit status and the shortened calls."""
    checkout = Checkout(root, folder)
    checkout.command("gcloud", f"#!/bin/bash\ncd {folder}\n" + GCLOUD.split("\n", 1)[1])
    (folder / "state").write_text(state)
    (folder / "statuses").write_text("\n".join(statuses))
    place = {"TPU": "pod", "ZONE": "z", "TYPE": "v5litepod-16", "VERSION": "v2", "PAUSE": "0"}
    result = checkout.run("tpu_pod.sh", "--config=a b.json", "--workdir=/runs/a", **{**place, **variables})
    calls = (folder / "calls").read_text() if (folder / "calls").exists() else ""
    short = re.findall(r"^create|^delete|^scp|pip install|train --requeue", calls, re.MULTILINE)
    return result, short, calls


def test_a_tpu_that_is_taken_away_is_created_anew(root: Path, tmp_path: Path) -> None:
    result, calls, text = train_on_tpu(root, tmp_path, ["gone", "75", "0"], SPOT="yes")
    assert result.returncode == 0, result.stderr
    afresh = ["create", "scp", "pip install", "train --requeue"]
    assert calls == [*afresh, "delete", *afresh, "train --requeue"]
    assert "create pod --zone=z --quiet --accelerator-type=v5litepod-16 --version=v2 --spot" in text
    assert f"{MODULE} --requeue --config=a\\ b.json --workdir=/runs/a" in text


def test_a_tpu_that_is_there_is_used_and_an_error_ends_the_run(root: Path, tmp_path: Path) -> None:
    result, calls, _ = train_on_tpu(root, tmp_path, ["2"], "READY")
    assert calls == ["scp", "pip install", "train --requeue"]
    assert "training ended with status 2; its reason is above" in one_error(result)


@pytest.mark.parametrize(("kind", "name"), [("accelerator-types", "v5litepod-16"), ("versions", "v2")])
def test_what_no_waiting_mends_ends_at_once(root: Path, tmp_path: Path, kind: str, name: str) -> None:
    result, calls, text = train_on_tpu(root, tmp_path, [], UNKNOWN=kind)
    assert calls == [] and f"{kind} describe {name} --zone=z" in text
    assert f"gcloud finds no {name} among the {kind} of z: ERROR: NOT_FOUND" in one_error(result)


def test_missing_settings_of_a_tpu_are_one_line(root: Path, tmp_path: Path) -> None:
    result, calls, _ = train_on_tpu(root, tmp_path, [], ZONE="")
    assert calls == [] and "ZONE is not set; usage: TPU=NAME ZONE=ZONE" in one_error(result)
