"""Command line of all commands: the `motionaura` entry point, flags, one-line errors, results.

A command is a module with `main(argv) -> int`. It parses its flags with `Parser`, imports heavy libraries only afterwards
to keep `--help` fast, and passes its work to `run`:

    def main(argv=None):
        parser = Parser("reconstruct", "Encode and decode a video.")
        parser.add_argument("--input", required=True)
        args = parser.parse_args(argv)
        return run(lambda: reconstruct(args), as_json=args.json)
"""

import argparse
import contextlib
import errno
import functools
import importlib
import json
import logging
import math
import pathlib
import re
import shlex
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import motionaura_jax
from motionaura_jax.core import files, process
from motionaura_jax.core.errors import UserError, nearest, shown

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS = {
    "train": "train one system from a config file; the same command resumes",
    "sample": "generate videos from text with a trained model",
    "reconstruct": "encode and decode a video with a trained tokenizer",
    "encode": "compute features of captions, or latents of clips, ahead of training",
    "export": "write a trained model as one folder that every command accepts as a checkpoint",
    "convert_weights": "convert the pickled weights of a published model to safetensors",
    "estimate": "estimate memory, arithmetic and communication of a training run without its devices",
    "demo": "train text to video on rendered scenes, measure how well it follows its prompts, write a page of results",
    "doctor": "show versions and devices, and problems of the installation with their remedies",
}

CONFIG = "NAME:PRESET[,PRESET...] such as tokenizer:tiny, FILE.py:PRESET, or a saved config.json"
"""Help of the flag --config."""

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
Result = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `motionaura COMMAND ...` and return the exit status of the command; 2 for an unknown command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, *rest = words
    if name == "--version":
        print(motionaura_jax.__version__)
        return 0
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    return importlib.import_module(f"motionaura_jax.{name}").main(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return "\n".join(("usage: motionaura COMMAND [FLAGS]", "", *lines, "", "motionaura COMMAND --help lists its flags"))


class Parser(argparse.ArgumentParser):
    """Argument parser of one command. Adds `--json`; answers a bad flag with one line, the nearest name and exit status 2."""

    def __init__(self, command: str, description: str):
        super().__init__(
            prog=f"motionaura {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self.add_argument("--json", action="store_true", help="print one machine-readable result line on stdout")

    # The return type of the base class is an overload set; commands only ever pass `argv`.
    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse `argv`; exit with status 2 if words are left over."""
        return self.parse_with_overrides(argv, prefix=None)[0]

    def parse_with_overrides(
        self, argv: Sequence[str] | None = None, *, prefix: str | tuple[str, ...] | None = "--config."
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse `argv`; return the parsed flags, and unparsed those that start with `prefix` (or one of several)."""
        words = list(sys.argv[1:] if argv is None else argv)
        overrides = [word for word in words if prefix and word.startswith(prefix)]
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        # Check this first: argparse would report a mistyped required flag as a missing one.
        for before, word in zip(["", *words], words, strict=False):
            if word.startswith("--") and word not in overrides and word.split("=")[0] not in flags:
                self.error(f"unexpected {shown(word)!r}{self._hint(before, word, flags)}")
            # A negative number is a value, and argparse takes a dash alone as one.
            if self._takes_value(before) and re.match(r"-[^-.\d]", word):
                self.error(f"unexpected {shown(word)!r}{self._hint(before, word, [])}")
        args, rest = self.parse_known_args([word for word in words if word not in overrides])
        if rest:
            self.error(f"unexpected {shown(rest[0])!r}")
        return args, overrides

    def _takes_value(self, flag: str) -> bool:
        action = self._option_string_actions.get(flag)
        return flag.startswith("--") and action is not None and action.nargs != 0

    def _hint(self, before: str, word: str, flags: Sequence[str]) -> str:
        """Suggest a flag for an unknown word, or how to write a value that looks like a flag."""
        if self._takes_value(before):
            return f"; if it is the value of {before}, write {before}={shlex.quote(shown(word))}"
        return nearest(word.split("=")[0], flags)

    def error(self, message: str) -> NoReturn:
        """Print `message` on one line, without the usage, and exit with status 2."""
        sys.exit(_fail(f"{self.prog}: {message}; see {self.prog} --help"))


def number(hint: Any) -> Callable[[str], Any]:
    """Return the argparse type of a number declared in `motionaura_jax.core.limits`: `type=number(Count)`."""
    kind, limit = typing.get_args(hint)

    def parse(text: str) -> Any:
        """Convert and check one value."""
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)!r} is not a valid number") from None
        if not limit.holds(value):
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be {limit.words}")
        return value

    return parse


