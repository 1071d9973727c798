"""Export of a trained model and its parts to one folder, verified by reading it back.

Every system supports the format "release" and declares any others in `System.exports`.
"""

import dataclasses
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import motionaura_jax
from motionaura_jax.core import config, files
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.parts import Part
from motionaura_jax.core.trees import path_name
from motionaura_jax.systems.base import System
from motionaura_jax.systems.loading import load, load_autoencoder
from motionaura_jax.systems.registry import system_class
from motionaura_jax.weights import output as outputs
from motionaura_jax.weights import release
from motionaura_jax.weights.load import Loaded

SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of an export.

    Attributes:
      places: current locations, by role, of parts that have moved since training.
      dtype: dtype in which float32 leaves are stored, one of `release.DTYPES`.
      provenance: object to store in `config.json`; None keeps the checkpoint's own.
      shard_bytes: maximum size of one weight file in a PyTorch folder.
      check: compare the PyTorch folder's outputs with this model's.
    """

    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    provenance: Mapping[str, Any] | None = None
    shard_bytes: int = SHARD_BYTES
    check: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A model to export.

    Attributes:
      parts: our own models that it depends on, by role.
      copied: roles of published parts that are local folders and are copied into the export.
    """

    system: System
    model: Loaded
    parts: Mapping[str, "Opened"] = dataclasses.field(default_factory=dict)
    copied: tuple[str, ...] = ()

    def meta(self, inside: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the content of `config.json`, stripped of local paths.

        Args:
          inside: subfolders of the parts included in the export, by role.
        """
        model, inside = self.model, inside or {}
        recipe = release.without_places(config.to_dict(model.recipe), model.recipe.places)
        keys = {part.key: inside[part.role] for part in self.system.parts if part.role in inside}
        for key, folder in keys.items():
            recipe = release.with_key(recipe, key, folder)
        meta = {
            "system": model.recipe.system,
            "recipe": recipe,
            "parts": keys,
            "step": model.step,
            "weights": model.weights,
            "versions": {"motionaura_jax": motionaura_jax.__version__, "jax": jax.__version__},
        }
        return {**meta, "provenance": dict(model.provenance)} if model.provenance else meta

    def sources(self) -> Iterator[str | os.PathLike[str]]:
        """Yield the places of the model and of all its parts."""
        yield self.model.path
        if self.model.recipe.added:
            yield self.model.recipe.init_from  # adapters are worth nothing without it
        for part in self.system.parts:
            if place := self.model.recipe.at(part.key):
                yield place
        for opened in self.parts.values():
            yield from opened.sources()

    def copy_published(self, folder: pathlib.Path, shard_bytes: int) -> None:
        """Copy each published part into a subfolder named after its role."""
        for role in self.copied:
            (folder / role).mkdir()
            self.system.copy_part(role, folder / role, shard_bytes)


Writer = Callable[[pathlib.Path, Opened, Options], None]


def export(
    checkpoint: str, output: pathlib.Path, kind: str, options: Options, *, overwrite: bool = False
) -> tuple[Opened, int]:
    """Write a trained model to the new folder `output`, which appears only once it is complete.

    Args:
      kind: output format: "release", "adapter", or one that the system declares.

    Returns:
      The exported model and the total size of its files in bytes.

    Raises:
      UserError: the checkpoint or a part is missing, the system does not support the format, the folder exists, the disk is
        full, or the files read back differently.
    """
    outputs.check_output(output, overwrite=overwrite)
    opened = open_model(checkpoint, kind, options)
    outputs.check_apart(output, opened.sources())
    write = _writer(type(opened.system), opened.model.recipe.system, kind)
    with outputs.draft(output, overwrite=overwrite) as folder:
        write(folder, opened, options)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return opened, size


def open_model(checkpoint: str, kind: str, options: Options) -> Opened:
    """Open a model with the parts that this kind of export includes; an adapter includes none.

    Raises:
      UserError: see `export`.
    """
    model = load(checkpoint)
    cls = system_class(model.recipe.system)
    if kind == "adapter":
        return Opened(system=cls(model.recipe), model=model)
    recipe = model.recipe
    roles = {part.role for part in cls.parts}
    for role, place in options.places.items():
        if role not in roles:
            raise UserError(f"--{role}={place}: a {recipe.system} uses no {role.replace('_', ' ')}; leave it out")
        recipe = cls.with_part(recipe, role, place)
    model = dataclasses.replace(model, recipe=recipe)
    if options.provenance is not None:
        model = dataclasses.replace(model, provenance=options.provenance)
    return _with_parts(model, options.dtype)


def read_provenance(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
      UserError: the file cannot be read or holds no JSON object.
    """
    return files.read_json(path, remedy='give a JSON object, such as {"hours": 1}')


def rounded(model: Loaded, dtype: str) -> Loaded:
    """Return the model with its float32 weights rounded to `dtype` and back.

    Raises:
      UserError: a weight is too large for `dtype`.
    """

    def through(path: tuple, leaf: np.ndarray) -> np.ndarray:
        return release.narrow(leaf, dtype, path_name(path)).astype(leaf.dtype, copy=False)

    return dataclasses.replace(
        model, **jax.tree_util.tree_map_with_path(through, {"params": model.params, "extra": model.extra})
    )


def check(model: Loaded, folder: pathlib.Path) -> None:
    """Load a written folder and its parts as any command would, and compare the weights bit for bit.

    Raises:
      UserError: a weight reads back differently, or a part is not the one used in training.
    """
    again = load(folder, model.recipe.system)
    compare(model, again, folder)
    cls = system_class(again.recipe.system)
    if cls.parts:  # other frozen networks, such as those of feature losses, serve training alone
        cls(again.recipe).frozen()


def compare(model: Loaded, again: Loaded, folder: pathlib.Path) -> None:
    """Raise UserError if the weights read back from `folder` differ in any bit from those written."""
    pairs = zip(*(jax.tree.leaves((one.params, one.extra)) for one in (model, again)), strict=True)
    if not all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs):
        raise UserError(f"{folder}: reads back differently from what was written; check the disk and export again")


