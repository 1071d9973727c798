"""Comparison of an exported PyTorch folder with its JAX model.  PyTorch runs in a separate process, from the folder alone."""

import dataclasses
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from motionaura_jax.conditioning import text as conditioners
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Cond
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.models.encoders.text_tokenizers import PAD
from motionaura_jax.weights.load import Loaded
from motionaura_jax.weights.towers import open_tower

Arrays = dict[str, np.ndarray]

LIMIT = 1e-4  # maximum deviation relative to the largest value
FLIPPED = 1e-4  # share of codes that rounding may flip in near ties; a single flip is always allowed
_GRID = (2, 4, 4)  # token grid: small enough for any machine, large enough to exercise every layer


def can_compare() -> bool:
    """Return True if torch is installed, without importing it."""
    return importlib.util.find_spec("torch") is not None


def require_torch() -> None:
    """Raise UserError if torch, which compares an export, is not installed."""
    if not can_compare():
        raise UserError(
            "torch is not installed, so the export cannot be compared with this model; pip install torch, or skip the "
            "comparison with --no_check"
        )


def compare(folder: pathlib.Path, model: Loaded, tokenizer: Loaded) -> dict[str, float]:
    """Compare PyTorch and JAX on random inputs in float32.

    Args:
      model: the exported model.
      tokenizer: its tokenizer; `model` itself if that is a tokenizer.

    Returns:
      Maximum deviation of each output relative to its largest value; for integer outputs, the share that differs.

    Raises:
      UserError: the exported modules fail to run, or an output deviates too far.
    """
    given, wanted = _tokenizer_case(tokenizer)
    if model is not tokenizer:
        more, expected = _denoiser_case(model)
        given, wanted = {**given, **more}, {**wanted, **expected}
    found = _run(folder, given)
    deviations = {name: _deviation(found[name], array) for name, array in wanted.items()}
    for name, deviation in deviations.items():
        allowed = max(FLIPPED, 1 / wanted[name].size) if wanted[name].dtype.kind == "i" else LIMIT
        if not deviation <= allowed:
            raise UserError(
                f"--format=pytorch: {name!r} deviates from JAX by {deviation:.1e}, more than the allowed {allowed:.0e}; "
                f"this is a bug in the exporter, please report it; nothing was written"
            )
    return deviations


def _tokenizer_case(tokenizer: Loaded) -> tuple[Arrays, Arrays]:
    config = dataclasses.replace(tokenizer.recipe.model, dtype="float32")  # type: ignore[attr-defined]
    ours = Tokenizer(config=config, params=tokenizer.params["tokenizer"], extra=tokenizer.extra)
    size = tuple(cells * stride for cells, stride in zip(_GRID, config.strides, strict=True))
    shape = (2, *config.geometry.padded_size(size), 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    @jax.jit
    def run(ours: Tokenizer, video: Any) -> Any:
        features = ours.features(video)
        code = ours.quantize(features)
        return features, code.values, code.codes, ours.decode_values(code.values)

    features, values, codes, decoded = run(ours, video)
    wanted = {"features": _first(features), "decoded": _first(decoded)}
    wanted |= {} if codes is None else {"codes": np.asarray(codes)}
    return {"video": _first(video), "values": _first(values)}, wanted


def _denoiser_case(model: Loaded) -> tuple[Arrays, Arrays]:
    recipe: Any = model.recipe
    config = dataclasses.replace(recipe.model, dtype="float32")
    texts = [" ".join(recipe.text.vocabulary[: config.text_len]), "", "a word; (unknown)"]
    rng, count = np.random.default_rng(0), len(texts)
    tokens = rng.integers(0, config.vocab_size + 1, (count, *_GRID)).astype(np.int32)
    level, fps = rng.uniform(0, 1, count).astype(np.float32), np.full(count, recipe.data.rates[0], np.float32)
    ids, seen, features = _text_case(model, texts)

    @jax.jit
    def run(params: Any, features: Any) -> Any:
        cond = Cond(tokens=features, token_mask=jnp.asarray(seen), scalars={"fps": jnp.asarray(fps)})
        return SpectralTransformer(config).apply({"params": params}, tokens, level, cond).dense()  # type: ignore[union-attr]

    logits = run(model.params["denoiser"], features)
    given: Arrays = {"tokens": tokens.astype(np.int64), "level": level, "fps": fps}
    given["texts"] = np.frombuffer("\n".join(texts).encode(), np.uint8)
    wanted = {"ids": ids, "text": features * seen[..., None], "logits": np.asarray(logits)}
    return given, {**wanted, "logits_folded": wanted["logits"]}


def _text_case(model: Loaded, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, a mask that is True at text positions, and float32 features, which are arbitrary where the mask is False."""
    recipe: Any = model.recipe
    text = conditioners.make_text(recipe.text, recipe.model)
    ids = text.words.batch(texts)[:, : text.words.limit]
    if isinstance(text, conditioners.FrozenText):
        pad = text.words.pad
        tower = open_tower(recipe.text.tower, conditioners.TOWER, dtype="float32")
        features = conditioners.tower_features(tower, ids, pad)
    else:
        pad = PAD
        encoder = T5Encoder(recipe.text.encoder.t5(text.words.size, recipe.model.text_dim), scanned=False)
        features = jax.jit(encoder.apply)({"params": model.params["text"]}, ids)
    return ids, ids != pad, np.asarray(features)


def _run(folder: pathlib.Path, given: Mapping[str, np.ndarray]) -> Arrays:
    script = pathlib.Path(__file__).with_name("run_exported.py")
    with tempfile.TemporaryDirectory() as place:
        inputs, outputs = (pathlib.Path(place) / f"{name}.safetensors" for name in ("inputs", "outputs"))
        save_file({name: np.array(array, order="C") for name, array in given.items()}, inputs)
        command = [sys.executable, "-I", "-B", str(script), str(folder), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise UserError(f"--format=pytorch: the exported modules do not run in torch: {lines[-1]}")
        return load_file(outputs)


def _deviation(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind == "i":
        return float((found != wanted).mean())
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def _first(array: Any) -> np.ndarray:
    """Move channels to axis 1, as PyTorch expects."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1))
