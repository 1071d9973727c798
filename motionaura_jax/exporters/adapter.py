"""LoRA adapters in PEFT's file format: `adapter_config.json` and `adapter_model.safetensors`.

Tensor names follow the exported PyTorch transformer (`exporters.pytorch`), e.g.
`base_model.model.blocks.0.self_attention.input.to_q.lora_A.weight`.  The config stores a hash of the base weights, so an
adapter loads only onto the weights it was trained on.
"""

import dataclasses
import pathlib
from typing import Any

import jax

import motionaura_jax
from motionaura_jax.core import config, files
from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.trees import merge, partition
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.media import write_json
from motionaura_jax.exporters.base import Opened, Options, compare
from motionaura_jax.models.denoisers.spectral_transformer_tensors import ADAPTERS
from motionaura_jax.models.layers.config import LoraConfig
from motionaura_jax.systems import registry
from motionaura_jax.weights.checksum import digest
from motionaura_jax.weights.convert import export_tensors, import_tensors
from motionaura_jax.weights.load import Loaded
from motionaura_jax.weights.shards import save_tensors
from motionaura_jax.weights.tensors import TensorFiles

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_MODULES = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out", "mlp": "mlp"}
_KEYS: dict[str, type] = {"r": int, "lora_alpha": int, "target_modules": list, "base_model_hash": str}
_ASSUMED = {"peft_type": "LORA", "bias": "none"}
# Settings that say nothing about what an adapter computes once its tensors are there.
_IRRELEVANT = frozenset(
    (
        "activation",  # read, but not required
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    )
)


def write(folder: pathlib.Path, opened: Opened, options: Options) -> None:
    """Write a model's adapters into an existing folder and verify them by reading them back.

    Raises:
      UserError: the model has no adapters, or the disk is full or not writable.
    """
    model = opened.model
    if not model.recipe.added:
        raise UserError(f"{model.path}: has no adapters; train some with the preset lora and --config.init_from")
    adapters, frozen = partition(model.params, model.recipe.added)
    (prefix,) = ADAPTERS.prefixes
    save_tensors(
        {prefix + name: array for name, array in export_tensors(ADAPTERS, adapters["denoiser"])}, folder / WEIGHTS
    )
    lora: LoraConfig = model.recipe.model.lora  # type: ignore[attr-defined]
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": pathlib.PurePath(model.recipe.init_from).name,
        "base_model_hash": digest(frozen),
        "r": lora.rank,
        "lora_alpha": lora.rank,  # alpha / r = 1
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [module for name, module in _MODULES.items() if lora.adapts(name)],
        "activation": lora.activation,
        "_motionaura_jax_version": motionaura_jax.__version__,
    }
    write_json(folder / CONFIG, settings)
    compare(model, applied(removed(model), folder), folder)


def applied(model: Loaded, folder: pathlib.Path) -> Loaded:
    """Return a text-to-video model with the adapters in `folder` added.

    Raises:
      UserError: the adapters are missing, damaged, trained on other weights or of an unsupported kind, or the model already
        has adapters.
    """
    if model.recipe.added:
        raise UserError(f"{folder}: {model.path} has adapters already; give the model they were trained on")
    settings = _read_config(folder)
    if settings["base_model_hash"] != (found := digest(model.params)):
        raise UserError(
            f"{folder}: trained on the weights {settings['base_model_hash']} "
            f"({settings.get('base_model_name_or_path')}), but those of {model.path} are {found}; give its base model"
        )
    denoiser = dataclasses.replace(model.recipe.model, lora=_lora(folder, settings))  # type: ignore[attr-defined]
    recipe: Any = dataclasses.replace(model.recipe, model=denoiser)  # type: ignore[call-arg]
    shapes, _ = jax.eval_shape(registry.system_class(recipe.system)(recipe).init, jax.random.key(0))
    wanted: PyTree = partition(shapes, recipe.added)[0]["denoiser"]
    adapters = {"denoiser": import_tensors(TensorFiles(folder / WEIGHTS), ADAPTERS, wanted, on_host=True)}
    return dataclasses.replace(model, recipe=recipe, params=merge(model.params, adapters))


def removed(model: Loaded) -> Loaded:
    """Return the base model that a text-to-video model's adapters were trained on."""
    denoiser = dataclasses.replace(model.recipe.model, lora=LoraConfig())  # type: ignore[attr-defined]
    recipe: Any = dataclasses.replace(model.recipe, model=denoiser)  # type: ignore[call-arg]
    return dataclasses.replace(model, recipe=recipe, params=partition(model.params, model.recipe.added)[1])


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: holds no adapter ({CONFIG} and {WEIGHTS}); write one with motionaura export --format=adapter"
        )
    settings = files.read_json(path, remedy="export the adapter again")
    for key, kind in _KEYS.items():
        if type(settings.get(key)) is not kind:
            raise UserError(f"{path}: {key!r} is missing or of the wrong type; export the adapter again")
    if other := [key for key, value in settings.items() if value and not _is_understood(key, value)]:
        raise UserError(
            f"{path}: {other[0]}={shown(settings[other[0]])!r} changes what the adapter computes and is not supported; use an "
            f"adapter without it"
        )
    return settings


def _is_understood(key: str, value: Any) -> bool:
    """Tell whether a setting of PEFT is one that we follow, has the value that we assume, or matters to training alone."""
    return key in _KEYS or key in _IRRELEVANT or key.startswith("_") or value == _ASSUMED.get(key)


def _lora(folder: pathlib.Path, settings: dict[str, Any]) -> LoraConfig:
    """Build the adapter settings; the scale lora_alpha / r must be 1."""
    rank, modules = settings["r"], settings["target_modules"]
    unknown = [str(module) for module in modules if module not in _MODULES.values()]
    if unknown or settings["lora_alpha"] != rank or rank < 1:
        fault = f"module {unknown[0]!r}" if unknown else f"r={rank} with lora_alpha={settings['lora_alpha']}"
        raise UserError(
            f"{folder / CONFIG}: {fault} is not supported; use modules {', '.join(_MODULES.values())} and lora_alpha equal to r"
        )
    known = {
        "rank": rank,
        "targets": [name for name, module in _MODULES.items() if module in modules and name != "mlp"],
        "mlp": "mlp" in modules,
        "activation": settings.get("activation", "none"),
    }
    return config.build(LoraConfig, known, str(folder / CONFIG))
