"""The `motionaura` command line: dispatch, one-line errors, results, start-up without heavy libraries."""

import argparse
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from motionaura_jax import __version__
from motionaura_jax.core import cli, limits
from motionaura_jax.core.errors import UserError

HEAVY = ("av", "flax", "grain", "jax", "numpy", "optax", "orbax", "rich", "scipy", "torch", "transformers")


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Restore the cache setting of the test process, and keep its output where the test reads it."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    cli.console.cache_clear()
    yield
    cli.console.cache_clear()


def raising(error: BaseException) -> Callable[[], cli.Result | None]:
    def body() -> cli.Result | None:
        raise error

    return body


def imported_after(code: str) -> set[str]:
    """Return which of HEAVY a fresh interpreter has imported after `code`."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(HEAVY) & set(child.stderr.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_after("import motionaura_jax.core.cli") == set()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_is_fast(command: str) -> None:
    assert imported_after(f"import motionaura_jax.core.cli as c; c.main(['{command}', '--help'])") == set()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    shown = capsys.readouterr()
    assert end.value.code == 0 and not shown.err
    assert f"usage: motionaura {command}" in shown.out and "--json" in shown.out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_a_module_that_runs(command: str) -> None:
    child = subprocess.run(
        [sys.executable, "-m", f"motionaura_jax.{command}", "--nonsense"], capture_output=True, text=True
    )
    assert child.returncode == 2 and child.stderr.startswith(f"error: motionaura {command}: ")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and summary in shown for name, summary in cli.COMMANDS.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian", "--config=x"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'; did you mean 'train'?\n"


def example_parser() -> cli.Parser:
    parser = cli.Parser("example", "An example.")
    parser.add_argument("--num_frames", type=cli.number(limits.Frames), default=8)
    parser.add_argument("--config", required=True)
    return parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_frame=3"], "unexpected '--num_frame=3'; did you mean '--num_frames'?"),
        (["--confg=x"], "unexpected '--confg=x'; did you mean '--config'?"),
        (["--config=x", "--config.a=3"], "unexpected '--config.a=3'; did you mean '--config'?"),
        (["--config=x", "clip.mp4"], "unexpected 'clip.mp4'"),
        (["--config=x", "-n", "3"], "unexpected '-n'"),
        ([], "the following arguments are required: --config"),
        (["--num_frames=many"], "argument --num_frames: 'many' is not a valid number"),
        (["--num_frames"], "argument --num_frames: expected one argument"),
        (["--config", "--red"], "unexpected '--red'; if it is the value of --config, write --config=--red"),
        (["--config", "-red car"], "unexpected '-red car'; if it is the value of --config, write --config='-red car'"),
        (["--config=x", "--num_frames", "-x"], "unexpected '-x'; if it is the value of --num_frames, write"),
        (["--num_frames=" + "9" * 10_000], "argument --num_frames: "),
    ],
)
def test_bad_flag_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        example_parser().parse_args(words)
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: motionaura example: {message}") and shown.err.count("\n") == 1
    assert shown.err.endswith("; see motionaura example --help\n") and len(shown.err) < 400
    assert not shown.out


def test_overrides_are_passed_on_as_they_stand() -> None:
    words = ["--config.model.width=8", "--config", "tiny.py:a,b", "--num_frames=3", "--config.x=a b"]
    args, overrides = example_parser().parse_with_overrides(words)
    assert (args.config, args.num_frames, args.json) == ("tiny.py:a,b", 3, False)
    assert overrides == ["--config.model.width=8", "--config.x=a b"]


def test_mistyped_flag_beside_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example_parser().parse_with_overrides(["--config.a=1", "--confg=x"])
    assert "'--confg=x'; did you mean '--config'?" in capsys.readouterr().err


class JaxRuntimeError(RuntimeError):
    """Exception with the name that `run` looks for; jaxlib's own cannot be raised from Python."""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("clip.mp4: no frames;\n  choose another"), 2, "clip.mp4: no frames; choose another"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.csv"), 2, "a.csv: no such file or directory"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "output: no space left on the disk"),
        (OSError(errno.ENOSPC, "No space left on device", "out.mp4"), 2, "out.mp4: no space left on the disk"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"), 2, "out of device memory (RESOURCE_EXHAUSTED: 9 GB)"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 2, "Python package x is not installed"),
        (
            RuntimeError("Unable to initialize backend 'tpu': no libtpu"),
            2,
            "no JAX device answers: Unable to initialize",
        ),
        (MemoryError("Unable to allocate 7 TiB"), 2, "out of memory (Unable to allocate 7 TiB)"),
    ],
)
def test_failure_is_one_line(error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(raising(error), as_json=True) == status
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {line}") and shown.err.count("\n") == 1
    assert not shown.out


@pytest.mark.parametrize(
    "error",
    [ValueError("shape"), JaxRuntimeError("INTERNAL"), ModuleNotFoundError("No module named 'jax.x'", name="jax.x")],
)
def test_our_own_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        cli.run(raising(error), as_json=False)


def test_json_result_is_the_only_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> cli.Result:
        print("chatter")
        return {
            "path": Path("a") / "b",
            "psnr": np.float32(31.5),
            "bad": float("nan"),
            "each": np.array([[1.0, np.inf]]),
            "nested": {1: (True, None)},
        }

    assert cli.run(body, as_json=True) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    expected = {"path": "a/b", "psnr": 31.5, "bad": None, "each": [[1.0, None]], "nested": {"1": [True, None]}}
    assert json.loads(shown.out) == expected
    assert shown.err == "chatter\n"


def test_messages_go_to_stderr() -> None:
    code = (
        "import logging\n"
        "from motionaura_jax.core import cli\n"
        "def body():\n"
        "    logging.getLogger('motionaura_jax.x').info('ours [x]')\n"
        "    logging.getLogger('other').info('chatter')\n"
        "    logging.getLogger('other').warning('theirs')\n"
        "cli.run(body, as_json=True)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not child.stdout
    assert "ours [x]" in child.stderr and "theirs" in child.stderr and "chatter" not in child.stderr


def test_result_for_people_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: {"output": "a [b].mp4", "psnr": 31.23456789}, as_json=False) == 0
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.split("\n")[:2] == ["output  a [b].mp4", "psnr    31.2346"]


@pytest.mark.parametrize(("result", "status"), [({"ok": False}, 1), ({"ok": True}, 0), ({}, 0), (None, 0)])
def test_exit_status(result: cli.Result | None, status: int) -> None:
    assert cli.run(lambda: result, as_json=True) == status


def test_cache_that_cannot_be_made_is_only_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert cli.run(lambda: {"a": 1}, as_json=True) == 0
    assert "no compilation cache" in caplog.text


def test_a_command_that_is_run_as_a_module_says_as_much() -> None:
    logging.getLogger("motionaura_jax").setLevel(logging.NOTSET)
    cli.set_up_logging()
    levels = {name: logging.getLogger(name).getEffectiveLevel() for name in ("__main__", "motionaura_jax.train", "jax")}
    assert levels == {"__main__": logging.INFO, "motionaura_jax.train": logging.INFO, "jax": logging.WARNING}


def test_compiled_programs_are_kept(tmp_path: Path) -> None:
    code = (
        "from motionaura_jax.core import cli\n"
        "def body():\n"
        "    import jax\n"
        "    return {'sum': jax.jit(lambda x: x + 1)(1).item()}\n"
        "cli.run(body, as_json=True)\n"
    )
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "kept")}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert json.loads(child.stdout) == {"sum": 2}
    assert any((tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    ("hint", "text", "message"),
    [
        (limits.Count, "0", "0: must be at least 1"),
        (limits.PositiveShare, "7.5", "7.5: must be above 0 and at most 1"),
        (limits.Positive, "inf", "inf: must be above 0 and at most 1e+30"),
        (limits.NonNegative, "nan", "nan: must be at least 0"),
        (limits.Count, "1.5", "'1.5' is not a valid number"),
        (limits.KeySeed, "9" * 400, "must be at least 0 and below 2^32"),
    ],
)
def test_numbers_keep_the_limits_of_settings(hint: object, text: str, message: str) -> None:
    parse = cli.number(hint)
    assert parse("1") == 1
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse(text)
    assert message in str(error.value)


def test_values_that_start_with_a_dash_pass_behind_an_equals_sign_and_as_negative_numbers(capsys):
    assert example_parser().parse_args(["--config=--red"]).config == "--red"
    with pytest.raises(SystemExit):
        example_parser().parse_args(["--config=x", "--num_frames", "-3"])
    assert "-3: must be at least 1" in capsys.readouterr().err


def test_paths_of_flags_know_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.path("~/a:b.mp4") == tmp_path / "a:b.mp4" and cli.path("a/~") == Path("a/~")
    assert cli.place("~/run") == str(tmp_path / "run")
    for text in ("gs://bucket/run", "org/name@v1", ""):
        assert cli.place(text) == text
    for fault in ("~nobody-of-this-name/x", "a\0b"):
        for kind in (cli.path, cli.place):
            with pytest.raises(argparse.ArgumentTypeError):
                kind(fault)
    with pytest.raises(argparse.ArgumentTypeError, match="not UTF-8"):
        cli.text("a \udcff circle")


# Writes a draft, says so, and waits for the signal.
WAITING = """
import contextlib, pathlib, sys, time
from motionaura_jax.core import cli
@contextlib.contextmanager
def draft():
    path = pathlib.Path(sys.argv[1])
    path.write_text("half")
    try:
        yield
    finally:
        path.unlink()
def body():
    with draft():
        print("ready", flush=True)
        time.sleep(60)
sys.exit(cli.run(body, as_json=True))
"""


def ended(tmp_path: Path, number: int) -> tuple[int, str]:
    """Send a signal to a command at work; return its status and what it said, and check that nothing is left."""
    draft = tmp_path / ".draft.tmp"
    before = signal.signal(
        number, signal.SIG_DFL
    )  # a shell lets its background jobs ignore SIGINT, and children inherit it
    try:
        child = subprocess.Popen([sys.executable, "-c", WAITING, draft], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    assert child.stderr is not None
    assert child.stderr.readline() == "ready\n" and draft.exists()
    child.send_signal(number)
    said = child.stderr.read()
    status = child.wait(timeout=20)
    assert not draft.exists()
    return status, said


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_cleans_up_as_an_interrupt_does(tmp_path, name, status):
    end, said = ended(tmp_path, getattr(signal, name))
    assert end == status and said == ("error: interrupted\n" if name == "SIGINT" else f"error: ended by {name}\n")


def test_handlers_are_as_before_after_a_command():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    seen = []
    cli.run(lambda: seen.append(signal.getsignal(signal.SIGTERM)), as_json=True)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before and seen != before[:1]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        cli.run(lambda: seen.append(signal.getsignal(signal.SIGHUP)), as_json=True)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert seen[-1] is signal.SIG_IGN


@pytest.mark.parametrize("module", ["motionaura_jax", "motionaura_jax.reconstruct"])
def test_a_current_folder_that_was_deleted_is_one_line(tmp_path, module):
    words = ["reconstruct"] if module == "motionaura_jax" else []
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, runpy, sys; os.rmdir(os.getcwd()); "
        f"sys.argv = ['x', *{words!r}, '--checkpoint=a', '--input=b', '--output=c.mp4']; "
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run([sys.executable, "-c", code], cwd=gone, env=environment, capture_output=True, text=True)
    assert child.returncode == 2
    assert child.stderr.splitlines()[-1].startswith(
        "error: the current folder cannot be used (no such file or directory)"
    )
    assert "Traceback" not in child.stderr


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_platform_without_device_is_one_line(platform):
    if shutil.which("nvidia-smi") or any(Path("/dev").glob("accel[0-9]*")):
        pytest.skip("this machine has an accelerator")
    code = "from motionaura_jax.core import cli\ndef body():\n    import jax\n    jax.devices()\n"
    code += "raise SystemExit(cli.run(body, as_json=True))"
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert child.returncode == 2 and child.stderr.count("\n") == 1
    assert child.stderr.startswith("error: no JAX device answers: ")
    assert "JAX_PLATFORMS=cpu runs without the accelerator" in child.stderr
