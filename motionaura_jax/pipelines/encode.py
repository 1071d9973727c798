"""Outputs of frozen models, computed ahead of training: features of captions, and latents of clips."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from motionaura_jax.conditioning import text as conditioners
from motionaura_jax.core import memory
from motionaura_jax.core.errors import UserError
from motionaura_jax.data.array_cache import ArrayCache, content_key, fill, text_content
from motionaura_jax.data.buckets import ClipShape
from motionaura_jax.data.frames import to_float
from motionaura_jax.data.latents import FileHashes, center_clip, latents_meta
from motionaura_jax.data.manifest import Record, read_manifest
from motionaura_jax.data.preflight import NoUsableFile
from motionaura_jax.data.video import MAX_CLIP_PIXELS, VideoError
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.encoders.text_tokenizers import PretrainedTokenizer
from motionaura_jax.parallel.mesh import by_rows
from motionaura_jax.pipelines.prompts import read_prompts
from motionaura_jax.systems.loading import load_autoencoder
from motionaura_jax.weights import hub, towers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Output folder of an encoding, and the share of the items that this process encodes.

    Attributes:
      output: folder of the cache; items that it already holds are not computed again.
      batch_size: items computed at once, over all devices of this process.
      process_index, process_count: this process encodes every `process_count`-th item.
    """

    output: Path
    batch_size: int = 16
    process_index: int = 0
    process_count: int = 1

    def fill(self, meta: dict[str, Any], items: dict[bytes, Any], compute: Callable[[Sequence[Any]], Any]) -> int:
        """Compute the items that the cache lacks; see `data.array_cache.fill`."""
        share = {"process_index": self.process_index, "process_count": self.process_count}
        return fill(self.output, meta, items, compute, **share)


def encode_texts(
    manifest: str, text_encoder: str, work: Work, *, limit: int = 180, prompts_file: Path | None = None
) -> dict[str, Any]:
    """Write the features of every caption, of extra prompts and of the empty text, for training with `text.cache`.

    Args:
      text_encoder: folder or hub id of a published T5.
      limit: largest number of ids per text.
      prompts_file: extra texts, see `read_prompts`.

    Raises:
      UserError: the manifest, encoder or prompt file cannot be used, or the output holds features of another encoder.
    """
    # Training replaces dropped captions by the empty text, and sampling guides away from it.
    texts = {"", *(record.caption or "" for record in read_manifest(manifest))}
    for prompt in read_prompts(prompts_file) if prompts_file else ():
        texts |= {prompt.text, prompt.negative}
    if len(texts) == 1:
        raise UserError(f"{manifest}: no clip has a caption; add NAME.txt next to them")
    words = PretrainedTokenizer(hub.model_folder(text_encoder), limit, limit)
    tower = towers.open_tower(text_encoder, "t5", dtype=conditioners.DTYPE)
    meta = conditioners.text_meta(tower, words)
    encode = by_rows(lambda tower, ids: conditioners.tower_features(tower, ids, words.pad), tower)

    def compute(part: Sequence[str]) -> list[np.ndarray]:
        """Return the features of each text without padding."""
        rows: list[np.ndarray] = []
        for start in range(0, len(part), work.batch_size):
            chunk = part[start : start + work.batch_size]
            # Pad batches to one size, so that one program serves them all.
            ids = words.batch([*chunk, *[""] * (work.batch_size - len(chunk))])
            features = encode(ids)
            rows += [features[row][ids[row] != words.pad] for row in range(len(chunk))]
        return rows

    items = {content_key(meta, text_content(text)): text for text in sorted(texts)}
    added = work.fill(meta, items, compute)
    words.save(work.output / conditioners.TOKENIZER)
    return {"output": work.output, "texts": len(items), "added": added, "text_hash": conditioners.identity(meta)}


