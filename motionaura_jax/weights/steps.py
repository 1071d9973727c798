"""Reader of the weights in the step folders of a run, which `training.checkpoint` writes.

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
    """Error for a step folder that cannot be read because files are missing, truncated or wrong."""


def folder_of(workdir: Location, chosen: str) -> epath.Path:
    """Return the checkpoint folder of a run: `chosen` (`checkpoint.folder`), else `checkpoints/` in the workdir."""
    return _absolute(chosen) if chosen else _absolute(workdir) / FOLDER


def exists(location: Location) -> bool:
    """Return whether `location` exists. Raise UserError if it is remote and its client is not installed."""
    return _absolute(location).exists()


def newest(location: Location) -> epath.Path | None:
    """Return the newest finished step folder of a workdir or folder of steps, `location` if it is a step, or None."""
    path = _absolute(location)
    if (path / "meta").is_dir():
        return path
    inside = (step for folder in (path, _folder(path)) if folder.is_dir() for step in folder.iterdir())
    steps = sorted((step for step in inside if step.name.isdigit()), key=lambda step: int(step.name), reverse=True)
    return next((step for step in steps if _finished(step)), None)


def _absolute(location: Location) -> epath.Path:
    """Resolve a location. Raise UserError if it is remote and its client is not installed."""
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
    """Read the JSON that orbax wrote. Its own reader synchronizes all processes, but often one process reads alone."""
    meta: dict[str, Any] = json.loads((step / "meta" / "metadata").read_text())
    return meta


def _folder(workdir: epath.Path) -> epath.Path:
    """Return the checkpoint folder of the run in `workdir`, from its saved config."""
    chosen = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        chosen = json.loads((workdir / "config.json").read_text())["checkpoint"]["folder"]
    return folder_of(workdir, chosen)


def read_meta(location: Location) -> tuple[epath.Path, dict[str, Any]]:
    """Find the newest step under a workdir, or take a step folder itself, and read its metadata.

    Returns:
      The step folder and its meta: `recipe`, `step`, `version`, `jax`, `provenance`, `checksums`, `skipped_windows` and
      `weights`, the kind that `read_weights` returns: "averaged" or "raw".

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
        metadata = checkpointer.metadata(step / name).item_metadata
        tree = getattr(metadata, "tree", metadata)
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
        metadata = checkpointer.metadata(step / name).item_metadata
        stored = leaf_types(getattr(metadata, "tree", metadata))
        wanted = leaf_types(abstract)
        if wanted and not stored and (name in _meta(step).get("checksums", {}) or (step / name).is_dir()):
            # orbax takes a folder without a description for an empty tree.
            raise ValueError(f"{name} has no readable list of its arrays")
        for leaf in sorted(stored.keys() | wanted.keys()):
            if stored.get(leaf) != wanted.get(leaf):
                raise UserError(
                    f"{step}: another architecture: {name}/{leaf} is {stored.get(leaf, 'absent')} in the checkpoint and "
                    f"{wanted.get(leaf, 'absent')} in the config; use the config that the checkpoint was trained with"
                )
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


def _alone() -> ocp.Checkpointer:
    """Open a reader that waits for no other process."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=alone)


@contextlib.contextmanager
def _reading(step: epath.Path) -> Iterator[None]:
    """Turn orbax's errors about damaged files into one line; let errors about memory, devices or permissions pass."""
    try:
        yield
    except (UserError, PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise Damaged(f"{step}: is damaged ({reason}); give another step folder of this run") from error
