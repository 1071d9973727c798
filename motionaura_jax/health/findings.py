"""Facts about installation and machine, and the problems and warnings that follow from them."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from motionaura_jax.core import process
from motionaura_jax.health import installation, machine

# Variables that are off in a normal run, and their cost; "0", "false" and an empty value count as off.
COSTLY_VARIABLES = {
    "JAX_DISABLE_JIT": "operations run one by one, hundreds of times slower",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "compiled programs are slow",
    "JAX_ENABLE_X64": "arrays may become float64, twice the memory",
    "JAX_DEBUG_NANS": "every step waits for the device to look for NaN",
}
CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about installation and machine, as plain data.

    Attributes:
      python: version of the interpreter.
      versions: installed distributions by lower-case name with dashes; None for a required one that is missing.
      conflicts: unmet requirements of installed distributions, in words.
      extras: True for each extra that is installed.
      ffmpeg: versions of the FFmpeg libraries in PyAV.
      h264: True if they can write H.264.
      errors: errors of failed checks of the probe, by name.
      devices: "platform", "kind" and "memory_gb" (None if unknown) of each JAX device.
      accelerators: accelerators that the operating system lists, used by JAX or not.
      host: "cores", "memory_gb" and "disk_free_gb" of the working directory; None if unknown.
      cache: "path", "writable" and "size_mb" of the compilation cache.
      xla_flags: XLA flags of training: those set on this machine, on any with GPUs, and those that a user may want.
      environment: variables that affect JAX or this package.
    """

    python: str
    versions: Mapping[str, str | None] = field(default_factory=dict)
    conflicts: Sequence[str] = ()
    extras: Mapping[str, bool] = field(default_factory=dict)
    ffmpeg: Mapping[str, str] = field(default_factory=dict)
    h264: bool = True
    errors: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[Mapping[str, Any]] = ()
    accelerators: Sequence[str] = ()
    host: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    xla_flags: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault and its remedy: "problem" if something does not work, "warning" if it works less well than it could."""

    level: Literal["problem", "warning"]
    fault: str
    remedy: str


def gather() -> Facts:
    """Collect the facts; this takes a few seconds, most of them in the probe."""
    core = installation.core_requirements()
    return Facts(
        python=platform.python_version(),
        versions=installation.versions(core),
        conflicts=installation.conflicts(core),
        extras=installation.extras(),
        **machine.probe(),
        accelerators=machine.accelerators(),
        host=machine.host(),
        cache=machine.cache(process.compilation_cache()),
        xla_flags=machine.xla_flags(),
        environment=machine.environment(),
    )


def diagnose(facts: Facts) -> list[Finding]:
    """Return all findings, problems first."""
    found = [*_installation(facts), *_checks(facts), *_accelerators(facts), *_machine(facts), *_variables(facts)]
    return sorted(found, key=lambda finding: finding.level)


def verdict(facts: Facts, findings: Sequence[Finding]) -> str:
    """Return one line: the number of problems, or the devices that training and inference will use."""
    problems = sum(finding.level == "problem" for finding in findings)
    warnings = len(findings) - problems
    if problems:
        return f"{_count(problems, 'problem')} to fix first"
    ready = f"ready to run on {_count(len(facts.devices), 'device')} of kind {facts.devices[0]['kind']}"
    return f"{ready}, {_count(warnings, 'warning')}" if warnings else ready


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _problem(fault: str, remedy: str) -> Finding:
    return Finding(level="problem", fault=fault, remedy=remedy)


def _warning(fault: str, remedy: str) -> Finding:
    return Finding(level="warning", fault=fault, remedy=remedy)


def _installation(facts: Facts) -> Iterator[Finding]:
    if tuple(map(int, facts.python.split(".")[:2])) < (3, 11):
        yield _problem(f"Python {facts.python} is too old", "install Python 3.11 or newer")
    for conflict in facts.conflicts:
        yield _problem(conflict, "pip install -r requirements.txt")
    jaxlib = facts.versions.get("jaxlib")
    plugins = [name for name in CUDA_PLUGINS if facts.versions.get(name)]
    for name in plugins:
        if facts.versions[name] != jaxlib:
            remedy = f'pip install "{name}[with-cuda]=={jaxlib}"'
            yield _problem(f"{name} {facts.versions[name]} does not match jaxlib {jaxlib}", remedy)
    if len(plugins) > 1:
        yield _problem("the plugins for CUDA 12 and CUDA 13 are both installed", f"pip uninstall {plugins[0]}")
    if plugins and facts.versions.get("torch"):
        fault = "torch and JAX for CUDA share one environment and may overwrite each other's CUDA libraries"
        yield _warning(fault, "install the extra `parity` in a separate environment")


def _checks(facts: Facts) -> Iterator[Finding]:
    for name, error in facts.errors.items():
        if name == "devices":
            yield _problem(f"no JAX device answers: {error}", process.NO_DEVICE)
        else:
            yield _problem(f"{name} does not work: {error}", "pip install --force-reinstall -r requirements.txt")
    if not facts.devices and "devices" not in facts.errors:
        yield _problem("JAX finds no device", "fix the other problems first")
    if not facts.h264:
        remedy = "pip install --force-reinstall av; until then write .gif, .png or .npz"
        yield _warning("FFmpeg cannot write H.264", remedy)


def _accelerators(facts: Facts) -> Iterator[Finding]:
    used = {device["platform"] for device in facts.devices}
    if not facts.accelerators or used != {"cpu"}:
        return
    fault = f"JAX uses the CPU, not the {facts.accelerators[0]}"
    if "cpu" in facts.environment.get("JAX_PLATFORMS", ""):
        yield _warning(fault, "unset JAX_PLATFORMS")
    else:
        extra = "tpu" if facts.accelerators[0].startswith("/dev/accel") else "cuda12"
        yield _warning(fault, f'pip install -c requirements.txt ".[{extra}]"')


def _machine(facts: Facts) -> Iterator[Finding]:
    memory, disk = facts.host.get("memory_gb"), facts.host.get("disk_free_gb")
    if memory is not None and memory < 4:
        yield _warning(f"{memory} GB of memory", "only the tiny configurations will fit")
    if disk is not None and disk < 5:
        yield _warning(
            f"{disk} GB of free disk here", "checkpoints need space: free some, or put --workdir on another disk"
        )
    if not facts.cache.get("writable", True):
        fault = f"the compilation cache {facts.cache['path']} is not writable: every start compiles again"
        yield _warning(fault, "set JAX_COMPILATION_CACHE_DIR to a folder that you can write to")


def _variables(facts: Facts) -> Iterator[Finding]:
    for name, cost in COSTLY_VARIABLES.items():
        if facts.environment.get(name, "").lower() not in ("", "0", "false"):
            yield _warning(f"{name}={facts.environment[name]}: {cost}", f"unset {name}")
    if "xla_force_host_platform_device_count" in facts.environment.get("XLA_FLAGS", ""):
        yield _warning(
            "XLA_FLAGS splits the CPU into virtual devices, which only tests and the demo need", "unset XLA_FLAGS"
        )
    plugins = any(facts.versions.get(name) for name in CUDA_PLUGINS)
    if plugins and "cuda" in facts.environment.get("LD_LIBRARY_PATH", "").lower():
        fault = "LD_LIBRARY_PATH contains CUDA libraries, which replace those of JAX"
        yield _warning(fault, "unset LD_LIBRARY_PATH")
