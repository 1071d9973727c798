"""Small valid descriptions and weights of models, and the functions that read them back."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save

from motionaura_jax.core import config
from motionaura_jax.core.parts import Component
from motionaura_jax.core.tensor_map import Rule, TensorMap, linear
from motionaura_jax.data.array_cache import META, ArrayCache
from motionaura_jax.data.array_cache import fill as fill_cache
from motionaura_jax.exporters import adapter, base
from motionaura_jax.models.encoders.text_tokenizers import PretrainedTokenizer
from motionaura_jax.systems import loading
from motionaura_jax.systems.base import System
from motionaura_jax.systems.mbq_vae import MBQVAERecipe, MBQVAESystem
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.weights import exported, load, release, steps, towers
from motionaura_jax.weights.checksum import digest
from motionaura_jax.weights.tensors import INDEX, TensorFiles
from tests.models.published import T5, write_tokenizer
from tests.systems import tiny

Seeds = dict[str, dict[str, bytes]]

_PARAMS = {"dense": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}, "bias": np.ones(3, np.float16)}
_EXTRA = {"count": np.int32(7)}
_NAMES = {
    "params/dense/kernel": _PARAMS["dense"]["kernel"],  # type: ignore[call-overload]
    "params/bias": _PARAMS["bias"],
    "extra/count": np.array(7, np.int32),
}
_META = {
    "system": "toy",
    "recipe": {"system": "toy"},
    "step": 3,
    "weights": "averaged",
    "versions": {},
}
_COMPONENT = Component(
    folder="net",
    tensors=TensorMap(rules=(Rule("dense.weight", "dense/kernel", linear()),), new=("bias",)),
    place=("params",),
)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---------------------------------------------------------------- A toy release, and its export to PyTorch
def release_config() -> Seeds:
    """Return a release with a list of parts, and an older one without."""
    metas = {"listed": {**_trained_meta(), "provenance": {"data": ["clips"]}}, "older": _trained_meta()}
    del metas["older"]["parts"]
    return {name: {release.CONFIG: _json(meta), release.WEIGHTS: save(_NAMES)} for name, meta in metas.items()}


def _trained_meta() -> dict[str, Any]:
    recipe = config.to_dict(_recipe())
    return {**_META, "system": recipe["system"], "recipe": recipe, "parts": {"tokenizer": "tokenizer"}}


def release_weights() -> Seeds:
    """Return the weights of the toy release."""
    return {"weights": {release.WEIGHTS: save(_NAMES), release.CONFIG: _json(_META)}}


def export_config() -> Seeds:
    """Return the description of the toy export."""
    return {"training": {exported.META: _json(_trained_meta())}}


def export_weights() -> Seeds:
    """Return the network of the toy export."""
    name = f"net/{exported.WEIGHTS}"
    kernel = np.ascontiguousarray(_PARAMS["dense"]["kernel"].T)  # type: ignore[call-overload]
    return {"net": {name: save({"dense.weight": kernel}), exported.META: _json(_META), exported.REST: _rest()}}


def export_rest() -> Seeds:
    """Return the leaves that no network of the toy export has."""
    files = export_weights()["net"]
    return {"rest": {exported.REST: files.pop(exported.REST), **files}}


def _rest() -> bytes:
    return save({"params/bias": _PARAMS["bias"], "extra/count": _NAMES["extra/count"]})  # type: ignore[dict-item]


def open_described(folder: Path) -> object:
    """Open a checkpoint, and build the recipe of its system."""
    return load.open_checkpoint(str(folder)).recipe(TextToVideoRecipe)


def read_toy(folder: Path) -> object:
    """Read the weights of the toy release."""
    return release.read_weights(folder, *_abstract())


def read_toy_export(folder: Path) -> object:
    """Read the weights of the toy export; the network is in a folder of its own."""
    root = folder.parent if folder.name == "net" else folder
    return exported.read_weights(root, [_COMPONENT], *_abstract())


def _abstract() -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (_PARAMS, _EXTRA))


# ---------------------------------------------------------------- Untrained models
@functools.cache
def _untrained(system_class: type[System]) -> dict[str, bytes]:
    recipe = _recipe() if system_class is TextToVideoSystem else _tokenizer_recipe()
    shapes = jax.eval_shape(system_class(recipe).init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    meta = {**_META, "system": recipe.system, "recipe": config.to_dict(recipe)}
    with tempfile.TemporaryDirectory() as folder:
        release.write_folder(Path(folder), meta, *zeros)
        return {name: (Path(folder) / name).read_bytes() for name in (release.CONFIG, release.WEIGHTS)}


def trained_config() -> Seeds:
    """Return the releases of a tokenizer and of a text-to-video model; their configs are mutated."""
    return {"tokenizer": _untrained(MBQVAESystem), "text to video": _untrained(TextToVideoSystem)}


def trained_weights() -> Seeds:
    """Return the release of a tokenizer; its weights are mutated."""
    files = _untrained(MBQVAESystem)
    return {"tokenizer": {release.WEIGHTS: files[release.WEIGHTS], release.CONFIG: files[release.CONFIG]}}


def load_release(folder: Path) -> object:
    """Build the model that a release describes, and read its weights."""
    return loading.load(str(folder))


def config_file() -> Seeds:
    """Return a saved config of a text-to-video run."""
    return {"config": {"config.json": _json(config.to_dict(_recipe()))}}


def read_config(path: Path) -> object:
    """Read a saved config and build the recipe."""
    return config.build(TextToVideoRecipe, config.read(str(path)))


def _tokenizer_recipe() -> MBQVAERecipe:
    return config.build(MBQVAERecipe, {"system": "mbq_vae", "model": tiny.TOKENIZER})


@functools.cache
def _recipe() -> TextToVideoRecipe:
    values = {**tiny.text_to_video(Path("tokenizer")), "latent_space": "0" * 16}
    return config.build(TextToVideoRecipe, values)


# ---------------------------------------------------------------- Runs
def workdir_config() -> Seeds:
    """Return a workdir whose config names a folder of checkpoints."""
    return {"workdir": {"config.json": _json({"system": "toy", "checkpoint": {"folder": "", "keep": 3}}), **_step()}}


def step_metadata() -> Seeds:
    """Return a workdir with one step folder, whose description is mutated."""
    return {"step": {**_step(), "config.json": _json({"system": "toy", "checkpoint": {"folder": ""}})}}


@functools.cache
def _step() -> dict[str, bytes]:
    """Return the files of a step folder, its description first."""
    meta = {"recipe": config.to_dict(_recipe()), "step": 3, "version": "0.1", "jax": "0.10", "checksums": {"params": 1}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder / "params", {"w": np.ones(3, np.float32)})
        params = {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    rest = {f"checkpoints/3/{path}": content for path, content in params.items()}
    return {"checkpoints/3/meta/metadata": _json(meta), **rest}


def find_step(folder: Path) -> object:
    """Find the newest step of a workdir and build its recipe."""
    return load.open_checkpoint(str(folder)).recipe(TextToVideoRecipe), steps.newest(str(folder))


def read_provenance(path: Path) -> object:
    """Read the provenance that an export is given."""
    return base.read_provenance(path)


@functools.cache
def _cache_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_cache(
            folder, {"kind": "tokens", "dtype": "int32"}, {b"k" * 16: 1}, lambda items: [np.ones((2, 2), np.int32)]
        )
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir(), key=lambda file: file.name != META)}


def cache() -> Seeds:
    """Return a cache of arrays; its description is mutated."""
    return {"cache": _cache_files()}


def read_cache(folder: Path) -> object:
    """Read all arrays of a cache."""
    found = ArrayCache(folder)
    return [found[key] for key in found]


# ---------------------------------------------------------------- Published weights
def tensors() -> Seeds:
    """Return a file with tensors of several shapes and dtypes."""
    values = {
        "scalar": np.array(1, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "matrix": np.ones((2, 3), np.float16),
        "flags": np.ones(5, bool),
        "ids": np.arange(4),
    }
    return {"model": {"model.safetensors": save(values, {"format": "pt"})}}


@functools.cache
def _sharded() -> dict[str, bytes]:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {"total_size": 32}, "weight_map": {"a": names[0], "b": names[1]}}
    files = {f"model.safetensors{INDEX}": _json(index)}
    return files | {name: save({key: np.ones(4, np.float32)}) for key, name in zip("ab", names, strict=True)}


def shard_index() -> Seeds:
    """Return a folder of two shards; its index is mutated."""
    return {"index": _sharded()}


def shards() -> Seeds:
    """Return a folder of two shards; one of them is mutated."""
    name = "model-00001-of-00002.safetensors"
    return {"shard": {name: _sharded()[name], **_sharded()}}


def read_tensors(path: Path) -> object:
    """Read the header and every tensor."""
    files = TensorFiles(path)
    return {name: files.whole(name) for name in files}, files.digest(files)


# ---------------------------------------------------------------- Adapters
@functools.cache
def _base() -> load.Loaded:
    """Return a base model without weights, which adapters may join."""
    return load.Loaded(
        recipe=_recipe(), params={}, extra={}, step=0, path=Path("base"), weights="raw", provenance={}
    )  # fmt: skip


@functools.cache
def _adapter() -> dict[str, bytes]:
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "base_model_hash": digest({}),
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["to_q"],
        "activation": "gelu",
    }
    places = ("self_attention.input", "cross_attention.input")
    halves = {"A": np.ones((2, 16), np.float32), "B": np.ones((16, 2), np.float32)}
    names = (f"base_model.model.blocks.0.{place}.to_q.lora" for place in places)
    pairs = {f"{name}_{half}.weight": array for name in names for half, array in halves.items()}
    return {adapter.CONFIG: _json(settings), adapter.WEIGHTS: save(pairs)}


def adapter_config() -> Seeds:
    """Return an adapter; its config is mutated."""
    return {"adapter": _adapter()}


def adapter_weights() -> Seeds:
    """Return an adapter; its weights are mutated."""
    return {"adapter": {adapter.WEIGHTS: _adapter()[adapter.WEIGHTS], adapter.CONFIG: _adapter()[adapter.CONFIG]}}


def read_adapter(folder: Path) -> object:
    """Add the adapter to the base model."""
    return adapter.applied(_base(), folder)


# ---------------------------------------------------------------- Published encoders
def tower_config() -> Seeds:
    """Return the settings of a T5 encoder."""
    return {"t5": {"config.json": _json({"model_type": "t5", "feed_forward_proj": "gated-gelu", **T5})}}


def plan_tower(folder: Path) -> object:
    """Build the T5 that the settings describe, without weights."""
    return towers.planned_text_tower(folder)


@functools.cache
def tokenizer() -> Seeds:
    """Return the tokenizer of a published encoder."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_tokenizer(Path(name))
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {target: {target: files[target], **files} for target in ("tokenizer.json", "tokenizer_config.json")}


def read_tokenizer(folder: Path) -> object:
    """Open a tokenizer and use it."""
    found = PretrainedTokenizer(folder, 16, 16)
    return found.encode("a red circle moves up"), found.batch(["a blue square", ""])
