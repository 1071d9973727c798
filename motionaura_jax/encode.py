"""Computes once what frozen models make of the data: features of captions, or tokens of clips.

python -m motionaura_jax.encode --text --text_encoder=DIR_OR_ID --manifest=DIR --output=features/
python -m motionaura_jax.encode --checkpoint=runs/tokenizer --manifest=DIR --output=tokens/

The same command goes on where it was interrupted; in several processes, each takes its share.
"""

import argparse
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from motionaura_jax.core import cli
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Count, Natural, Positive

if TYPE_CHECKING:
    import numpy as np

    from motionaura_jax.data.manifest import Record
    from motionaura_jax.models.autoencoders.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = cli.Parser("encode", "Compute features of captions, or tokens of clips, once and for all.")
    parser.add_argument("--manifest", required=True, help="folder, .jsonl or .csv")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder of the results")
    parser.add_argument("--text", action="store_true", help="encode captions with --text_encoder")
    parser.add_argument("--text_encoder", default="", help="folder or hub id of a published T5")
    parser.add_argument("--limit", type=cli.number(Count), default=180, help="ids of a caption at most")
    parser.add_argument("--prompts_file", type=pathlib.Path, help="more texts to encode, one a line")
    parser.add_argument("--checkpoint", default="", help="trained tokenizer, to encode clips")
    parser.add_argument("--num_frames", type=cli.number(Count), default=0, help="of a clip; 0: as trained")
    parser.add_argument("--height", type=cli.number(Count), default=0, help="in pixels; 0: as trained")
    parser.add_argument("--width", type=cli.number(Count), default=0, help="in pixels; 0: as trained")
    parser.add_argument("--fps", type=cli.number(Positive), default=0.0, help="of a clip; 0: as trained")
    parser.add_argument("--batch_size", type=cli.number(Count), default=16, help="computed at once, by all devices")
    parser.add_argument("--process_index", type=cli.number(Natural), default=0, help="which process this is")
    parser.add_argument("--process_count", type=cli.number(Count), default=1, help="how many processes share the work")
    args = parser.parse_args(argv)
    return cli.run(lambda: _encode(args), as_json=args.json)


def _encode(args: argparse.Namespace) -> dict[str, Any]:
    if args.text == bool(args.checkpoint) or args.text != bool(args.text_encoder):
        raise UserError("encode needs either --text with --text_encoder, or --checkpoint of a tokenizer")
    if args.process_index >= args.process_count:
        raise UserError(f"--process_index={args.process_index}: must be below --process_count={args.process_count}")
    from motionaura_jax.data.manifest import read_manifest

    records = read_manifest(args.manifest)
    return _texts(args, records) if args.text else _clips(args, records)


def _texts(args: argparse.Namespace, records: Sequence["Record"]) -> dict[str, Any]:
    """Features of every caption, of further prompts and of the empty text, which stands for none."""
    import numpy as np

    from motionaura_jax.conditioning import text as conditioners
    from motionaura_jax.data import array_cache
    from motionaura_jax.models.encoders.text_tokenizers import PretrainedTokenizer
    from motionaura_jax.parallel.mesh import by_rows
    from motionaura_jax.pipelines.prompts import read_prompts
    from motionaura_jax.weights import hub, towers

    words = PretrainedTokenizer(hub.model_folder(args.text_encoder), args.limit, args.limit)
    # The empty text stands for none: training drops captions, and sampling guides away from it.
    texts = {"", *(record.caption or "" for record in records)}
    for prompt in read_prompts(args.prompts_file) if args.prompts_file else ():
        texts |= {prompt.text, prompt.negative}
    tower = towers.open_tower(args.text_encoder, "t5", dtype=conditioners.DTYPE)
    meta = conditioners.text_meta(tower, words)
    encode = by_rows(lambda tower, ids: conditioners.tower_features(tower, ids, words.pad), tower)

    def compute(part: Sequence[str]) -> list[np.ndarray]:
        rows: list[np.ndarray] = []
        for start in range(0, len(part), args.batch_size):
            chunk = part[start : start + args.batch_size]
            ids = words.batch([*chunk, *[""] * (args.batch_size - len(chunk))])
            features = encode(ids)
            rows += [features[row][ids[row] != words.pad] for row in range(len(chunk))]
        return rows

    items = {array_cache.content_key(meta, array_cache.text_content(text)): text for text in sorted(texts)}
    added = array_cache.fill(args.output, meta, items, compute, **_share(args))
    words.save(args.output / conditioners.TOKENIZER)
    return {"output": args.output, "texts": len(items), "added": added, "text_hash": conditioners.identity(meta)}


def _clips(args: argparse.Namespace, records: Sequence["Record"]) -> dict[str, Any]:
    """Tokens of the middle of every file, in time and space; a file that cannot be used is named and left out."""
    from motionaura_jax.data import array_cache
    from motionaura_jax.systems.loading import load_autoencoder

    tokenizer, loaded = load_autoencoder(args.checkpoint)
    if not tokenizer.config.vocab_size:
        raise UserError(f"{args.checkpoint}: this tokenizer has no codebook, and makes no tokens")
    trained = loaded.recipe.data
    bucket = trained.all_buckets()[0]
    clip = {name: getattr(args, name) or getattr(bucket, name) for name in ("num_frames", "height", "width")}
    clip["fps"] = args.fps or bucket.fps or trained.fps
    meta = {"kind": "tokens", "model": tokenizer.latent_space, **clip, "dtype": "int32"}
    items: dict[bytes, Record] = {}
    for record in records:
        try:
            items[array_cache.content_key(meta, array_cache.file_content(record.path))] = record
        except OSError as error:
            logger.warning("left out: %s: %s", record.path, error.strerror)
    added = array_cache.fill(args.output, meta, items, _clip_encoder(tokenizer, clip, args.batch_size), **_share(args))
    known = len(array_cache.ArrayCache(args.output))
    return {"output": args.output, "files": len(records), "added": added, "clips": known, **meta}


def _clip_encoder(
    tokenizer: "Tokenizer", clip: Mapping[str, Any], batch_size: int
) -> Callable[[Sequence["Record"]], list["np.ndarray | None"]]:
    """Returns the function from files to tokens; None for a file that cannot be used."""
    import numpy as np

    from motionaura_jax.data.clips import load_frames
    from motionaura_jax.data.frames import to_float
    from motionaura_jax.data.video import VideoError
    from motionaura_jax.parallel.mesh import by_rows

    encode = by_rows(lambda tokenizer, video: tokenizer.encode(video).tokens, tokenizer)

    def frames(record: "Record") -> np.ndarray | None:
        try:
            return load_frames(record, **clip, rng=np.random.default_rng(0), crop="center")
        except VideoError as error:
            logger.warning("left out: %s", error)
            return None

    def compute(records: Sequence["Record"]) -> list[np.ndarray | None]:
        tokens: list[np.ndarray | None] = []
        for start in range(0, len(records), batch_size):
            clips = [frames(record) for record in records[start : start + batch_size]]
            usable = [one for one in clips if one is not None]
            if usable:
                filled = np.stack(usable + usable[-1:] * (batch_size - len(usable)))
                found = iter(encode(to_float(filled)))
            tokens += [None if one is None else next(found) for one in clips]
        return tokens

    return compute


def _share(args: argparse.Namespace) -> dict[str, int]:
    return {"process_index": args.process_index, "process_count": args.process_count}


if __name__ == "__main__":
    raise SystemExit(main())
