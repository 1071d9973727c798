"""Reader of the weights in the step folders of a run, which `training.checkpoint` writes.

Every location may be local or a `gs://` or `s3://` path.
"""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from packaging.version import Version

from motionaura_jax.core import files, process
from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.trees import leaf_types, merge, partition
from motionaura_jax.core.types import PyTree
from motionaura_jax.weights import release
from motionaura_jax.weights.checksum import checksum

FOLDER = "checkpoints"
_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
Location = str | os.PathLike[str]


class Damaged(UserError):
    """Error for a step folder that cannot be read because files are missing, truncated or wrong."""


class _LocalPath(type(epath.Path())):  # type: ignore[misc]
    """Local path that may hold any character but a backslash.

    The paths of etils put their own name unescaped into a pattern, so that orbax finds nothing below a folder with `[`.
    """

    def glob(self, pattern: str) -> Iterator["_LocalPath"]:
        """Yield the matches of `pattern` in this folder, whose own name is taken literally."""
        return map(self._new, pathlib.Path(self).glob(pattern))


def folder_of(workdir: Location, chosen: str) -> epath.Path:
    """Return the checkpoint folder of a run: `chosen` (`checkpoint.folder`), else `checkpoints/` in the workdir.

    Raises:
      UserError: no checkpoint could be stored there.
    """
    folder = _absolute(chosen) if chosen else _absolute(workdir) / FOLDER
    _check_place(folder)
    return folder


def _check_place(folder: epath.Path) -> None:
    """Raise UserError if `folder` cannot hold a checkpoint: tensorstore takes a backslash for a slash."""
    if isinstance(folder, _LocalPath) and os.sep == "/" and "\\" in str(folder):
        raise UserError(f"{folder}: checkpoints cannot be stored under a path with a backslash; choose another folder")


def exists(location: Location) -> bool:
    """Return whether `location` exists. Raise UserError if it is remote and its client is not installed."""
    return _absolute(location).exists()


def newest(location: Location) -> epath.Path | None:
    """Return the newest finished step folder of a workdir or folder of steps, `location` if it is a step, or None.

    A step folder that is empty, or whose name is not the step that it holds, is not finished.
    """
    path = _absolute(location)
    if (path / "meta").is_dir():
        return path
    try:
        chosen = _folder(path)
    except UserError:
        chosen = path / FOLDER  # a damaged config hides no checkpoint; without any, `read_meta` reports the config
    steps = [*numbered(path).items(), *numbered(chosen).items()]
    ordered = sorted(steps, key=lambda step: step[0], reverse=True)
    return next((folder for number, folder in ordered if _finished(folder, number)), None)


def numbered(folder: epath.Path) -> dict[int, epath.Path]:
    """Return everything in `folder` with the name of a step, by number."""
    if not folder.is_dir():
        return {}
    inside = {entry.name: entry for entry in folder.iterdir()}
    # Not "007" and no digits of other scripts: orbax would look for "7".
    names = [name for name in inside if name.isascii() and name.isdecimal() and name == str(int(name))]
    return {int(name): inside[name] for name in names}


def holds_files(folder: epath.Path) -> bool:
    """Return whether there is a file at or below `folder`."""
    return not folder.is_dir() or any(holds_files(inside) for inside in folder.iterdir())


def _absolute(location: Location) -> epath.Path:
    """Resolve a location. Raise UserError if it is remote and its client is not installed, or if it is no path."""
    scheme, separator, _ = os.fspath(location).partition("://")
    if not separator:
        return _LocalPath(files.expanded(location)).resolve()
    if scheme not in _CLIENTS:
        raise UserError(f"{location}: {scheme}:// is not among {', '.join(_CLIENTS)}; use one of them or a local path")
    if importlib.util.find_spec(_CLIENTS[scheme]) is None:
        raise UserError(f"{location}: needs the Python package {_CLIENTS[scheme]}; pip install 'motionaura-jax[cloud]'")
    return epath.Path(location)


def _finished(step: epath.Path, number: int) -> bool:
    try:
        meta = _meta(step)
        return "recipe" in meta and meta.get("step", number) == number
    except (OSError, ValueError):
        return False


def _meta(step: epath.Path) -> dict[str, Any]:
    """Read the JSON that orbax wrote. Its own reader synchronizes all processes, but often one process reads alone."""
    return _read_json(step / "meta" / "metadata")


