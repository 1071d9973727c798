"""The architecture as a test: allowed imports between parts, no retired JAX interfaces, and size limits.

Works on the syntax trees of all files.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from motionaura_jax.core.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "motionaura_jax"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
CODE = [*FILES, *CONFIGS, *sorted((ROOT / "benchmarks").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]

# Lightweight modules that every part may import.
LEAVES = {
    "",
    "core.errors",
    "core.files",
    "core.limits",
    "core.parts",
    "core.tensor_map",
    "core.tokenizer_files",
    "core.trees",
    "core.types",
}

# Part -> parts of the package it may import.  Commands, configs, pipelines and all other parts may import any.
ALLOWED = {
    "ops": {"ops"},
    "parallel": {"parallel"},
    "diffusion": {"diffusion", "ops"},
    "metrics": {"metrics", "ops", "data"},
    "data": {"data", "ops"},
    "scenes": {"data", "metrics", "ops", "scenes"},
    "models": {"models", "ops", "parallel"},
    "conditioning": {"conditioning", "data", "models", "ops", "parallel", "weights"},
    "systems": {
        "conditioning",
        "core",
        "data",
        "diffusion",
        "metrics",
        "models",
        "ops",
        "parallel",
        "scenes",
        "systems",
        "weights",
    },
    "training": {
        "core",
        "data",
        "metrics",
        "ops",
        "parallel",
        "scenes",
        "systems.base",
        "training",
        "weights.checksum",
        "weights.load",
        "weights.steps",
    },
    "weights": {"core", "data", "models", "systems.base", "weights"},
}

# What systems share; no system imports another one.
_SHARED = ("base", "autoencoder", "captions", "diffusion", "diffusion_recipe", "latent", "loading", "registry")
SHARED = {f"systems.{name}" for name in _SHARED}

# Third-party library -> the only parts allowed to import it.
CONFINED = {"flax": {"models"}, "torch": {"exporters.pytorch"}, "av": {"data", "health", "exporters.pytorch"}}

RETIRED = re.compile(
    r"jax\.experimental\.(shard_map|pjit|maps|host_callback)|jax\.(pmap|tree_map|xmap|core\.Tracer)\b"
    r"|\b(pjit|pmap)\(|from jax import (pmap|pjit)|from jax\.experimental import (shard_map|pjit)"
)

MAX_FILE, MAX_FUNCTION = 400, 60


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """Return the dotted name below the package: "models.layers.conv", "" for the package itself."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of every import, including imports inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield imports from this package by the name below it; of `from motionaura_jax import x` that is "x"."""
    for line, name in imports(ast.parse(path.read_text())):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield line, name.removeprefix(PACKAGE).removeprefix(".")


def broken_rules(path: Path) -> Iterator[str]:
    """Yield the imports of a module that the map does not allow."""
    module = module_of(path)
    part = module.split(".")[0]
    for line, name in own_imports(path):
        leaf = within(name, LEAVES) or name == "__version__"
        if part in ALLOWED and not leaf and not within(name, ALLOWED[part]):
            yield f"{name_of(path)}:{line}: {part} must not import {name}"
        if part == "systems" and within(name, {"systems"}) and not same_system(module, name):
            yield f"{name_of(path)}:{line}: a system must not import the system {name}"
    for line, name in imports(ast.parse(path.read_text())):
        library = name.split(".")[0]
        if library in CONFINED and not within(module, CONFINED[library]):
            yield f"{name_of(path)}:{line}: {library} belongs into {', '.join(CONFINED[library])}"


def same_system(module: str, imported: str) -> bool:
    """Return True if a system may import the module: one of its own files, or one that systems share."""
    own = ".".join(module.split(".")[:2])
    return within(imported, {*SHARED, own}) or own == "systems"


