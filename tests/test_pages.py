"""Documentation pages: links resolve, and commands have the flags, presets and keys shown in examples."""

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from motionaura_jax.core import config
from motionaura_jax.core.cli import COMMANDS
from motionaura_jax.core.errors import UserError
from motionaura_jax.systems import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield (page, words) of every `motionaura COMMAND ...` in a block of code."""
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M):
            if language:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("  #")[0].removeprefix("MALLOC_ARENA_MAX=16 ")
                if line.startswith("motionaura ") and line.split()[1] in COMMANDS:
                    yield page.name, shlex.split(line)[1:]


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            found = file.exists() and (not anchor or anchor in anchors(file))
            if not target.startswith("https://") and not found:
                broken.append(f"{page.name}: {target}")
    assert not broken, "\n".join(broken)


def test_commands_have_the_flags_that_pages_give_them() -> None:
    unknown, flags = [], {}
    for page, (command, *words) in commands():
        if command not in flags:
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
                importlib.import_module(f"motionaura_jax.{command}").main(["--help"])
            flags[command] = set(re.findall(r"--\w+", text.getvalue()))
        given = {word.split("=")[0] for word in words if word.startswith("--") and not word.startswith("--config.")}
        unknown += [f"{page}: motionaura {command} {flag}" for flag in given - flags[command]]
    assert not unknown, "\n".join(unknown)


def test_configs_of_pages_have_these_presets_and_keys() -> None:
    refused = []
    for page, (_, *words) in commands():
        location = next((word.removeprefix("--config=") for word in words if word.startswith("--config=")), "")
        if not re.match(r"configs/|\w+:", location) or "next_frame" in location:
            continue
        overrides = [word for word in words if word.startswith("--config.")]
        if "text_to_video" in location:
            overrides.append("--config.tokenizer=runs/tokenizer")
        try:
            values = config.read(location, overrides)
            config.build(registry.system_class(values["system"]).Recipe, values)
        except UserError as error:
            refused.append(f"{page}: {location}: {error}")
    assert not refused, "\n".join(refused)