def _read_json(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object of a run.

    Raises:
      OSError, ValueError: it cannot be read.
    """
    _check_files(path)
    if isinstance(path, _LocalPath) and pathlib.Path(path).stat().st_size > files.MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {files.MAX_JSON_BYTES} bytes")
    value = files.parse_json(path.read_bytes(), strict=False)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return value


def _check_meta(meta: Mapping[str, Any], number: int | None) -> None:
    """Raise ValueError if `meta` has another form than that of a step, or is of another step than `number`."""
    forms = {"recipe": dict, "step": int, "version": str, "provenance": dict, "checksums": dict}
    forms |= {"skipped_windows": list, "open_window": list}
    missing = forms.keys() & {"recipe", "step", "version"} - meta.keys()
    wrong = [name for name, form in forms.items() if name in meta and not isinstance(meta[name], form)]
    if missing or wrong:
        raise ValueError(f"meta/metadata has no usable {', '.join(sorted({*missing, *wrong}))}")
    if meta["step"] < 0 or number not in (None, meta["step"]):
        raise ValueError(f"it holds step {meta['step']}; if the folder was renamed, give it that name again")
    if any(len(pair) != 2 or not all(type(end) is int for end in pair) for pair in meta.get("skipped_windows", ())):
        raise ValueError("meta/metadata has no usable skipped_windows")
    if any(len(pair) != 2 or not isinstance(pair[1], dict) for pair in meta.get("open_window", ())):
        raise ValueError("meta/metadata has no usable open_window")


def _check_files(path: epath.Path) -> None:
    """Raise ValueError if there is a pipe or device at or below a local path: reading one may never end."""
    if not isinstance(path, _LocalPath):
        return
    for folder, _, names in os.walk(path) if path.is_dir() else [(path.parent, [], [path.name])]:
        for name in names:
            found = pathlib.Path(folder, name)
            if found.exists() and not found.is_file():
                raise ValueError(f"{name} is a pipe or device, not a file")


def _folder(workdir: epath.Path) -> epath.Path:
    """Return the checkpoint folder of the run in `workdir`, from its saved config.

    Raises:
      UserError: the config cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        return folder_of(workdir, "")
    try:
        chosen = _read_json(path).get("checkpoint", {}).get("folder", "")
        if not isinstance(chosen, str):
            raise ValueError(f"checkpoint.folder is {shown(chosen)}, not a path")
    except (OSError, ValueError, AttributeError) as error:
        reason = "checkpoint is no group of keys" if isinstance(error, AttributeError) else error
        raise UserError(
            f"{path}: is damaged ({reason}); restore the file, or give the folder of the checkpoints itself"
        ) from None
    return folder_of(workdir, chosen)


def read_meta(location: Location) -> tuple[epath.Path, dict[str, Any]]:
    """Find the newest step under a workdir, or take a step folder itself, and read its metadata.

    Returns:
      The step folder and its meta; see `read_step`.

    Raises:
      UserError: there is no checkpoint, or a newer version of this package wrote it.
      Damaged: it cannot be read.
    """
    path = _absolute(location)
    if not path.exists():
        raise UserError(
            f"{path}: no such checkpoint; give a workdir of `train`, a step folder, a release folder, or a model on the hub "
            f"with its revision (ORGANIZATION/NAME@REVISION)"
        )
    step = newest(path)
    if step is None:
        stray = max((numbered(path) | numbered(_folder(path))).items(), default=None, key=lambda step: step[0])
        if stray is not None:
            read_step(stray[1], stray[0])  # raises, with the reason why not even this one counts
        raise UserError(f"{path}: holds no finished checkpoint; train there first, or give another folder")
    return step, read_step(step)


def read_step(step: epath.Path, number: int | None = None) -> dict[str, Any]:
    """Read the metadata of one step folder.

    Args:
      number: step that the folder must hold; by default any.

    Returns:
      `recipe`, `step`, `version`, `jax`, `provenance`, `checksums`, `skipped_windows` and `weights`, the kind that
      `read_weights` returns: "averaged" or "raw".

    Raises:
      UserError: a newer version of this package wrote it.
      Damaged: it cannot be read, or holds another step.
    """
    _check_place(step)
    with _reading(step):
        meta = _meta(step)
        if isinstance(meta.get("version"), str):
            Version(meta["version"])  # anything else than a version is damage
            release.check_version(step, meta["version"])
        _check_meta(meta, number)
    return {**meta, "weights": "averaged" if (step / "ema").is_dir() else "raw"}


def read_weights(step: epath.Path, params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
    """Read the weights for inference: averaged values where the run kept an average, plain values elsewhere.

    Args:
      step: folder from `read_meta`.
      params, extra: abstract trees of the expected arrays.

    Raises:
      UserError: the checkpoint belongs to another architecture.
      Damaged: it cannot be read.
    """
    # As NumPy arrays: each process reads everything, regardless of the shardings of the run that wrote it.
    params, extra = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), (params, extra))
    extra = read_item(step, "extra", {"extra": extra})["extra"]
    if not (step / "ema").is_dir():
        return read_item(step, "params", params), extra
    # The average lacks parameters that were frozen or that their group excludes; inference uses their plain values.
    averaged, rest = partition(params, leaf_types(stored_item(step, "ema")).__contains__)
    if not jax.tree.leaves(rest):
        return read_item(step, "ema", params), extra
    return merge(read_item(step, "params", params), read_item(step, "ema", averaged)), extra


