"""The launch scripts: they set up the environment once, refresh it when stale, and fail with one line that says what to do.

They run in a copy of the few files they need, with a stub for Python that records its calls.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE_PYTHON = """#!/bin/sh
minor={minor}
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$*" >>"$CALLS"; [ -z "$PIP_SAYS" ] || {{ echo "$PIP_SAYS"; exit 1; }} ;;
  "-m "*) echo "$*" >>"$CALLS"; [ "$2" != "$FAILING" ] ;;
  "-P -m") echo "$*" >>"$CALLS"; [ "$3" != "$FAILING" ] ;;
  "-P "*) exit "${{IMPORT_STATUS:-0}}" ;;
  "-c "*jax_plugins*) exit "${{PLUGIN_STATUS:-0}}" ;;
  "-c "*) exec "{real}" -c "import sys; sys.version_info = (3, $minor); sys._base_executable = '$0'; $2" "$3" ;;
  "--version ") echo "Python 3.$minor" ;;
  *) exec "{real}" "$@" ;;
esac
"""


def fake_python(minor: int = 12) -> str:
    """Return the script of a stub interpreter that claims to be Python 3.`minor`."""
    return FAKE_PYTHON.format(minor=minor, real=sys.executable)


class Checkout:
    """Tree with the launch scripts, and a PATH that starts with a folder of stubs."""

    def __init__(self, root: Path, folder: Path):
        self.folder, self.commands, self.calls = folder / "tree", folder / "bin", folder / "calls"
        self.commands.mkdir()
        shutil.copytree(root / "launch", self.folder / "launch")
        for name in ("requirements.txt", "pyproject.toml", "setup.py"):
            shutil.copy(root / name, self.folder)
        self.command("python3", fake_python())

    def command(self, name: str, script: str) -> None:
        path = self.commands / name
        path.write_text(script)
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, place: str = "/", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a launch script from another folder and return what it printed."""
        environment = {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "HOME": str(self.folder),
            **variables,
        }
        command = ["bash", str(self.folder / "launch" / script), *arguments]
        return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=60)

    def called(self) -> list[str]:
        """Return the calls of the Python stub since the last time, without pip's options."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [" ".join(line.split()[:2]) if "pip" in line else line for line in lines]


PYTEST = "-m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=25 --durations-min=1"


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Checkout:
    return Checkout(root, tmp_path)


def one_error(result: subprocess.CompletedProcess[str]) -> str:
    """Return the only `error:` line of a run that failed."""
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("==>")]
    assert line.startswith("error: ")
    return line


INSTALL = ["-m pip", "-m pip"]


def test_first_run_installs_and_the_next_reuses_it(checkout: Checkout) -> None:
    assert checkout.run("demo.sh", "--steps=3").returncode == 0
    assert checkout.called() == [*INSTALL, "-P -m motionaura_jax.demo --steps=3"]
    assert checkout.run("demo.sh").returncode == 0
    assert checkout.called() == ["-P -m motionaura_jax.demo"]


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml", "setup.py"])
def test_changed_requirements_are_installed(checkout: Checkout, name: str) -> None:
    checkout.run("demo.sh")
    checkout.called()
    with (checkout.folder / name).open("a") as file:
        file.write("# changed\n")
    checkout.run("demo.sh")
    assert checkout.called()[:2] == INSTALL


def test_interrupted_installation_is_redone(checkout: Checkout) -> None:
    one_error(checkout.run("demo.sh", PIP_SAYS="ERROR: killed"))
    checkout.called()
    assert checkout.run("demo.sh").returncode == 0
    assert checkout.called() == [*INSTALL, "-P -m motionaura_jax.demo"]


def test_broken_installation_is_redone(checkout: Checkout) -> None:
    checkout.run("demo.sh")
    checkout.called()
    checkout.run("demo.sh", IMPORT_STATUS="1")
    assert checkout.called()[:2] == INSTALL


def test_moved_checkout_is_installed_again(checkout: Checkout) -> None:
    checkout.run("demo.sh")
    checkout.called()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    checkout.run("demo.sh")
    assert checkout.called()[:2] == INSTALL


def test_extras_are_installed_until_others_are_asked_for(checkout: Checkout) -> None:
    def extras(**variables: str) -> str:
        checkout.run("demo.sh", **variables)
        installed = re.findall(r"-c \S+ --editable \S+/tree(\S*)$", checkout.calls.read_text(), re.MULTILINE)
        checkout.calls.unlink()
        return installed[0] if installed else "the same"

    assert extras(EXTRA="cuda12,cloud") == "[cuda12,cloud]"
    assert extras() == "the same"
    assert extras(IMPORT_STATUS="1") == "[cuda12,cloud]"
    assert extras(PIP_SAYS="ERROR: killed", EXTRA="cuda13") == "the same"
    assert extras() == "[cuda13]"
    assert extras(EXTRA="") == ""


def test_environment_made_by_hand_is_used_as_it_is(checkout: Checkout) -> None:
    python = checkout.folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.copy(checkout.commands / "python3", python)
    assert checkout.run("demo.sh").returncode == 0
    assert checkout.called() == ["-P -m motionaura_jax.demo"]
    assert "made by hand and cannot import motionaura_jax" in one_error(checkout.run("demo.sh", IMPORT_STATUS="1"))
    assert python.exists() and checkout.called() == []


def test_gpus_need_a_jax_for_them(checkout: Checkout) -> None:
    checkout.command("nvidia-smi", "#!/bin/sh\necho 'GPU 0: H100'\n")
    lacking = {"PLUGIN_STATUS": "1"}
    assert "no JAX for the 1 GPUs in .venv; set EXTRA=cuda12" in one_error(
        checkout.run("local.sh", "-n", "1", **lacking)
    )
    assert checkout.called() == INSTALL
    train = ["-P -m motionaura_jax.train --steps=3"]
    for variables in ({}, {**lacking, "JAX_PLATFORMS": "cpu"}):
        assert checkout.run("local.sh", "-n", "1", "--steps=3", **variables).returncode == 0
        assert checkout.called() == train


def test_linters_run_before_the_tests(checkout: Checkout) -> None:
    checkout.run("test.sh", "-k", "a b")
    lint = ["-m ruff check --output-format=concise .", "-m ruff format --check ."]
    assert checkout.called() == [*INSTALL, *lint, f"{PYTEST} -k a b"]
    checkout.run("test.sh", "--all", "-x")
    assert checkout.called() == [*lint, "-m mypy", f"{PYTEST} -m  -x"]


@pytest.mark.parametrize("module", ["ruff", "mypy", "pytest"])
def test_one_failing_check_fails_the_run_and_stops_no_other(checkout: Checkout, module: str) -> None:
    result = checkout.run("test.sh", "--all", FAILING=module)
    assert result.returncode == 1 and f"error: failed: {module}" in result.stderr
    assert [call.split()[1] for call in checkout.called()[2:]] == ["ruff", "ruff", "mypy", "pytest"]


@pytest.mark.parametrize("script", ["test.sh", "demo.sh"])
def test_old_python(checkout: Checkout, script: str) -> None:
    for name in ("python3", "python3.13", "python3.12", "python3.11", "old"):
        checkout.command(name, '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit\nexit 1\n')
    assert "Python 3.11 or newer is needed, python3 is Python 3.9.18" in one_error(checkout.run(script))
    assert "old is Python 3.9.18" in one_error(checkout.run(script, PYTHON="old"))
    assert "nowhere is missing" in one_error(checkout.run(script, PYTHON="nowhere"))


def test_chosen_python_is_used(checkout: Checkout) -> None:
    shutil.move(checkout.commands / "python3", checkout.commands / "my python")
    checkout.command("python3", "#!/bin/sh\nexit 1\n")
    assert checkout.run("demo.sh", PYTHON="my python").returncode == 0


def test_newer_python_beside_an_old_one_is_found(checkout: Checkout) -> None:
    shutil.move(checkout.commands / "python3", checkout.commands / "python3.12")
    for name in ("python3", "python3.13"):
        checkout.command(name, "#!/bin/sh\nexit 1\n")
    assert checkout.run("demo.sh").returncode == 0


@pytest.mark.parametrize("beside", ["python3.11", "python3.12"])
def test_python_that_has_been_tried_comes_before_a_newer_one(checkout: Checkout, beside: str) -> None:
    for name in ("python3", "python3.12", "python3.11", "python3.13"):
        checkout.command(name, fake_python(14))
    assert "creating .venv with Python 3.14" in checkout.run("demo.sh").stderr
    checkout.command(beside, fake_python(11))
    assert "creating .venv with Python 3.11" in checkout.run("demo.sh", IMPORT_STATUS="1").stderr


def test_small_disk(checkout: Checkout) -> None:
    checkout.command("df", "#!/bin/sh\necho Filesystem\necho /dev/x 9 9 300000 9% /\n")
    assert "300 MB free" in one_error(checkout.run("demo.sh"))
    assert checkout.called() == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: Could not find a version that satisfies the requirement x (from versions: none)", "no package index"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: x is not a supported wheel on this platform", "pip failed: ERROR: x is not a supported wheel"),
    ],
)
def test_failed_installation(checkout: Checkout, said: str, told: str) -> None:
    assert told in one_error(checkout.run("test.sh", PIP_SAYS=said))


def test_ci_runs_the_test_command_of_the_readme(root: Path) -> None:
    command = "./launch/test.sh --all"
    assert all(command in (root / name).read_text().splitlines() for name in (".ci/run", "README.md"))
