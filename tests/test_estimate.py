"""The command `estimate`: one result, or a one-line error."""

import json
import re

import pytest

from motionaura_jax import estimate
from motionaura_jax.planning import estimate as planning
from motionaura_jax.planning import machines
from motionaura_jax.planning.machines import GIB

TINY = "configs/text_to_video.py:tiny"


@pytest.fixture
def answered(monkeypatch, root):
    """Answer every question immediately and record it; `dots` and `full` each halve the memory."""
    asked = []

    def ask(question, timeout=None):
        asked.append(question)
        size = {"none": 400, "dots": 90, "full": 30}[question.values["model"]["remat"]]
        held = {"parameters": 2 * GIB, "optimizer": 4 * GIB}
        return planning.Estimate(
            devices=4, parameters=5, held=held, temporary=size * GIB, collectives={"all-gather": 7}
        )

    monkeypatch.chdir(root)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(planning, "ask", ask)
    monkeypatch.setattr(machines, "missing", lambda: ["jax-cuda12-plugin"])
    return asked


def run(capsys, *flags):
    status = estimate.main([f"--config={TINY}", *flags, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else captured.err


def test_verdicts_and_advice(answered, capsys):
    status, result = run(capsys, "--mesh=data:2,fsdp:2", "--device=h100")
    assert status == 0 and result["mesh"] == "data:2,fsdp:2" and result["devices"] == 4
    assert result["figures"].startswith("derived for a GPU")
    assert result["state_bytes"] == {"parameters": 2 * GIB, "optimizer": 4 * GIB}
    assert result["peak_bytes"] == 406 * GIB and not any(result["fits"].values())
    assert result["advice"] == "--config.model.remat=full takes 36 GiB on each device"
    assert [question.values["model"]["remat"] for question in answered] == ["none", "dots", "full"]
    assert answered[0].mesh == {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1} and answered[0].topology is None


def test_without_its_packages_a_gpu_is_estimated_from_a_cpu_and_a_line_says_what_to_install(answered, capsys, caplog):
    _, result = run(capsys, "--config.model.remat=full")
    assert answered[0].topology is None and "which is too high by 1.3 to 8 times" in result["figures"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("jax-cuda12-plugin not installed, so the step is compiled for a CPU; pip install -c")
    assert '".[gpu-estimate]"' in line


def test_gpus_are_asked_about_by_their_topology(answered, capsys, monkeypatch):
    monkeypatch.setattr(machines, "missing", list)
    _, result = run(capsys, "--mesh=fsdp:6", "--device=a100-40", "--config.model.remat=full")
    assert answered[0].topology == "a100-40:1x1x6" and result["figures"] == "compiled for a100-40:1x1x6"
    _, result = run(capsys, "--device=l4", "--config.model.remat=full")
    assert answered[-1].topology is None and result["figures"].startswith("derived for a GPU")


def test_what_fits_needs_no_advice(answered, capsys):
    status, result = run(capsys, "--config.model.remat=full", "--config.data.batch_size=32")
    assert status == 0 and result["advice"] == "" and len(answered) == 1
    assert result["fits"] == {"16 GB": False, "24 GB": False, "40 GB": True, "80 GB": True, "141 GB": True}
    assert answered[0].values["data"]["batch_size"] == 32 and answered[0].mesh["data"] == 1


def test_what_was_not_counted_is_said(monkeypatch, root, capsys):
    known = planning.Estimate(devices=1, parameters=5, held={"parameters": GIB}, uncounted="the text encoder x/y")
    monkeypatch.chdir(root)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(planning, "ask", lambda question: known)
    _, result = run(capsys, "--device=cpu")
    assert result["figures"] == "compiled for a CPU; without the text encoder x/y"


def test_tpus_are_asked_about_by_their_topology(answered, capsys):
    status, result = run(capsys, "--mesh=fsdp:8", "--device=v5e", "--config.model.remat=full")
    assert status == 0 and answered[0].topology == "v5e:2x4" and result["figures"] == "compiled for v5e:2x4"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mesh=dta:8",), "'dta' is not a mesh axis; did you mean 'data'"),
        (("--device=h10",), "no such device; did you mean 'h100'"),
        (("--config.model.remat=ful",), "config.model.remat=ful"),
        (("--config.modell.width=3",), "config.modell: no such key; did you mean 'model'"),
    ],
)
def test_bad_input_is_one_line(answered, capsys, flags, message):
    status, error = run(capsys, *flags)
    assert status == 2 and message in error and error.count("\n") == 1 and not answered


def test_a_person_reads_a_table(answered, capsys):
    assert estimate.main([f"--config={TINY}", "--config.model.remat=full"]) == 0
    shown = capsys.readouterr().err
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in shown.splitlines() if "  " in line.strip())
    assert rows["on each device"] == "data:1 (4 devices)" and rows["optimizer"] == "4 GiB"
    assert rows["peak, the sum"] == "36 GiB" and rows["fits into"] == "40 GB, 80 GB, 141 GB"
    assert (
        rows["all-gather, received per step"] == "0.00684 KiB" and rows["trained parameters"] == "0.00 M on all devices"
    )