def stored_item(step: epath.Path, name: str) -> PyTree:
    """Return one item as the checkpoint describes it: nested dicts and lists of shapes and dtypes.

    Raises:
      Damaged: its description cannot be read.
    """
    with _reading(step), _alone() as checkpointer:
        tree = _described(checkpointer, step / name)
        if not jax.tree.leaves(tree):
            # orbax takes a folder without a description for an empty tree.
            raise ValueError(f"{name} has no readable list of its arrays")
        return tree


def read_item(step: epath.Path, name: str, abstract: PyTree) -> PyTree:
    """Restore one item and compare its checksum.

    Raises:
      UserError: the checkpoint belongs to another architecture.
      Damaged: it cannot be read, or differs from what was saved.
    """
    with _reading(step):
        restored = restore_item(step, name, abstract)
        verify(step, _meta(step), {name: restored})
        return restored


def restore_item(step: epath.Path, name: str, abstract: PyTree) -> PyTree:
    """Restore one item after comparing names, shapes and dtypes: orbax would cast a dtype silently.

    Each process reads only the data of its own devices and waits for no other process.

    Raises:
      UserError: the checkpoint belongs to another architecture.
      Damaged: it cannot be read.
    """
    with _reading(step), _alone() as checkpointer:
        stored, wanted = leaf_types(_described(checkpointer, step / name)), leaf_types(abstract)
        if wanted and not stored and (name in _meta(step).get("checksums", {}) or (step / name).is_dir()):
            # orbax takes a folder without a description for an empty tree.
            raise ValueError(f"{name} has no readable list of its arrays")
        for leaf in sorted(stored.keys() | wanted.keys()):
            if stored.get(leaf) != wanted.get(leaf):
                raise UserError(
                    f"{step}: another architecture: {name}/{leaf} is {stored.get(leaf, 'absent')} in the checkpoint and "
                    f"{wanted.get(leaf, 'absent')} in the config; use the config that the checkpoint was trained with"
                )
        with _orbax():
            return checkpointer.restore(step / name, args=ocp.args.StandardRestore(abstract))


def verify(step: epath.Path, meta: Mapping[str, Any], items: Mapping[str, PyTree]) -> None:
    """Compare the checksums of restored items with those in `meta`.

    The sums run on all devices that hold an item, so their processes must call this together.

    Raises:
      Damaged: an item differs from what was saved.
    """
    with _reading(step):
        # Finish all sums before the first error: other processes take part in them.
        sums = {name: checksum(tree) for name, tree in items.items()}
        for name, found in sums.items():
            if found != meta.get("checksums", {}).get(name, found):
                raise ValueError(f"{name} is not what was saved: its checksum differs")


def read_back(step: epath.Path, number: int, trees: Mapping[str, PyTree]) -> None:
    """Compare a step that was just saved with `trees`: the list of all arrays, and every bit of `params`.

    Each process reads only the data of its own devices and runs no collective, so any thread may call this.

    Raises:
      UserError: the step cannot be read, or differs.
    """
    try:
        read_step(step, number)
        with _reading(step):
            for name in (name for name, tree in trees.items() if jax.tree.leaves(tree)):
                if leaf_types(stored_item(step, name)) != leaf_types(trees[name]):
                    raise ValueError(f"{name} lists other arrays than were saved")
            params = trees["params"]
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
            found = restore_item(step, "params", abstract)
            if not all(map(_same_bits, jax.tree.leaves(found), jax.tree.leaves(params))):
                raise ValueError("params is not what was saved")
    except UserError as error:
        raise UserError(
            f"{str(error).split(';')[0]}, although it was just saved; choose another folder for the run, or check the disk"
        ) from error


def _same_bits(array: jax.Array, other: jax.Array) -> bool:
    def bits(shard: jax.Shard) -> np.ndarray:
        return np.ravel(np.asarray(shard.data)).view(np.uint8)

    pairs = zip(array.addressable_shards, other.addressable_shards, strict=True)
    return all(np.array_equal(bits(one), bits(two)) for one, two in pairs)


def _alone() -> ocp.Checkpointer:
    """Open a reader that waits for no other process."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=alone)


def _described(checkpointer: ocp.Checkpointer, item: epath.Path) -> PyTree:
    """Return the shapes and dtypes of an item. Raise OSError or ValueError if its description cannot be read."""
    _check_files(item)
    with _orbax():
        metadata = checkpointer.metadata(item).item_metadata
        tree = getattr(metadata, "tree", metadata)
        leaf_types(tree)
        return tree


@contextlib.contextmanager
def _orbax() -> Iterator[None]:
    """Turn what orbax raises for damaged files, nearly every type, into ValueError; let memory and devices pass."""
    try:
        yield
    except (OSError, ValueError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if process.is_missing_device(error):
            raise
        raise ValueError(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _reading(step: epath.Path) -> Iterator[None]:
    """Turn OSError and ValueError about damaged files into one line. Missing permission is no damage."""
    try:
        yield
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise Damaged(f"{step}: is damaged ({reason}); give another step folder of this run") from error
