"""The step folders of a run as inference sees them: `training.checkpoint` writes them, this reads the weights.

Every location may be local or a `gs://` or `s3://` path.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from packaging.version import Version

from motionaura_jax import __version__
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import leaf_types, merge, partition
from motionaura_jax.core.types import PyTree
from motionaura_jax.weights.checksum import checksum

FOLDER = "checkpoints"
_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
Location = str | os.PathLike[str]


class Damaged(UserError):
    """A step folder that cannot be read: files are missing, cut off or not what they should be."""


def folder_of(workdir: Location, chosen: str) -> epath.Path:
    """Where a run keeps its checkpoints: `chosen` (`checkpoint.folder`), else `checkpoints/` of the workdir."""
    return _absolute(chosen) if chosen else _absolute(workdir) / FOLDER


def exists(location: Location) -> bool:
    """Whether there is anything; raises UserError for a path that is not local and whose client is not there."""
    return _absolute(location).exists()


def newest(location: Location) -> epath.Path | None:
    """The newest finished step folder of a workdir or of a folder of steps, `location` itself where it is one, or None."""
    path = _absolute(location)
    if (path / "meta").is_dir():
        return path
    inside = (step for folder in (path, _folder(path)) if folder.is_dir() for step in folder.iterdir())
    steps = sorted((step for step in inside if step.name.isdigit()), key=lambda step: int(step.name), reverse=True)
    return next((step for step in steps if _finished(step)), None)


def _absolute(location: Location) -> epath.Path:
    """Raises UserError for a path that is not local and whose client is not there."""
    scheme, separator, _ = os.fspath(location).partition("://")
    if not separator:
        return epath.Path(location).resolve()
    if scheme not in _CLIENTS:
        raise UserError(f"{location}: {scheme}:// is not among {', '.join(_CLIENTS)}; use one of them or a local path")
    if importlib.util.find_spec(_CLIENTS[scheme]) is None:
        raise UserError(f"{location}: needs the Python package {_CLIENTS[scheme]}; pip install 'motionaura-jax[cloud]'")
    return epath.Path(location)


def _finished(step: epath.Path) -> bool:
    try:
        return "recipe" in _meta(step)
    except (OSError, ValueError, TypeError):
        return False


def _meta(step: epath.Path) -> dict[str, Any]:
    """Reads what orbax has written as JSON; its own reader makes all processes meet, and often one reads alone."""
    meta: dict[str, Any] = json.loads((step / "meta" / "metadata").read_text())
    return meta


def _folder(workdir: epath.Path) -> epath.Path:
    """Where the run in `workdir` keeps its checkpoints, by its saved config."""
    chosen = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        chosen = json.loads((workdir / "config.json").read_text())["checkpoint"]["folder"]
    return folder_of(workdir, chosen)


def read_meta(location: Location) -> tuple[epath.Path, dict[str, Any]]:
    """Finds the newest step under a workdir (or takes a step folder itself) and reads what it says about itself.

    Returns:
      The step folder and its meta: `recipe`, `step`, `version`, `jax`, `provenance`, `checksums`, `skipped_windows` and
      `weights`, which says what `read_weights` gives: "averaged" or "raw".

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
        raise UserError(f"{path}: holds no finished checkpoint; train there first, or give another folder")
    with _reading(step):
        meta = _meta(step)
        newer = Version(meta["version"]) > Version(__version__)
    if newer:
        raise UserError(
            f"{step}: was written by motionaura_jax {meta['version']}, which is newer than this one ({__version__}); "
            f"upgrade with pip install --upgrade motionaura_jax"
        )
    return step, {**meta, "weights": "averaged" if (step / "ema").is_dir() else "raw"}


def read_weights(step: epath.Path, params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
    """Read the weights for inference: averaged values where the run kept an average, plain values elsewhere.

    Args:
      step: folder from `read_meta`.
      params, extra: abstract trees that say what is expected.

    Raises:
      UserError: the checkpoint belongs to another architecture.
      Damaged: it cannot be read.
    """
    # As NumPy arrays, each process reads all of it, wherever the arrays lay in the run that wrote them.
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
        metadata = checkpointer.metadata(step / name).item_metadata
        tree = getattr(metadata, "tree", metadata)
        if not jax.tree.leaves(tree):
            # orbax takes a folder without a description for an empty tree.
            raise ValueError(f"{name} has no readable list of its arrays")
        return tree


def read_item(step: epath.Path, name: str, abstract: PyTree) -> PyTree:
    """Restores one item and compares its checksum.

    Raises:
      UserError: the checkpoint belongs to another architecture.
      Damaged: it cannot be read, or is not what was saved.
    """
    with _reading(step):
        restored = restore_item(step, name, abstract)
        verify(step, _meta(step), {name: restored})
        return restored


def restore_item(step: epath.Path, name: str, abstract: PyTree) -> PyTree:
    """Restores one item after comparing names, shapes and dtypes: orbax would cast a dtype silently.

    Of several processes each reads what lies on its own devices, and waits for no other one.

    Raises:
      UserError: the checkpoint belongs to another architecture.
      Damaged: it cannot be read.
    """
    with _reading(step), _alone() as checkpointer:
        metadata = checkpointer.metadata(step / name).item_metadata
        stored = leaf_types(getattr(metadata, "tree", metadata))
        wanted = leaf_types(abstract)
        if wanted and not stored and (name in _meta(step).get("checksums", {}) or (step / name).is_dir()):
            # orbax takes such a folder for an empty tree
            raise ValueError(f"{name} has no readable list of its arrays")
        for leaf in sorted(stored.keys() | wanted.keys()):
            if stored.get(leaf) != wanted.get(leaf):
                raise UserError(
                    f"{step}: another architecture: {name}/{leaf} is {stored.get(leaf, 'absent')} in the checkpoint and "
                    f"{wanted.get(leaf, 'absent')} in the config; use the config that the checkpoint was trained with"
                )
        return checkpointer.restore(step / name, args=ocp.args.StandardRestore(abstract))


def verify(step: epath.Path, meta: Mapping[str, Any], items: Mapping[str, PyTree]) -> None:
    """Compares the checksums of restored items with those in `meta`.

    The sums go over all devices that an item lies on, whose processes have to call this together.

    Raises:
      Damaged: an item is not what was saved.
    """
    with _reading(step):
        sums = {name: checksum(tree) for name, tree in items.items()}  # all before the first fault: the others go on
        for name, found in sums.items():
            if found != meta.get("checksums", {}).get(name, found):
                raise ValueError(f"{name} is not what was saved: its checksum is another one")


def _alone() -> ocp.Checkpointer:
    """Open a reader that waits for no other process."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=alone)


@contextlib.contextmanager
def _reading(step: epath.Path) -> Iterator[None]:
    """Turns what a damaged file makes of orbax into one line; a device that is full or a disk that refuses is no damage."""
    try:
        yield
    except (UserError, PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise Damaged(f"{step}: is damaged ({reason}); give another step folder of this run") from error