def path(text: str) -> pathlib.Path:
    """Convert the value of a flag to a local path; the argparse type of files and folders. `~` is the home folder."""
    try:
        return files.expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def place(text: str) -> str:
    """Convert the value of a flag that may also be a bucket, a hub id or empty; see `path`."""
    try:
        return files.place(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def text(value: str) -> str:
    """Check the value of a flag that is stored as text; the argparse type of prompts."""
    if files.readable(value) != value or "\0" in value:
        raise argparse.ArgumentTypeError(f"{shown(files.readable(value))!r} is not UTF-8 text")
    return value


def run(body: Callable[[], Result | None], *, as_json: bool, show: Callable[[Result], None] | None = None) -> int:
    """Run a command and return its exit status.

    `emit` prints the result of `body`; if its "ok" is False, the status is 1. A `UserError`, a file that cannot be opened,
    a full disk, exhausted memory or a device that is not there prints one `error:` line on stderr and gives status 2. An
    interrupt prints one line and gives 130; SIGTERM and SIGHUP clean up in the same way and give 143 and 129. Any other
    exception is a bug of ours and keeps its traceback.

    Args:
      body: the work. Everything it prints goes to stderr, so stdout carries only the result.
      as_json: print the result as one JSON line on stdout; otherwise show it on stderr.
      show: shows the result to a person; by default one line per entry.
    """
    try:
        with process.ended_by_signals():
            set_up_logging()
            process.check_current_folder()
            process.quiet_libraries()
            process.set_up_compilation_cache()
            process.keep_freed_memory()
            with contextlib.redirect_stdout(sys.stderr):
                result = body()
            if result is not None:
                emit(result, as_json=as_json, show=show)
    except process.Ended as end:
        return _fail(f"ended by {end.signal.name}", 128 + end.signal)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        return _fail(message)
    return FAILED if result is not None and result.get("ok") is False else 0


def _one_line(error: Exception) -> str | None:
    """Return the message about `error` for the user, or None if the user cannot fix it."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.filename or 'output'}: no space left on the disk; free some space and run the same command again"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return (
            f"Python package {error.name} is not installed; pip install -r requirements.txt, or see motionaura doctor"
        )
    if isinstance(error, MemoryError):
        return f"out of memory ({str(error) or 'no reason given'}); lower the batch size or shrink the clip"
    if process.is_missing_device(error):
        return f"no JAX device answers: {str(error) or 'its backend is not installed'}; {process.NO_DEVICE}"
    # The exception type lives in jaxlib, and a command that needs no device should not have to import it.
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        first = str(error).splitlines()[0]
        return (
            f"out of device memory ({first}); lower the batch size, raise train.accumulation or shrink the clip "
            f"(if the workdir has a checkpoint, add --override to train)"
        )
    return None


def _fail(message: str, status: int = BAD_INPUT) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def emit(result: Result, *, as_json: bool, show: Callable[[Result], None] | None = None) -> None:
    """Print `result`: exactly one line of strict JSON on stdout, or for a person through `show` on stderr.

    In JSON, paths become strings, arrays become lists, and non-finite numbers become null.
    """
    if as_json:
        print(json.dumps(_plain(result), allow_nan=False), flush=True)
    else:
        (show or _show)(result)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)


def _show(result: Result) -> None:
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        console().print(f"{key:{width}}  {text}", markup=False, highlight=False, soft_wrap=True)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Show rows of text under a header on stderr."""
    from rich import box
    from rich.table import Table

    table = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console().print(table, markup=False, highlight=False)


@functools.cache
def console() -> "Console":
    """Return the console for everything that people read: stderr."""
    from rich.console import Console

    return Console(stderr=True)


def set_up_logging() -> None:
    """Send our messages of level INFO and above, and those of other libraries from WARNING, to `console`."""
    from rich.logging import RichHandler

    handler = RichHandler(console=console(), show_path=False, log_time_format="%X")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    ours = logging.getLogger("motionaura_jax")
    ours.setLevel(logging.INFO)
    logging.getLogger("__main__").parent = ours  # the logger of a command that runs with `python -m`
