"""Writer of PyTorch exports: component folders, `model_index.json`, the modules that load them, and a model card."""

import pathlib
from collections.abc import Mapping
from typing import Any

import motionaura_jax
from motionaura_jax.conditioning.text import TrainedText, make_text
from motionaura_jax.data import mp4
from motionaura_jax.data.media import write_json
from motionaura_jax.exporters.base import Opened, Options, check
from motionaura_jax.exporters.pytorch import compare, settings
from motionaura_jax.exporters.pytorch.model_card import model_card
from motionaura_jax.weights import exported
from motionaura_jax.weights.checksum import digest

VAE = "vae"
_VIDEO = "mp4"
_COMMON = ("modeling_utils", "modeling_mbq_vae", "modeling_quantizer")
_PIPELINE = (
    "pipeline_motionaura",
    "modeling_spectral_transformer",
    "modeling_spectral_layers",
    "modeling_lora",
    "modeling_text_encoder",
    "modeling_published_text",
    "scheduling_absorbing",
    _VIDEO,
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


def write_text_to_video(folder: pathlib.Path, opened: Opened, options: Options) -> None:
    """Write a text-to-video model with its tokenizer into an empty folder and compare it with JAX.

    Raises:
      UserError: torch is not installed, the disk is full, or the outputs differ from JAX.
    """
    if options.check:
        compare.require_torch()
    model, vae = opened.model, opened.parts["tokenizer"]
    recipe: Any = model.recipe
    for name in ("tokenizer", "transformer", "scheduler", VAE):
        (folder / name).mkdir()
    text = _write_text(folder, opened)
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
    meta = opened.meta({"tokenizer": VAE, **{role: role for role in opened.copied}})
    _write_weights(folder, opened, meta, options)
    _write_vae(folder / VAE, vae, options)
    opened.copy_published(folder, options.shard_bytes)
    check(vae.model, folder / VAE)
    _finish(folder, opened, vae, meta, options)


def write_tokenizer(folder: pathlib.Path, opened: Opened, options: Options) -> None:
    """Write a tokenizer into an empty folder and compare it with JAX; raise as `write_text_to_video` does."""
    if options.check:
        compare.require_torch()
    _copy_modules(folder, _COMMON)
    _write_vae(folder, opened, options)
    _finish(folder, opened, opened, opened.meta(), options)


def _finish(folder: pathlib.Path, opened: Opened, vae: Opened, meta: Mapping[str, Any], options: Options) -> None:
    """Read the weights back, compare the networks with JAX, and write the model card."""
    check(opened.model, folder)
    deviations = compare.compare(folder, opened.model, vae.model) if options.check else None
    (folder / "README.md").write_text(model_card(folder, meta, deviations), "utf-8")


def _write_text(folder: pathlib.Path, opened: Opened) -> Mapping[str, Any]:
    """Write the text tokenizer and the config of a jointly trained encoder; return entries for `model_index.json`."""
    recipe: Any = opened.model.recipe
    text = make_text(recipe.text, recipe.model)
    text.words.save(folder / "tokenizer")
    if isinstance(text, TrainedText):
        place = folder / "text_encoder"
        place.mkdir()
        _write_config(place, settings.text_settings(recipe.text.encoder, text.words.size, recipe.model.text_dim))
        return {}
    return _PUBLISHED if "text_encoder" in opened.copied else {**_PUBLISHED, "text_encoder_id": recipe.text.tower}


def _write_vae(folder: pathlib.Path, opened: Opened, options: Options) -> None:
    _write_config(folder, settings.tokenizer_settings(opened.model.recipe.model), name=VAE)  # type: ignore[attr-defined]
    _write_weights(folder, opened, opened.meta(), options)


def _write_weights(folder: pathlib.Path, opened: Opened, meta: Mapping[str, Any], options: Options) -> None:
    model, components = opened.model, opened.system.components
    write_json(folder / exported.META, meta)
    exported.write_weights(
        folder, components, model.params, model.extra, dtype=options.dtype, shard_bytes=options.shard_bytes
    )


def _write_config(folder: pathlib.Path, values: Mapping[str, Any], file: str = "config.json", name: str = "") -> None:
    write_json(folder / file, {**_origin(_CLASSES[name or folder.name][1]), **values})


def _origin(name: str) -> dict[str, str]:
    return {"_class_name": name, "_motionaura_jax_version": motionaura_jax.__version__}


def _copy_modules(folder: pathlib.Path, names: tuple[str, ...]) -> None:
    """Copy modules into `folder`, with their imports of each other made local to it."""
    for name in names:
        source = mp4.__file__ if name == _VIDEO else pathlib.Path(__file__).with_name(f"{name}.py")
        text = pathlib.Path(source).read_text("utf-8").replace(f"{__package__}.", "").replace(mp4.__name__, _VIDEO)
        (folder / f"{name}.py").write_text(text, "utf-8")
