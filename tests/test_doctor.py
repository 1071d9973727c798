"""`motionaura doctor`: findings for given facts, and robustness to broken installations and devices."""

import dataclasses
import json
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from motionaura_jax import doctor
from motionaura_jax.health import findings, installation, machine, probe
from motionaura_jax.health.findings import Facts

CPU = {"platform": "cpu", "kind": "cpu", "memory_gb": None}
GPU = {"platform": "gpu", "kind": "NVIDIA H100", "memory_gb": 80.0}
HEALTHY = Facts(
    python="3.12.1",
    versions={"jax": "0.11.2", "jaxlib": "0.11.2"},
    devices=[CPU],
    host={"memory_gb": 16.0, "disk_free_gb": 100.0},
    cache={"path": "cache", "writable": True},
)
CUDA = {"jax": "0.11.2", "jaxlib": "0.11.2", "jax-cuda12-plugin": "0.11.2"}


def with_changes(**changes: Any) -> Facts:
    return dataclasses.replace(HEALTHY, **changes)


def test_healthy_machine_has_no_findings() -> None:
    assert findings.diagnose(HEALTHY) == []
    assert findings.verdict(HEALTHY, []) == "ready to run on 1 device of kind cpu"


@pytest.mark.parametrize(
    ("changes", "level", "fault"),
    [
        ({"python": "3.10.4"}, "problem", "Python 3.10.4 is too old"),
        ({"conflicts": ["jax needs jaxlib<=0.11.2, installed is 0.12"]}, "problem", "jax needs jaxlib"),
        ({"versions": CUDA | {"jax-cuda12-plugin": "0.10.2"}}, "problem", "does not match jaxlib 0.11.2"),
        ({"versions": CUDA | {"jax-cuda13-plugin": "0.11.2"}}, "problem", "CUDA 12 and CUDA 13 are both"),
        ({"versions": CUDA | {"torch": "2.13.0"}}, "warning", "torch and JAX for CUDA"),
        ({"errors": {"av": "ImportError: libx264"}}, "problem", "av does not work: ImportError: libx264"),
        ({"errors": {"devices": "no driver"}, "devices": []}, "problem", "no JAX device answers: no driver"),
        ({"devices": []}, "problem", "JAX finds no device"),
        ({"h264": False}, "warning", "H.264"),
        ({"accelerators": ["NVIDIA H100"]}, "warning", "JAX uses the CPU, not the NVIDIA H100"),
        ({"host": {"memory_gb": 2.0}}, "warning", "2.0 GB of memory"),
        ({"host": {"disk_free_gb": 0.5}}, "warning", "0.5 GB of free disk"),
        ({"cache": {"path": "c", "writable": False}}, "warning", "cache c is not writable"),
        ({"environment": {"JAX_DISABLE_JIT": "1"}}, "warning", "JAX_DISABLE_JIT=1"),
        ({"environment": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}}, "warning", "virtual devices"),
        ({"versions": CUDA, "environment": {"LD_LIBRARY_PATH": "/opt/cuda/lib64"}}, "warning", "LD_LIBRARY_PATH"),
    ],
)
def test_fault_is_found(changes: Mapping[str, Any], level: str, fault: str) -> None:
    (finding,) = findings.diagnose(with_changes(**changes))
    assert finding.level == level and fault in finding.fault and finding.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"versions": CUDA, "devices": [GPU, GPU], "accelerators": ["NVIDIA H100", "NVIDIA H100"]},
        {"environment": {"JAX_DISABLE_JIT": "0", "JAX_ENABLE_X64": "False", "LD_LIBRARY_PATH": "/opt/cuda/lib64"}},
        {"versions": {**HEALTHY.versions, "torch": "2.13.0"}},
        {"host": {"memory_gb": None, "disk_free_gb": None}},
    ],
)
def test_harmless_facts_stay_silent(changes: Mapping[str, Any]) -> None:
    assert findings.diagnose(with_changes(**changes)) == []


@pytest.mark.parametrize(
    ("accelerator", "environment", "remedy"),
    [
        ("NVIDIA H100", {}, "[cuda12]"),
        ("/dev/accel0", {}, "[tpu]"),
        ("NVIDIA H100", {"JAX_PLATFORMS": "cpu"}, "unset JAX_PLATFORMS"),
    ],
)
def test_unused_accelerator(accelerator: str, environment: Mapping[str, str], remedy: str) -> None:
    (finding,) = findings.diagnose(with_changes(accelerators=[accelerator], environment=environment))
    assert remedy in finding.remedy


