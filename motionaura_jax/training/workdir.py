"""The folder of a run: `config.json`, `metrics.jsonl`, `checkpoints/`, `samples/`, TensorBoard events, `rejected.jsonl`."""

import json
import pathlib
from typing import Any

from etils import epath

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.data.media import write_json
from motionaura_jax.parallel import distributed
from motionaura_jax.training import data
from motionaura_jax.weights import steps

CONFIG = "config.json"

# Keys that may change between two runs of one workdir: they move no parameter and no sample.  Elsewhere is another run.
FREE_SECTIONS = ("checkpoint", "evaluate", "mesh", "profile", "sample", "watchdog")
BOUND_KEYS = ("checkpoint.folder",)
FREE_KEYS = ("data.threads", "train.log_every", "train.max_rollbacks")


def open_workdir(workdir: pathlib.Path, recipe: Recipe, *, override: bool = False) -> dict[str, Any]:
    """Creates the workdir, or checks that it belongs to this recipe, and saves the resolved config.

    With `override`, `record` saves a config that differs: its checkpoint may yet turn out not to fit.

    Of several processes the first does this, and the others wait for it.  Without a finished checkpoint there is nothing
    that another config could spoil: the workdir starts anew.

    Returns:
      The recipe as plain JSON values.

    Raises:
      UserError: the folder is not writable, or its checkpoints were made with another config (the differing keys are named).
    """
    wanted = config.to_dict(recipe)
    if distributed.is_primary():
        _claim(workdir, recipe, wanted, override)
    distributed.barrier("workdir is open")
    return wanted


def record(workdir: pathlib.Path, wanted: dict[str, Any]) -> None:
    """Saves the resolved config of a run whose checkpoint was restored, in the first of several processes."""
    if distributed.is_primary():
        write_json(workdir / CONFIG, wanted)


def _claim(workdir: pathlib.Path, recipe: Recipe, wanted: dict[str, Any], override: bool) -> None:
    path, place = workdir / CONFIG, steps.folder_of(workdir, recipe.checkpoint.folder)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        saved = json.loads(path.read_text("utf-8")) if path.exists() else _of_checkpoint(place) or wanted
    except OSError as error:
        raise UserError(f"{workdir}: cannot be used as a workdir ({error.strerror}); choose another folder") from error
    except ValueError:
        raise UserError(f"{path}: is damaged; delete it to save the config again") from None
    changed = [line for line in config.differences(_completed(saved, recipe), wanted) if not _free(line)]
    if changed and steps.newest(place) is None and steps.newest(workdir) is None:
        data.forget(workdir)
    elif changed and not override:
        raise UserError(
            f"{workdir}: was made with another config ({'; '.join(changed)}); choose another folder, or use train --override"
        )
    elif changed:
        return
    write_json(path, wanted)


def _of_checkpoint(place: epath.Path) -> dict[str, Any] | None:
    """The recipe of a run whose checkpoints outlived its workdir."""
    newest = steps.newest(place)
    return steps.read_meta(newest)[1]["recipe"] if newest else None


def _completed(saved: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Adds the defaults of keys that are younger than the workdir; a config that no longer fits stays as it is."""
    try:
        return config.to_dict(config.build(type(recipe), saved))
    except UserError:
        return saved


def _free(line: str) -> bool:
    key = line.split(":")[0]
    return key not in BOUND_KEYS and (key.split(".")[0] in FREE_SECTIONS or key in FREE_KEYS)
