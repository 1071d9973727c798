"""Published encoders from a folder or hub id: T5, and the image and text towers of SigLIP and CLIP."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from motionaura_jax.core import config, files
from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.tensor_map import TensorMap
from motionaura_jax.core.types import PyTree
from motionaura_jax.models import building
from motionaura_jax.models.encoders import clip, siglip, t5, tensor_maps
from motionaura_jax.models.encoders import config as settings
from motionaura_jax.models.encoders.tower import Tower
from motionaura_jax.weights import hub
from motionaura_jax.weights.convert import import_tensors, without_ignored
from motionaura_jax.weights.shards import write_shards
from motionaura_jax.weights.tensors import TensorFiles

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """Kind of tower.

    Attributes:
      tensor_map: function from the tensor names of a file to its tensor map.
      sections: model type -> key of `config.json` that holds the settings; "" if the file itself does.
      projection: tensor of the projection; a tower without this tensor has no projection.
    """

    config: type[Any]
    network: type[Any]
    tensor_map: Callable[[Collection[str]], TensorMap]
    sections: Mapping[str, str]
    projection: str = ""


KINDS = {
    "t5": Kind(config=settings.T5Config, network=t5.T5Encoder, tensor_map=tensor_maps.t5, sections={"t5": ""}),
    "siglip_vision": Kind(
        config=settings.SiglipVisionConfig,
        network=siglip.SiglipVision,
        tensor_map=lambda _: tensor_maps.SIGLIP_VISION,
        sections={"siglip": "vision_config", "siglip_vision_model": ""},
    ),
    "siglip_text": Kind(
        config=settings.SiglipTextConfig,
        network=siglip.SiglipText,
        tensor_map=lambda _: tensor_maps.SIGLIP_TEXT,
        sections={"siglip": "text_config", "siglip_text_model": ""},
    ),
    "clip_vision": Kind(
        config=settings.ClipVisionConfig,
        network=clip.ClipVision,
        tensor_map=lambda _: tensor_maps.CLIP_VISION,
        sections={"clip": "vision_config", "clip_vision_model": ""},
        projection="visual_projection.weight",
    ),
    "clip_text": Kind(
        config=settings.ClipTextConfig,
        network=clip.ClipText,
        tensor_map=lambda _: tensor_maps.CLIP_TEXT,
        sections={"clip": "text_config", "clip_text_model": ""},
        projection="text_projection.weight",
    ),
}


def open_tower(
    place: str, kind: str, *, dtype: str = "bfloat16", shard: Callable[[PyTree], PyTree] = lambda tree: tree
) -> Tower:
    """Read a tower published as a folder with `config.json` and safetensors.

    Args:
      place: the folder, or a hub id (see `weights.hub`).
      kind: one of `KINDS`.
      dtype: dtype of the weights and of the products.
      shard: gives each abstract leaf its sharding; by default all leaves are on one device.

    Raises:
      UserError: the folder is missing, its settings are unknown, or its weights are damaged, not safetensors, or do not
        match the settings.
    """
    network, files = _find(place, kind, dtype)
    tensor_map = KINDS[kind].tensor_map(files)
    params = import_tensors(files, tensor_map, shard(_abstract(network, dtype)))
    return Tower(network=network, params=params, digest=_digest(network.config, tensor_map, files))


def planned_text_tower(folder: Path, *, dtype: str = "bfloat16") -> Tower:
    """Return a T5 with abstract weights, built from the `config.json` in its folder.

    Raises:
      UserError: the file is missing, or its settings are unknown.
    """
    network = KINDS["t5"].network(_build(read_settings(folder, "t5"), "t5", folder, ()), dtype)
    return Tower(network=network, params=_abstract(network, dtype))


def describe_tower(place: str, kind: str, *, dtype: str = "bfloat16") -> Tower:
    """Return a tower without its weights, which are only read for their hash; see `open_tower`."""
    network, files = _find(place, kind, dtype)
    return Tower(network=network, params={}, digest=_digest(network.config, KINDS[kind].tensor_map(files), files))


def copy_tower(place: str, kind: str, folder: Path, shard_bytes: int) -> None:
    """Write settings and weights of a tower as published, without unrelated tensors in its files.

    Args:
      place, kind: see `open_tower`.
      folder: existing folder to write to.
      shard_bytes: largest size of one file.

    Raises:
      UserError: the tower is missing, its files are damaged, or the disk is full or not writable.
    """
    source = hub.model_folder(place)
    read_settings(source, kind)
    files = TensorFiles(source)
    names = without_ignored(KINDS[kind].tensor_map(files), files)
    shutil.copyfile(source / CONFIG, folder / CONFIG)
    write_shards(folder, WEIGHTS, ((name, files.whole(name)) for name in names), shard_bytes)


def read_settings(folder: Path, kind: str) -> dict[str, Any]:
    """Read the part of `config.json` that describes a tower of this kind.

    Raises:
      UserError: the file is missing, not JSON, or of another model type.
    """
    path, sections = folder / CONFIG, KINDS[kind].sections
    if not path.exists():
        raise UserError(f"{path}: is missing; give the folder of a published model")
    values = files.read_json(path, remedy="download it again")
    try:
        name = values["model_type"]
        if name not in sections:
            raise UserError(f"{path}: the model type {name!r} is not {kind}{nearest(str(name), sections)}")
        part = values[sections[name]] if sections[name] else values
        shared = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
        return {**part, **shared}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: describes no model ({type(error).__name__}: {error}); download it again") from None


def _find(place: str, kind: str, dtype: str) -> tuple[Any, TensorFiles]:
    """Return the network that the settings describe, and its files."""
    folder = hub.model_folder(place)
    values, files = read_settings(folder, kind), TensorFiles(folder)
    known = {field.name for field in dataclasses.fields(KINDS[kind].config)}
    sizes = {name: value for name, value in values.items() if name in known}
    building.check_numbers(sizes, [tensor.shape for tensor in files.values()], f"{folder / CONFIG}: config")
    return KINDS[kind].network(_build(values, kind, folder, files), dtype), files


def _abstract(network: Any, dtype: str) -> PyTree:
    """Return the abstract parameters."""
    params = jax.eval_shape(network.init, jax.random.key(0), *_inputs(network.config))["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), params)


def _digest(config: Any, tensor_map: TensorMap, files: TensorFiles) -> str:
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    digest.update(files.digest(without_ignored(tensor_map, files)))
    return digest.hexdigest()[:16]


def _build(values: Mapping[str, Any], kind: str, folder: Path, files: Collection[str]) -> Any:
    """Build the settings of the network; other settings in the file concern training and generation."""
    cls, projection = KINDS[kind].config, KINDS[kind].projection
    known = {field.name for field in dataclasses.fields(cls)}
    picked = {key: value for key, value in values.items() if key in known and value is not None}
    if projection and projection not in files:
        picked["projection_dim"] = 0
    return config.build(cls, picked, str(folder / CONFIG))


def _inputs(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    if isinstance(config, settings.VisionConfig):
        return (jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32),)
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    return (ids, jax.ShapeDtypeStruct((1, 4), jnp.bool_)) if isinstance(config, settings.T5Config) else (ids,)