def test_problems_come_first_and_set_the_verdict() -> None:
    facts = with_changes(h264=False, errors={"av": "broken"}, python="3.9.1")
    found = findings.diagnose(facts)
    assert [finding.level for finding in found] == ["problem", "problem", "warning"]
    assert findings.verdict(facts, found) == "2 problems to fix first"
    warned = findings.diagnose(with_changes(h264=False))
    assert findings.verdict(HEALTHY, warned) == "ready to run on 1 device of kind cpu, 1 warning"


def write_probe(folder: Path, body: str) -> tuple[str, ...]:
    path = folder / "probe.py"
    path.write_text(f"import json, os, sys, time\nprint(json.dumps({{'start': 'av'}}), flush=True)\n{body}\n")
    return sys.executable, str(path)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("print(json.dumps({'end': 'av', 'error': 'two\\nlines'}))", "two lines"),
        ("sys.exit('no driver')", "the interpreter ended with status 1; no driver"),
        ("os.kill(os.getpid(), 11)", "the interpreter ended with status -11; it printed nothing"),
        ("time.sleep(60)", "no answer in 1 s"),
    ],
)
def test_probe_survives_what_breaks(body: str, error: str, tmp_path: Path) -> None:
    assert machine.probe(write_probe(tmp_path, body), seconds=1)["errors"] == {"av": error}


def test_probe_that_does_not_start() -> None:
    report = machine.probe([sys.executable, "-c", "raise SystemExit(3)"])
    assert report == {"errors": {"probe": "the interpreter ended with status 3; it printed nothing"}}


def test_failing_check_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "LIBRARIES", ("missing_library", "json"))
    monkeypatch.setattr(probe, "ffmpeg", dict)
    monkeypatch.setattr(probe, "devices", lambda: {"devices": [CPU]})
    probe.main()
    ends = [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if "end" in line]
    assert ends[0] == {"end": "missing_library", "error": "ModuleNotFoundError: No module named 'missing_library'"}
    assert ends[1:] == [{"end": "json"}, {"end": "ffmpeg"}, {"end": "devices", "devices": [CPU]}]


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("echo 'NVIDIA H100, 81559 MiB, 580.1'", ["NVIDIA H100, 81559 MiB, 580.1"]),
        ("echo 'no devices were found'; exit 6", ["NVIDIA driver that fails: no devices were found"]),
    ],
)
def test_accelerators(script: str, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.accelerators()[-1:] == shown


def test_environment_leaves_secrets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("XLA_FLAGS", "--a")
    report = machine.environment()
    assert report["XLA_FLAGS"] == "--a" and "HF_TOKEN" not in report
    assert machine.xla_flags()["on GPUs"].endswith(" --a")


def test_cache_is_described(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(bytes(2_000_000))
    assert machine.cache(tmp_path) == {"path": str(tmp_path), "writable": True, "size_mb": 2.0}
    assert machine.cache(tmp_path / "a" / "b")["writable"]
    assert not machine.cache(tmp_path / "program" / "below")["writable"]


def test_conflicts_name_owner_wish_and_version() -> None:
    wishes = [Requirement("pytest>=900"), Requirement("no_such_package>=1")]
    lines = installation.conflicts(wishes)
    assert f"motionaura_jax needs pytest>=900, installed is {metadata.version('pytest')}" in lines
    assert "motionaura_jax needs no_such_package>=1, which is not installed" in lines


def test_conflicts_look_into_the_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.metadata, "requires", lambda name: ["jaxlib<=0.1", 'torch; extra == "x"'])
    lines = installation.conflicts([Requirement("jax")])
    assert lines == [f"jax needs jaxlib<=0.1, installed is {metadata.version('jaxlib')}"]


def test_bare_checkout_reads_its_project_file(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    installed = installation.core_requirements()
    monkeypatch.setattr(installation, "version", lambda name: None)
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {str(line) for line in installation.core_requirements()} == {str(Requirement(line)) for line in declared}
    assert {line.name for line in installed} >= {"jax", "flax", "av"}


def test_extras_are_those_of_the_project(root: Path) -> None:
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(installation.EXTRAS) == set(declared)


def test_this_installation_works(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == {} and report["conflicts"] == [] and status == 0
    assert report["ok"] and report["devices"] and report["ffmpeg"] and report["h264"]


def test_report_for_people_ends_with_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {**dataclasses.asdict(with_changes(extras={"tfds": False})), "motionaura_jax": "1.2.3", "ok": False}
    report["findings"] = [{"level": "problem", "fault": "the disk [x] is gone", "remedy": "fix it"}]
    monkeypatch.setattr(doctor, "examine", lambda: report | {"verdict": "1 problem to fix first"})
    assert doctor.main([]) == 1
    shown = capsys.readouterr().err
    assert "problem: the disk [x] is gone\n  -> fix it\n" in shown and "no TensorFlow Datasets" in shown
    assert shown.splitlines()[-1] == "verdict: 1 problem to fix first"