def _with_parts(model: Loaded, dtype: str) -> Opened:
    """Open the parts of a model, and the parts of these, and round all weights to `dtype`."""
    cls = system_class(model.recipe.system)
    recipe = cls.standalone(model.recipe)
    ours = {part.role: _open_part(part, recipe, dtype) for part in cls.parts if not part.published}
    published = {part.role: str(recipe.at(part.key)) for part in cls.parts if part.published}
    copied = tuple(role for role, place in published.items() if place and pathlib.Path(place).is_dir())
    model = rounded(dataclasses.replace(model, recipe=recipe), dtype)
    return Opened(system=cls(recipe), model=model, parts=ours, copied=copied)


def _open_part(part: Part, recipe: Any, dtype: str) -> Opened:
    place = str(recipe.at(part.key))
    if not part.latent_space:
        return _with_parts(load(place), dtype)
    autoencoder, loaded = load_autoencoder(place, recipe.at(part.latent_space))
    opened = _with_parts(loaded, dtype)
    system: Any = opened.system
    if system.autoencoder(opened.model.params, opened.model.extra).latent_space != autoencoder.latent_space:
        raise UserError(
            f"--dtype={dtype}: rounding changes the latent space of the {part.role}; before training, export it with this --dtype"
        )
    return opened


def _writer(cls: type[System], name: str, kind: str) -> Writer:
    """Import the function that writes a system in this format."""
    known = {"release": "motionaura_jax.exporters.release:write", "adapter": "motionaura_jax.exporters.adapter:write"}
    known |= cls.exports
    if kind not in known:
        raise UserError(f"--format={kind}: a {name} cannot be exported in this format, only as {', '.join(known)}")
    module, _, function = known[kind].partition(":")
    return getattr(importlib.import_module(module), function)