def encode_clips(
    manifest: str,
    checkpoint: str,
    work: Work,
    *,
    num_frames: int = 0,
    height: int = 0,
    width: int = 0,
    fps: float = 0.0,
) -> dict[str, Any]:
    """Write the latents of the middle of every file, for training with `latent_cache`.

    Files that cannot be used are skipped with a warning, and counted in the result as `left_out`.

    Args:
      checkpoint: a trained autoencoder. If it has a codebook, its tokens are written, otherwise its continuous values.
      num_frames, height, width, fps: shape of a clip; 0 takes the value from the autoencoder's training.

    Raises:
      UserError: the manifest or autoencoder cannot be used, or the output is of another autoencoder or clip shape.
      NoUsableFile: every file of this process is left out.
    """
    records = read_manifest(manifest)
    autoencoder, loaded = load_autoencoder(checkpoint)
    kind = "tokens" if autoencoder.vocab_size else "latents"
    trained = loaded.recipe.data.shapes[0]
    shape = ClipShape(
        num_frames=num_frames or trained.num_frames,
        height=height or trained.height,
        width=width or trained.width,
        fps=fps or trained.fps,
    )
    pixels = shape.num_frames * shape.height * shape.width
    if pixels > MAX_CLIP_PIXELS:
        raise UserError(
            f"clips of {shape} exceed the limit of {MAX_CLIP_PIXELS} pixels; ask for fewer frames or pixels"
        )
    meta = latents_meta(kind, autoencoder.latent_space, shape)
    held = 3 * (np.uint8().nbytes + np.float32().nbytes)  # bytes of a pixel: as decoded, and as the encoder reads it
    memory.require("--batch_size", work.batch_size, lambda size: size * pixels * held)
    hashes, items, left_out = FileHashes(work.output), dict[bytes, Record](), _LeftOut()
    for record in records:
        try:
            items[content_key(meta, hashes.content(record))] = record
        except UserError as error:
            left_out.add(error)
    added = work.fill(meta, items, _clip_encoder(autoencoder, kind, shape, work.batch_size, left_out))
    if work.process_index == 0:
        hashes.save()
    cache = ArrayCache(work.output)
    # The shares of other processes may hold usable files: only one that has tried all of its own can tell.
    if left_out.count and not added and not any(key in cache for key in items):
        raise NoUsableFile(f"{manifest}: none of {left_out.count} files can be encoded, the first: {left_out.first}")
    counts = {"files": len(records), "left_out": left_out.count, "added": added, "clips": len(cache)}
    return {"output": work.output, **counts, **meta}


class _LeftOut:
    """Files that cannot be encoded: their number, and the fault of the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def add(self, error: UserError) -> None:
        """Log and count a file by its fault."""
        self.count, self.first = self.count + 1, self.first or str(error)
        logger.warning("left out: %s", error)


def _clip_encoder(
    autoencoder: VideoAutoencoder, kind: str, shape: ClipShape, batch_size: int, left_out: _LeftOut
) -> Callable[[Sequence[Record]], list[np.ndarray | None]]:
    """Return the function from files to latents; it returns None for a file that cannot be used and adds it to `left_out`."""
    part = {"tokens": "tokens", "latents": "values"}[kind]
    encode = by_rows(lambda autoencoder, video: getattr(autoencoder.encode(video), part), autoencoder)

    def read(record: Record) -> np.ndarray | None:
        try:
            return center_clip(record, shape)
        except VideoError as error:
            left_out.add(error)
            return None

    def compute(records: Sequence[Record]) -> list[np.ndarray | None]:
        """Return the latents of each file."""
        latents: list[np.ndarray | None] = []
        for start in range(0, len(records), batch_size):
            clips = [read(record) for record in records[start : start + batch_size]]
            usable = [clip for clip in clips if clip is not None]
            if usable:
                # Pad batches to one size, so that one program serves them all.
                filled = np.stack(usable + usable[-1:] * (batch_size - len(usable)))
                found = iter(encode(to_float(filled)))
            latents += [None if clip is None else next(found) for clip in clips]
        return latents

    return compute