def test_modules_import_only_what_the_map_allows() -> None:
    assert [line for path in FILES for line in broken_rules(path)] == []


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("ops/a.py", "from motionaura_jax.models.layers import conv", True),
        ("ops/a.py", "from motionaura_jax.core.errors import UserError", False),
        ("data/a.py", "def f():\n    import flax.linen", True),
        ("models/a.py", "import motionaura_jax.data.video", True),
        ("models/a.py", "from motionaura_jax import ops", False),
        ("systems/a.py", "from motionaura_jax.systems import b", True),
        ("systems/a.py", "from motionaura_jax.systems.base import System", False),
        ("systems/a/b.py", "from motionaura_jax.systems.a.c import x", False),
        ("training/a.py", "from motionaura_jax.systems.mbq_vae import x", True),
        ("training/a.py", "from motionaura_jax.systems.base import System", False),
        ("pipelines/a.py", "import torch", True),
    ],
)
def test_the_rule_itself(module: str, line: str, broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / PACKAGE / module
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert bool(list(broken_rules(path))) == broken


def test_third_party_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for group in project["optional-dependencies"].values() for line in group)]
    distributions = {Requirement(line).name.lower().replace("-", "_") for line in lines}
    modules = {
        "absl_py": "absl",
        "pillow": "pil",
        "orbax_checkpoint": "orbax",
        "tensorflow_datasets": "tensorflow_datasets",
    }
    known = {modules.get(name, name) for name in distributions} | {PACKAGE} | set(sys.stdlib_module_names)
    found = {
        name.split(".")[0].lower(): name_of(path) for path in FILES for _, name in imports(ast.parse(path.read_text()))
    }
    assert {name: path for name, path in found.items() if name not in known} == {}


def test_every_declared_dependency_has_an_exact_version_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    pinned: dict[str, list[str]] = {}
    for text in (ROOT / "requirements.txt").read_text().splitlines():
        if text and not text.startswith("#"):
            requirement = Requirement(text)
            (exact,) = requirement.specifier
            assert exact.operator == "==", text
            pinned.setdefault(requirement.name, []).append(exact.version)
    for line in (*project["dependencies"], *optional["dev"], *optional["tfds"]):
        requirement = Requirement(line)
        assert pinned.get(requirement.name), f"{requirement.name} is not in requirements.txt"
        assert all(version in requirement.specifier for version in pinned[requirement.name]), line


def test_no_retired_jax_interface() -> None:
    places = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in (*FILES, *CONFIGS)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if RETIRED.search(line)
    ]
    assert places == []


def test_no_mesh_as_a_context() -> None:
    places = [
        f"{name_of(path)}:{item.context_expr.lineno}"
        for path in (*FILES, *CONFIGS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.With)
        for item in node.items
        if re.fullmatch(r"(self\.|\w+\.)*_?mesh", ast.unparse(item.context_expr))
    ]
    assert places == []


def too_long(path: Path) -> Iterator[str]:
    """Yield the file and its functions if they exceed the limits."""
    text = path.read_text()
    if (lines := len(text.splitlines())) > MAX_FILE:
        yield f"{name_of(path)}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_FUNCTION:
                yield f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines"


def test_files_and_functions_are_short() -> None:
    assert [line for path in CODE for line in too_long(path)] == []


def test_every_module_is_on_the_map() -> None:
    """Commands and the files of `__init__` need no entry; `*` in the map stands for any characters."""
    named = re.findall(r"[\w*/]+\.py", (ROOT / "docs" / "architecture.md").read_text())
    inside = [file for file in FILES if file.name != "__init__.py" and file.parent != ROOT / PACKAGE]
    assert [str(file.relative_to(ROOT)) for file in inside if not any(map(file.match, named))] == []


def test_the_top_level_holds_commands_only() -> None:
    modules = {path.stem for path in (ROOT / PACKAGE).glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(COMMANDS)


def test_commands_are_imported_by_nobody() -> None:
    """Commands may call each other; libraries may not call them."""
    places = [
        f"{name_of(path)}:{line}: {name}"
        for path in FILES
        if "." in module_of(path)
        for line, name in own_imports(path)
        if name.split(".")[0] in COMMANDS
    ]
    assert places == []
