"""The machine: devices that work, accelerators, cores, memory, disk, compilation cache and environment."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motionaura_jax.core import memory, process

PROBE_SECONDS = 120

PREFIXES = ("JAX_", "XLA_", "NCCL_", "LIBTPU_", "TPU_", "SLURM_JOB", "MOTIONAURA_")
NAMES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TF_CPP_MIN_LOG_LEVEL",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
)


def probe(command: Sequence[str] = (), seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """Import every library and compute on every device, in a child process.

    Args:
      command: command of the child; by default the module `health.probe`.

    Returns:
      "errors" by name of the failed check, and the results of the others ("ffmpeg", "h264", "devices").
    """
    command = command or process.child_command("motionaura_jax.health.probe")
    # Otherwise the probe takes most of the GPU's memory, or fails if another process has it.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        output, fate = child.stdout, f"the interpreter ended with status {child.returncode}; {_last_line(child.stderr)}"
    except subprocess.TimeoutExpired as timeout:
        # After a timeout the output is bytes, regardless of `text`.
        output = (timeout.stdout or b"").decode(errors="replace")
        fate = f"no answer in {seconds:g} s"
    errors: dict[str, str] = {}
    facts: dict[str, Any] = {}
    unfinished = None
    for line in filter(lambda line: line.startswith("{"), output.splitlines()):
        report = json.loads(line)
        unfinished = report.pop("start", None)
        name = report.pop("end", None)
        if "error" in report:
            errors[name] = " ".join(report.pop("error").split())
        facts |= report
    if unfinished or not output:
        errors[unfinished or "probe"] = fate
    return {"errors": errors, **facts}


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it printed nothing")


def accelerators() -> list[str]:
    """Return the accelerators that the operating system lists: NVIDIA GPUs by name, TPU chips by device file."""
    tpus = [str(path) for path in sorted(Path("/dev").glob("accel[0-9]*"))]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return tpus
    query = (tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return [*tpus, "NVIDIA driver that does not answer"]
    if answer.returncode:
        return [*tpus, f"NVIDIA driver that fails: {_last_line(answer.stdout + answer.stderr)}"]
    return [*tpus, *answer.stdout.splitlines()]


def host() -> dict[str, Any]:
    """Return system, usable cores, memory in GB (the limit of the container, if any) and free disk here in GB."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "system": sys.platform,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gb": None if (size := memory.total()) is None else round(size / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
    }


def cache(folder: Path | None) -> dict[str, Any]:
    """Return path, writability and size in MB of the compilation cache; a missing folder is as writable as its parent."""
    if folder is None:
        return {"path": "(no home folder)", "writable": False, "size_mb": 0.0}
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    sizes = (path.stat().st_size for path in folder.glob("*") if path.is_file())
    return {
        "path": str(folder),
        "writable": existing.is_dir() and os.access(existing, os.W_OK),
        "size_mb": round(sum(sizes) / 1e6, 1),
    }


def xla_flags() -> dict[str, str]:
    """Return the XLA flags that training sets on this machine and on GPUs, and those that make a resumed run exact there."""
    kind = process.accelerator()
    return {
        f"on this machine ({kind})": process.xla_flags(kind) or "none",
        "on GPUs": process.xla_flags("gpu"),
        "not set; exact resuming on GPUs needs": process.DETERMINISTIC,
    }


def environment() -> dict[str, str]:
    """Return the variables that matter; none of them contains a secret."""
    return {name: value for name, value in sorted(os.environ.items()) if name in NAMES or name.startswith(PREFIXES)}
