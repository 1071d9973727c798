"""Release folders: a trained model as two plain files, `config.json` and `model.safetensors`.

Parts that a recipe takes from elsewhere, such as the tokenizer of a text-to-video model, are subfolders, so that a
release is self-contained. `parts` in `config.json` maps the recipe keys of the parts to these folders.
"""

import itertools
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError
from safetensors.numpy import save_file

from motionaura_jax import __version__
from motionaura_jax.core import files
from motionaura_jax.core.errors import UserError, listed, shown
from motionaura_jax.core.trees import leaf_types, path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.media import write_json
from motionaura_jax.weights import hub
from motionaura_jax.weights.tensors import NUMPY, TensorFiles, is_finite

DTYPES = ("float32", "bfloat16", "float16")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Parts of older releases, whose `config.json` does not list them: recipe key -> the value that means a subfolder.
_OLD_PARTS = {"tokenizer": None, "text.tower": "text_encoder"}

_KEYS: dict[str, type] = {"system": str, "recipe": dict, "step": int, "weights": str, "versions": dict}
_AGAIN = "copy or export the release folder again"
_BFLOAT16_MAX = 3.38e38


def is_release(path: pathlib.Path) -> bool:
    """Return whether `path` is a release folder, even a damaged one."""
    return (path / WEIGHTS).is_file()


def read_meta(folder: pathlib.Path, name: str = CONFIG) -> dict[str, Any]:
    """Read the description of a model: `system`, `recipe`, `step`, `weights`, `versions`, maybe `parts`, `provenance`.

    `weights` is "averaged" or "raw". The values of part keys become paths that start with `folder`.

    Raises:
      UserError: the file is missing or damaged, or a part is outside the folder.
    """
    path = folder / name
    if not path.exists():
        raise UserError(f"{path}: is missing; copy the whole release folder")
    meta = files.read_json(path, remedy=_AGAIN)
    if fault := _fault(meta):
        raise UserError(f"{path}: is damaged ({fault}); {_AGAIN}")
    check_version(path, meta["versions"].get("motionaura_jax", __version__))
    recipe = meta["recipe"]
    for key, inside in parts(meta).items():
        recipe = with_key(recipe, key, str(folder / inside))
    return {**meta, "recipe": recipe}


def check_version(path: pathlib.PurePath, version: Any) -> None:
    """Refuse weights that a newer version of this package wrote.

    Raises:
      UserError: they are newer, or `version` is not a version.
    """
    try:
        newer = Version(version) > Version(__version__)
    except (InvalidVersion, TypeError):
        raise UserError(f"{path}: is damaged (the version {shown(version)!r}); {_AGAIN}") from None
    if newer:
        raise UserError(
            f"{path}: was written by motionaura_jax {version}, which is newer than this one ({__version__}); upgrade with "
            f"pip install --upgrade motionaura_jax"
        )


def at_key(recipe: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key of plain config values, or None."""
    value: Any = recipe
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def shapes(folder: pathlib.Path) -> list[tuple[int, ...]]:
    """Return the shapes of all tensors, from the header alone."""
    return [tensor.shape for tensor in TensorFiles(folder / WEIGHTS).values()]


def with_key(recipe: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return plain config values with the value of one dotted key replaced."""
    name, _, rest = key.partition(".")
    return {**recipe, name: with_key(recipe.get(name) or {}, rest, value) if rest else value}


def read_weights(folder: pathlib.Path, params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
    """Read `model.safetensors` into the structure of the abstract trees, each tensor into exactly one leaf.

    Raises:
      UserError: the file is damaged, or its tensors do not match the leaves exactly in name, shape and dtype. Only
        half-precision tensors are converted, to float32.
    """
    path = folder / WEIGHTS
    tree = {"params": params, "extra": extra}
    wanted = leaf_types(tree)
    held = TensorFiles(path)
    found = {
        name: _widened(f"{NUMPY.get(t.dtype, t.dtype)}{list(t.shape)}", wanted.get(name)) for name, t in held.items()
    }
    if found != wanted:
        raise UserError(
            f"{path}: another architecture: the file holds {_difference(found, wanted)}; "
            f"the config needs {_difference(wanted, found)}; use the config that the weights were trained with"
        )

    def read(place: tuple, leaf: Any) -> np.ndarray:
        array = held.whole(path_name(place))
        return array.astype(leaf.dtype, copy=False)

    filled = jax.tree_util.tree_map_with_path(read, tree)
    return filled["params"], filled["extra"]


def write_folder(
    folder: pathlib.Path, meta: Mapping[str, Any], params: PyTree, extra: PyTree, dtype: str = "float32"
) -> None:
    """Write the two files of one model.

    Args:
      meta: content of `config.json`, with parts relative to `folder`.
      dtype: dtype of float32 leaves in the file, one of `DTYPES`.

    Raises:
      UserError: the disk is full or not writable.
    """
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "extra": extra})
    named = {path_name(path): np.asarray(jax.device_get(leaf), order="C") for path, leaf in leaves}
    tensors = {name: narrow(array, dtype, name) for name, array in named.items()}
    write_json(folder / CONFIG, meta)
    try:
        save_file(tensors, folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be written ({error}); free disk space") from error
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors makes files that only their owner can read


def without_places(recipe: Mapping[str, Any], places: Iterable[str]) -> dict[str, Any]:
    """Replace paths on the machine that trained a model by `elsewhere/` and their last component.

    Hub ids, and paths relative to the working directory of a command, reveal nothing about the machine and are kept.

    Args:
      places: dotted keys that may hold a path; a key may lead through a list.
    """
    for key in places:
        recipe = _without_place(recipe, key.split("."))
    return dict(recipe)


def _without_place(value: Any, names: Sequence[str]) -> Any:
    if not names:
        is_place = isinstance(value, str) and _is_place(value)
        return f"{hub.REMOVED}/{pathlib.PureWindowsPath(value).name}" if is_place else value
    if isinstance(value, list):
        return [_without_place(item, names) for item in value]
    if isinstance(value, Mapping) and names[0] in value:
        return {**value, names[0]: _without_place(value[names[0]], names[1:])}
    return value


def _is_place(value: str) -> bool:
    absolute = any(kind(value).is_absolute() for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath))
    return absolute or value.startswith(("~", "..")) or "://" in value


