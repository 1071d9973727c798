"""Writes a trained model as a folder that PyTorch users know: component folders, `model_index.json`, modules, a model card."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import motionaura_jax
from motionaura_jax.conditioning.text import TrainedText, make_text
from motionaura_jax.data.media import write_json
from motionaura_jax.exporters.pytorch import settings
from motionaura_jax.exporters.pytorch.model_card import model_card
from motionaura_jax.weights import exported
from motionaura_jax.weights.checksum import digest
from motionaura_jax.weights.load import Loaded

VAE = "vae"
_COMMON = ("modeling_utils", "modeling_mbq_vae")
_PIPELINE = (
    "pipeline_motionaura",
    "modeling_spectral_transformer",
    "modeling_spectral_layers",
    "modeling_lora",
    "modeling_text_encoder",
    "modeling_published_text",
    "scheduling_absorbing",
)
_CLASSES = {
    "tokenizer": ("modeling_text_encoder", "WordTokenizer"),
    "text_encoder": ("modeling_text_encoder", "TextEncoder"),
    "transformer": ("modeling_spectral_transformer", "SpectralTransformer"),
    "scheduler": ("scheduling_absorbing", "AbsorbingScheduler"),
    VAE: ("modeling_mbq_vae", "MBQVAE"),
}
_PUBLISHED = {
    "tokenizer": ("modeling_published_text", "PublishedTokenizer"),
    "text_encoder": ("modeling_published_text", "PublishedT5"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """How weights are written: dtype of float32 leaves, and the largest size of one file."""

    dtype: str
    shard_bytes: int


def write_text_to_video(
    folder: pathlib.Path,
    model: Loaded,
    tokenizer: Loaded,
    metas: tuple[Mapping[str, Any], Mapping[str, Any]],
    how: Files,
) -> None:
    """Writes all components but a published text encoder into an empty folder.

    Args:
      model: `text.tower` of its recipe is a folder here, or a hub id with its revision.
      metas: what `exported.read_meta` gives back of `model`, and of the tokenizer in `VAE`.
    """
    recipe: Any = model.recipe
    for name in ("tokenizer", "transformer", "scheduler", VAE):
        (folder / name).mkdir()
    text = _write_text(folder, recipe)
    _write_config(folder / "transformer", settings.denoiser_settings(recipe.model))
    sampler = {"vocab_size": recipe.model.vocab_size, **recipe.sample.sampling}
    _write_config(folder / "scheduler", sampler, "scheduler_config.json")
    clip = recipe.data.all_buckets()[0]
    index = {
        **_origin("MotionAuraPipeline"),
        **_CLASSES,
        **text,
        **{name: getattr(clip, name) for name in ("num_frames", "height", "width")},
        "fps": recipe.data.rates[0],
        "weights_hash": digest(model.params),
        "window_frames": max(bucket.num_frames for bucket in recipe.data.all_buckets()),
    }
    write_json(folder / "model_index.json", index)
    _copy_modules(folder, (*_COMMON, *_PIPELINE))
    _write_weights(folder, model, metas[0], how)
    _write_tokenizer(folder / VAE, tokenizer, metas[1], how)


def write_tokenizer(folder: pathlib.Path, tokenizer: Loaded, meta: Mapping[str, Any], how: Files) -> None:
    """Writes a tokenizer alone into an empty folder."""
    _copy_modules(folder, _COMMON)
    _write_tokenizer(folder, tokenizer, meta, how)


def write_card(folder: pathlib.Path, meta: Mapping[str, Any], deviations: Mapping[str, float] | None) -> None:
    """Writes the model card; `deviations` are from `compare.compare`, None where nothing was compared."""
    (folder / "README.md").write_text(model_card(folder, meta, deviations), "utf-8")


def _write_text(folder: pathlib.Path, recipe: Any) -> Mapping[str, Any]:
    """Writes the tokenizer of texts, and settings of an encoder of our own; returns what `model_index.json` says."""
    text = make_text(recipe.text, recipe.model)
    text.words.save(folder / "tokenizer")
    if isinstance(text, TrainedText):
        place = folder / "text_encoder"
        place.mkdir()
        _write_config(place, settings.text_settings(recipe.text.encoder, text.words.size, recipe.model.text_dim))
        return {}
    here = pathlib.Path(recipe.text.tower).is_dir()
    return _PUBLISHED if here else {**_PUBLISHED, "text_encoder_id": recipe.text.tower}


def _write_tokenizer(folder: pathlib.Path, tokenizer: Loaded, meta: Mapping[str, Any], how: Files) -> None:
    _write_config(folder, settings.tokenizer_settings(tokenizer.recipe.model), name=VAE)  # type: ignore[attr-defined]
    _write_weights(folder, tokenizer, meta, how)


def _write_weights(folder: pathlib.Path, model: Loaded, meta: Mapping[str, Any], how: Files) -> None:
    write_json(folder / exported.META, meta)
    exported.write_weights(
        folder, model.recipe.system, model.params, model.extra, dtype=how.dtype, shard_bytes=how.shard_bytes
    )


def _write_config(folder: pathlib.Path, values: Mapping[str, Any], file: str = "config.json", name: str = "") -> None:
    write_json(folder / file, {**_origin(_CLASSES[name or folder.name][1]), **values})


def _origin(name: str) -> dict[str, str]:
    return {"_class_name": name, "_motionaura_jax_version": motionaura_jax.__version__}


def _copy_modules(folder: pathlib.Path, names: tuple[str, ...]) -> None:
    """Copies modules so that they import each other from the folder they are in."""
    for name in names:
        text = pathlib.Path(__file__).with_name(f"{name}.py").read_text("utf-8")
        (folder / f"{name}.py").write_text(text.replace(f"{__package__}.", ""), "utf-8")
