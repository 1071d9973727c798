"""What follows from the facts: problems, warnings and the verdict.  Pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from motionaura_jax.health.facts import Facts

# Variables that are off in a normal run, with what they cost; "0", "false" and an empty value count as off.
COSTLY_VARIABLES = {
    "JAX_DISABLE_JIT": "every operation runs on its own, hundreds of times slower",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "compiled programs are slow",
    "JAX_ENABLE_X64": "arrays may become float64, twice the memory",
    "JAX_DEBUG_NANS": "every step waits for the device to look for NaN",
}
CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that does not work ("problem") or works less well than it could ("warning"), and the remedy."""

    level: Literal["problem", "warning"]
    fault: str
    remedy: str


def diagnose(facts: Facts) -> list[Finding]:
    """Returns all findings, problems first."""
    found = [*_installation(facts), *_checks(facts), *_accelerators(facts), *_machine(facts), *_variables(facts)]
    return sorted(found, key=lambda finding: finding.level)


def verdict(facts: Facts, findings: Sequence[Finding]) -> str:
    """Returns one line: how many problems there are, or what training and inference will run on."""
    problems = sum(finding.level == "problem" for finding in findings)
    warnings = len(findings) - problems
    if problems:
        return f"{_count(problems, 'problem')} to mend first"
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
            yield _problem(f"{name} {facts.versions[name]} does not fit jaxlib {jaxlib}", remedy)
    if len(plugins) > 1:
        yield _problem("the plugins for CUDA 12 and CUDA 13 are both installed", f"pip uninstall {plugins[0]}")
    if plugins and facts.versions.get("torch"):
        fault = "torch and JAX for CUDA share one environment and may overwrite each other's CUDA libraries"
        yield _warning(fault, "keep the extra `parity` in an environment of its own")


def _checks(facts: Facts) -> Iterator[Finding]:
    for name, error in facts.errors.items():
        if name == "devices":
            remedy = "check the driver and JAX_PLATFORMS; JAX_PLATFORMS=cpu runs without the accelerator"
            yield _problem(f"no JAX device answers: {error}", remedy)
        else:
            yield _problem(f"{name} does not work: {error}", "pip install --force-reinstall -r requirements.txt")
    if not facts.devices and "devices" not in facts.errors:
        yield _problem("JAX shows no device", "mend the other problems first")
    if not facts.h264:
        remedy = "pip install --force-reinstall av; until then write .gif, .png or .npz"
        yield _warning("FFmpeg cannot write H.264", remedy)


def _accelerators(facts: Facts) -> Iterator[Finding]:
    used = {device["platform"] for device in facts.devices}
    if not facts.accelerators or used != {"cpu"}:
        return
    fault = f"JAX uses the CPU although there is {facts.accelerators[0]}"
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
        yield _warning(f"{disk} GB of free disk here", "checkpoints need room: free some or put --workdir elsewhere")
    if not facts.cache.get("writable", True):
        fault = f"the compilation cache {facts.cache['path']} is not writable: every start compiles anew"
        yield _warning(fault, "set JAX_COMPILATION_CACHE_DIR to a folder of yours")


def _variables(facts: Facts) -> Iterator[Finding]:
    for name, cost in COSTLY_VARIABLES.items():
        if facts.environment.get(name, "").lower() not in ("", "0", "false"):
            yield _warning(f"{name}={facts.environment[name]}: {cost}", f"unset {name}")
    if "xla_force_host_platform_device_count" in facts.environment.get("XLA_FLAGS", ""):
        yield _warning("XLA_FLAGS splits the CPU into virtual devices, for tests only", "unset XLA_FLAGS")
    plugins = any(facts.versions.get(name) for name in CUDA_PLUGINS)
    if plugins and "cuda" in facts.environment.get("LD_LIBRARY_PATH", "").lower():
        fault = "LD_LIBRARY_PATH names CUDA libraries, which replace those that JAX brings"
        yield _warning(fault, "unset LD_LIBRARY_PATH")