def narrow(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Cast a float32 array to `dtype`, the dtype of the file; return any other array unchanged.

    Args:
      name: name of the array, for messages.

    Raises:
      UserError: a value is too large for `dtype`.
    """
    if array.dtype != np.float32 or dtype == "float32":
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(jnp.dtype(dtype))
    if not is_finite(cast) and is_finite(array):
        largest = max(np.max(array), -np.min(array))
        other = "bfloat16" if dtype == "float16" and largest < _BFLOAT16_MAX else "float32"
        raise UserError(
            f"--dtype={dtype}: {name} holds the value {largest:.4g}, but the largest one of this dtype is "
            f"{float(jnp.finfo(dtype).max):.4g}; use --dtype={other}"
        )
    return cast


def _widened(found: str, wanted: str | None) -> str:
    """Return the type of a stored array once halves are converted to the float32 that is wanted."""
    kind, _, shape = found.partition("[")
    return f"float32[{shape}" if kind in DTYPES and (wanted or "").startswith("float32[") else found


def _fault(meta: Any) -> str:
    """Return what is wrong with the content of `config.json`, or an empty string."""
    for key, kind in _KEYS.items():
        if type(meta.get(key)) is not kind:
            return f"{key!r} is missing or of the wrong type"
    if not isinstance(meta.get("provenance", {}), dict):
        return "'provenance' must be an object"
    if not 0 <= meta["step"] < 2**63:
        return f"'step' is {shown(meta['step'])}"
    nested = meta.get("parts", {})
    if not isinstance(nested, dict) or not all(isinstance(value, str) for value in nested.values()):
        return "'parts' must map keys of the recipe to folders"
    for key in {**_OLD_PARTS, **nested}:
        *sections, _ = itertools.accumulate(key.split("."), "{}.{}".format)
        for section in sections:
            if not isinstance(at_key(meta["recipe"], section) or {}, dict):
                return f"recipe: {section} must be an object"
        if not isinstance(at_key(meta["recipe"], key) or "", str):
            return f"recipe: {key} must be a path"
    # A release may be untrusted: it must not make us read other folders of this machine, not even with a part
    # that it does not list.
    named = {key: at_key(meta["recipe"], key) or "" for key in _OLD_PARTS}
    for key, place in (*named.items(), *parts(meta).items()):
        path = pathlib.PureWindowsPath(place)  # knows both kinds of slashes
        if path.anchor or ".." in path.parts or _is_place(place):
            return f"{key} is at {shown(place)!r}, outside the folder"
    if meta["recipe"].get("system") != meta["system"]:
        return "'system' and the recipe differ"
    if meta["weights"] not in ("averaged", "raw"):
        return f"'weights' is {meta['weights']!r}"
    return ""


def parts(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the subfolders of the parts of a release, by recipe key."""
    if "parts" in meta:
        return dict(meta["parts"])
    values = {key: at_key(meta["recipe"], key) for key in _OLD_PARTS}
    return {key: value for key, value in values.items() if value and _OLD_PARTS[key] in (None, value)}


def _difference(types: Mapping[str, str], others: Mapping[str, str]) -> str:
    """List the first few entries that are missing or different on the other side."""
    lines = [f"{name} {kind}" for name, kind in sorted(types.items()) if others.get(name) != kind]
    return listed(lines, none="nothing else")
