"""Release folders: a trained model as two plain files, `config.json` and `model.safetensors`, to keep and to pass on.

Where a recipe names another run, e.g. the tokenizer of a text-to-video model, that run lies inside as a folder of the same
form, so that a release needs nothing else.
"""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import leaf_types, path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.media import write_json

DTYPES = ("float32", "bfloat16", "float16")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MARKS = (
    WEIGHTS,
    "training.json",
    "stablehlo.json",
    "adapter_config.json",
)  # what tells folders that `export` wrote, by its formats
PARTS = ("tokenizer",)  # recipe keys that name another run
PLACES = (
    "init_from",
    "tokenizer",
    "data.manifest",
    "evaluate.manifest",
    "checkpoint.folder",
    "text.tower",
    "text.cache",
    "latent_cache",
    "loss.perceptual_weights",
)  # recipe keys that may say where something lay during the training
TEXT_ENCODER = "text_encoder"  # folder of a published text encoder, where `text.tower` has this value

_KEYS: dict[str, type] = {"system": str, "recipe": dict, "step": int, "weights": str, "versions": dict}
_SHOWN = 3  # names in an error line


def is_release(path: pathlib.Path) -> bool:
    """Whether `path` is a release folder, be it a damaged one."""
    return (path / WEIGHTS).is_file()


def read_meta(folder: pathlib.Path, name: str = CONFIG) -> dict[str, Any]:
    """Reads the file that says what a model is: `system`, `recipe`, `step`, `weights`, `versions`, maybe `provenance`.

    `weights` is "averaged" or "raw".  Parts of the recipe come back as paths that start with `folder`.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path}: is missing; copy the whole release folder")
    try:
        meta = json.loads(path.read_text("utf-8"))
        fault = _fault(meta)
    except ValueError as error:
        fault = f"no JSON: {error}"
    if fault:
        raise UserError(f"{path}: is damaged ({fault}); copy or export the release folder again")
    recipe = meta["recipe"]
    inside: dict[str, Any] = {key: str(folder / recipe[key]) for key in PARTS if key in recipe}
    if recipe.get("text", {}).get("tower") == TEXT_ENCODER:
        inside["text"] = {**recipe["text"], "tower": str(folder / TEXT_ENCODER)}
    return {**meta, "recipe": {**recipe, **inside}}


def read_weights(folder: pathlib.Path, params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
    """Reads `model.safetensors` into the structure of the abstract trees, each tensor into exactly one leaf.

    Raises:
      UserError: the file is damaged, or its tensors are not exactly the leaves in name, shape and dtype; only halves are
        widened to float32.
    """
    path = folder / WEIGHTS
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy or export the release folder again") from None
    tree = {"params": params, "extra": extra}
    wanted = leaf_types(tree)
    stored = {name: _widen(array, wanted.get(name, "")) for name, array in stored.items()}
    found = {name: leaf_types(array)[""] for name, array in stored.items()}
    if found != wanted:
        raise UserError(
            f"{path}: another architecture: the file holds {_shorten(found, wanted)}; "
            f"the config needs {_shorten(wanted, found)}; use the config that the weights were trained with"
        )
    filled = jax.tree_util.tree_map_with_path(lambda leaf, _: stored[path_name(leaf)], tree)
    return filled["params"], filled["extra"]


def write_folder(
    folder: pathlib.Path, meta: Mapping[str, Any], params: PyTree, extra: PyTree, dtype: str = "float32"
) -> None:
    """Writes the two files of one model.

    Args:
      meta: what `read_meta` gives back; parts of the recipe relative to `folder`.
      dtype: of float32 leaves in the file, one of `DTYPES`.

    Raises:
      UserError: the disk is full or not writable.
    """
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "extra": extra})
    tensors = {path_name(path): narrow(np.asarray(jax.device_get(leaf), order="C"), dtype) for path, leaf in leaves}
    write_json(folder / CONFIG, meta)
    try:
        save_file(tensors, folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be written ({error}); free disk space") from error
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors makes files that only their owner can read


def without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without paths of the machine that trained it: of each, `elsewhere/` and the last name stay.

    Names on the hub and paths relative to where a command ran say nothing about the machine and stay as they are.
    """
    recipe = dict(recipe)
    for key in PLACES:
        section, _, name = key.rpartition(".")
        values = recipe.get(section, {}) if section else recipe
        if _is_place(values.get(name, "")):
            values = {**values, name: f"elsewhere/{pathlib.PureWindowsPath(values[name]).name}"}
            recipe = {**recipe, section: values} if section else values
    return recipe


def _is_place(value: str) -> bool:
    absolute = any(kind(value).is_absolute() for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath))
    return absolute or value.startswith(("~", "..")) or "://" in value


@contextlib.contextmanager
def draft(folder: pathlib.Path, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yields an empty folder beside `folder` that takes its name when the block ends well, and vanishes otherwise.

    Raises:
      UserError: `folder` exists and is no release folder, or is one and `overwrite` is off.
    """
    check_output(folder, overwrite=overwrite)
    folder = folder.absolute()
    new, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.{end}") for end in ("tmp", "old"))
    new.mkdir(parents=True)
    try:
        yield new
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
    """Refuses to write where something else is.

    Raises:
      UserError: see `draft`.
    """
    if folder.exists() and not any((folder / name).is_file() for name in MARKS):
        raise UserError(f"{folder}: exists and is no release folder; choose another name")
    if folder.exists() and not overwrite:
        raise UserError(f"{folder}: exists already; choose another name or add --overwrite")


def narrow(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array as it stands in a file: floats in `dtype`, everything else as it is."""
    return array.astype(jnp.dtype(dtype)) if array.dtype == np.float32 else array


def _widen(array: np.ndarray, wanted: str) -> np.ndarray:
    halves = array.dtype.name in DTYPES and wanted.startswith("float32")
    return array.astype(np.float32) if halves else array


def _fault(meta: Any) -> str:
    """What is wrong with the content of `config.json`; empty where nothing is."""
    if not isinstance(meta, dict):
        return "an object was expected"
    for key, kind in _KEYS.items():
        if not isinstance(meta.get(key), kind):
            return f"{key!r} is missing or of the wrong type"
    if not all(isinstance(meta["recipe"].get(key, ""), str) for key in PARTS):
        return f"recipe: {' and '.join(PARTS)} must be paths"
    if not isinstance(meta["recipe"].get("text", {}), dict):
        return "recipe: text must be an object"
    if meta["recipe"].get("system") != meta["system"]:
        return "'system' and the recipe differ"
    if meta["weights"] not in ("averaged", "raw"):
        return f"'weights' is {meta['weights']!r}"
    return ""


def _shorten(types: Mapping[str, str], others: Mapping[str, str]) -> str:
    """The first few entries that the other side lacks or has differently."""
    lines = [f"{name} {kind}" for name, kind in sorted(types.items()) if others.get(name) != kind]
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return (", ".join(lines[:_SHOWN]) or "nothing else") + more
