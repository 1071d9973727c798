"""Output folders of exports and conversions: written as a draft, and never in place of a folder with other content."""

import contextlib
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator

from safetensors import SafetensorError, safe_open

from motionaura_jax.core import files, tokenizer_files
from motionaura_jax.core.errors import UserError

CONVERTED = {"format": "pt", "converted_by": "motionaura_jax"}
"""Metadata of every file of converted weights, by which `check_output` knows them."""

SETTINGS = ("config.json", "generation_config.json", "preprocessor_config.json")
"""Settings of published models."""

# What `export` and `convert_weights` write; `marker` tells whose folder it is.
_FILE = re.compile(
    "|".join(
        (
            *map(re.escape, (*tokenizer_files.NAMES, *SETTINGS)),
            r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?",
            r"(adapter_model|training|weights)\.safetensors",
            r"(adapter_config|model_index|scheduler_config|stablehlo|training)\.json",
            r"(modeling|pipeline|scheduling)_\w+\.py|mp4\.py|serve\.py|README\.md|\w+\.stablehlo",
        )
    )
)
# What file managers, git and huggingface_hub leave in a folder.
_LEFT_BY_TOOLS = frozenset((".DS_Store", ".gitattributes", ".gitignore", "Thumbs.db"))
_DEEPEST = 3  # folders of a part of a part
# Descriptions, each with the keys that only ours have.
_MARKERS = {
    "training.json": ("system", "recipe"),
    "stablehlo.json": ("system", "recipe"),
    "adapter_config.json": ("base_model_hash", "_motionaura_jax_version"),
    "config.json": ("system", "recipe"),
}


@contextlib.contextmanager
def draft(folder: pathlib.Path, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yield an empty folder that is renamed to `folder` if the block succeeds, and removed otherwise.

    Raises:
      UserError: see `check_output`.
    """
    check_output(folder, overwrite=overwrite)
    folder = folder.absolute()
    new, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.{end}") for end in ("tmp", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        check_output(folder, overwrite=overwrite)  # again: somebody may have put files there in the meantime
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_output(folder: pathlib.Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but a folder with nothing in it but what an export or a conversion writes.

    Raises:
      UserError: `folder` exists and is another one, or it is such a folder but `overwrite` is off.
    """
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link, which is not replaced; give the folder itself or choose another name")
    if not folder.exists():
        return
    fault = _fault(folder)
    if fault:
        raise UserError(f"{folder}: exists and is not a release folder ({fault}); choose another name")
    if not overwrite:
        raise UserError(f"{folder}: exists already; choose another name or add --overwrite")


def check_apart(folder: pathlib.Path, sources: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse to replace a folder that is being exported, or one that contains it.

    Args:
      sources: checkpoint and parts; places that are not on this machine do not matter.

    Raises:
      UserError: names the source that would be removed.
    """
    if not folder.exists():
        return
    target = folder.resolve()
    for source in sources:
        place = pathlib.Path(source)
        if place.exists() and place.resolve().is_relative_to(target):
            raise UserError(f"{folder}: holds {source}, which is being exported; choose another name for the output")


def _fault(folder: pathlib.Path) -> str:
    """Return why a folder is not one that `export` or `convert_weights` wrote; empty if it is one."""
    if not folder.is_dir():
        return "it is a file"
    if not any(folder.iterdir()):
        return ""
    if not any((folder / name).is_file() for name in _MARKERS) and not _is_converted(folder):
        return "it holds no description of an export"
    try:
        ours = _is_described(folder)
    except UserError as error:
        return str(error).partition(";")[0]
    if not ours and not _is_converted(folder):
        return "its description is not one of ours"
    other = _other(folder, _DEEPEST)
    return f"{other} is something else" if other else ""


def _is_described(folder: pathlib.Path) -> bool:
    """Tell whether a folder holds a description that only an export has."""
    for name, keys in _MARKERS.items():
        if (folder / name).is_file():
            meta = files.read_json(folder / name, remedy="choose another name")
            if all(key in meta for key in keys):
                return True
    return False


def _is_converted(folder: pathlib.Path) -> bool:
    weights = sorted(folder.glob("model*.safetensors"))
    try:
        for path in weights:
            with safe_open(path, framework="numpy") as file:
                if file.metadata() != CONVERTED:
                    return False
    except (OSError, SafetensorError):
        return False
    return bool(weights)


def _other(folder: pathlib.Path, depth: int) -> str:
    """Return the first entry below `folder` that no export writes, relative to it.

    Folders may have any name, as systems name their networks, but hold nothing else than files of exports either.
    """
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            return entry.name
        if entry.is_dir():
            if _is_left_by_tools(entry):
                continue
            below = _other(entry, depth - 1) if depth and any(entry.iterdir()) else "a folder"
            if below:
                return f"{entry.name}/{below}" if below != "a folder" else entry.name
        elif not (entry.is_file() and (_FILE.fullmatch(entry.name) or entry.name in _LEFT_BY_TOOLS)):
            return entry.name
    return ""


def _is_left_by_tools(folder: pathlib.Path) -> bool:
    if folder.name == ".cache":
        return [entry.name for entry in folder.iterdir()] == ["huggingface"]
    return folder.name == "__pycache__" and _is_bytecode(folder)


def _is_bytecode(folder: pathlib.Path) -> bool:
    """Tell whether a `__pycache__` holds nothing but compiled modules of an export."""
    module = re.compile(r"((modeling|pipeline|scheduling)_\w+|mp4|serve)\.[\w-]+\.pyc")
    return all(path.is_file() and not path.is_symlink() and module.fullmatch(path.name) for path in folder.iterdir())
