"""process.py: the compilation cache folder, and memory that the process keeps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from motionaura_jax import convert_weights
from motionaura_jax.core import process
from motionaura_jax.core.errors import UserError
from motionaura_jax.health import machine
from motionaura_jax.planning import estimate


@pytest.fixture(autouse=True)
def chosen_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


def test_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert process.compilation_cache() == tmp_path / "cache"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert process.compilation_cache() == tmp_path / "xdg" / "motionaura_jax" / "jax"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert process.compilation_cache() == Path.home() / "Library" / "Caches" / "motionaura_jax" / "jax"


def test_a_user_without_home_works_without_a_cache(monkeypatch, caplog):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    assert process.compilation_cache() is None
    process.set_up_compilation_cache()
    assert "no home folder; set JAX_COMPILATION_CACHE_DIR" in caplog.text
    assert not machine.cache(None)["writable"]


def new_pages(call: str, **environment: str) -> int:
    """Return how many pages a fresh interpreter gets from the kernel for a second array of 256 MB after a first one."""
    code = (
        "import resource, numpy as np\n"
        "from motionaura_jax.core import process\n"
        f"{call}\n"
        "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(1 << 25).sum(); before = pages(); np.ones(1 << 25).sum(); print(pages() - before)\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    child = subprocess.run([sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True)
    return int(child.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no mallopt")
def test_freed_memory_serves_the_next_array() -> None:
    fresh = new_pages("assert True")
    assert new_pages("assert process.keep_freed_memory()") < fresh / 10
    # The user's own allocator settings are kept.
    assert new_pages("assert not process.keep_freed_memory()", MALLOC_ARENA_MAX="4") > fresh / 2


LOOKALIKES = ("torch", "zipfile", "safetensors", "typing_extensions", "dataclasses", "jax", "sitecustomize")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Change to a folder that holds modules named like libraries, which create the file `ran` when imported."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in LOOKALIKES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    yield folder
    assert not (tmp_path / "ran").exists(), "a file of the current folder was imported"


def test_child_processes_import_nothing_from_the_current_folder(hostile, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{hostile}{os.pathsep}")
    monkeypatch.setattr(sys, "path", ["", str(hostile), *sys.path])
    (hostile / "weights.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be converted"):
        convert_weights._unpickle(hostile / "weights.bin", hostile / "out")


def test_a_command_started_as_a_module_imports_nothing_from_the_current_folder(hostile, tmp_path):
    root = Path(process.__file__).parents[2]
    command = [sys.executable, "-m", "motionaura_jax.convert_weights", "absent", "--output=out"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr


def test_children_find_this_package_without_an_installation(tmp_path, monkeypatch):
    package = Path(process.__file__).parents[1]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != package.parent])
    done = subprocess.run(
        process.child_command("motionaura_jax", "--help"), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage: motionaura" in done.stdout


@pytest.mark.parametrize("module", ["planning.estimate", "health.machine", "convert_weights"])
def test_every_child_is_started_in_isolation(module, monkeypatch):
    commands = []

    def record(command, **_):
        commands.append(command)
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", record)
    if module == "planning.estimate":
        with pytest.raises(TimeoutError):
            estimate.ask(estimate.Question(values={}, mesh={"data": 1}), 1.0)
    elif module == "health.machine":
        machine.probe()
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            convert_weights._unpickle(Path("a"), Path("b"))
    assert commands[0][:2] == [sys.executable, "-I"]


def test_no_other_module_starts_python(root):
    """A new child process has to go through `child_command`; the comparison in torch has a script and -I of its own."""
    files = (path for path in (root / "motionaura_jax").rglob("*.py") if "sys.executable" in path.read_text("utf-8"))
    assert sorted(path.name for path in files) == ["compare.py", "process.py"]
    assert '[sys.executable, "-I",' in (root / "motionaura_jax/exporters/pytorch/compare.py").read_text("utf-8")


def test_a_signal_waits_for_the_initialization_of_an_extension() -> None:
    """jaxlib turns an exception inside into an ImportError, or crashes."""
    loader: dict[str, type] = {}
    source = "class ExtensionFileLoader:\n    def exec_module(self, work):\n        work()\n"
    exec(compile(source, "<frozen importlib._bootstrap_external>", "exec"), loader)
    steps = []

    def initialize() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        steps.append("initialized")

    with pytest.raises(process.Ended), process.ended_by_signals():
        loader["ExtensionFileLoader"]().exec_module(initialize)
        steps.append("imported")
        time.sleep(20)
        steps.append("not reached")
    assert steps == ["initialized", "imported"]


def test_a_library_that_wraps_the_exception_of_a_signal_does_not_hide_it() -> None:
    with pytest.raises(process.Ended) as caught, process.ended_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        except BaseException as error:
            raise ValueError("raised while checking equality") from error
    assert caught.value.signal == signal.SIGTERM
    with pytest.raises(ValueError, match="its own"), process.ended_by_signals():
        raise ValueError("its own")


@pytest.mark.parametrize(("flags", "devices"), [(None, 2), ("--xla_force_host_platform_device_count=3", 3)])
def test_a_cpu_is_split_unless_the_user_has_flags(flags, devices):
    code = "from motionaura_jax.core import process; process.split_cpu(2); import jax; print(jax.local_device_count())"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"XLA_FLAGS": flags} if flags else {}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) == (devices if (os.cpu_count() or 1) >= 2 or flags else 1)


def test_flags_of_the_user_replace_ours_of_that_name():
    assert process.xla_flags("cpu", "") == "" and process.xla_flags("tpu", "--a=1  --b") == "--a=1 --b"
    ours = process.xla_flags("gpu", "").split()
    assert ours == [f"--{name}={value}" for name, value in process.XLA_FLAGS["gpu"].items()]
    name, theirs = ours[0].split("=")[0], f"{ours[0].split('=')[0]}=false"
    assert process.xla_flags("gpu", f"{theirs} --a=1").split() == [*ours[1:], theirs, "--a=1"]
    assert process.xla_flags("gpu", name).split() == [*ours[1:], name]  # true without a value


@pytest.mark.parametrize(
    ("file", "platforms", "kind"),
    [
        ("nvidia0", "", "gpu"),
        ("nvidia0", "cuda,cpu", "gpu"),
        ("nvidia0", "cpu", "cpu"),
        ("accel3", "", "tpu"),
        ("nvidiactl", "", "cpu"),
    ],
)
def test_accelerators_are_known_before_jax_starts(tmp_path, monkeypatch, file, platforms, kind):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    (tmp_path / file).touch()
    assert process.accelerator(tmp_path) == kind


def test_training_sets_our_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    monkeypatch.setattr(process, "accelerator", lambda: "gpu")
    process.set_up_xla_flags()
    assert os.environ["XLA_FLAGS"] == process.xla_flags("gpu", "--a=1")


@pytest.mark.parametrize(("more", "status"), [("", 0), ("--xla_gpu_no_such_flag=true", 1)])
def test_this_jax_knows_every_flag(more, status):
    """A process with an unknown flag in XLA_FLAGS ends as soon as a backend starts."""
    flags = [process.xla_flags(kind, process.DETERMINISTIC) for kind in process.XLA_FLAGS]
    place = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, more])}
    program = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]
    assert subprocess.run(program, env=place, capture_output=True, check=False).returncode == status
