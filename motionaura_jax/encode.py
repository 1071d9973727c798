"""Encode data with frozen models ahead of training: features of captions, or latents of clips.

python -m motionaura_jax.encode --text --text_encoder=DIR_OR_ID --manifest=DIR --output=features/
python -m motionaura_jax.encode --checkpoint=runs/tokenizer --manifest=DIR --output=tokens/

The same command continues after an interruption. With several processes, each does its share.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from motionaura_jax.core import cli
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Batch, Frames, Length, Natural, Processes, Rate, Side


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = cli.Parser("encode", "Compute features of captions, or latents of clips, ahead of training.")
    parser.add_argument("--manifest", required=True, type=cli.place, help="folder, .jsonl or .csv")
    parser.add_argument("--output", required=True, type=cli.path, help="folder of the results")
    parser.add_argument("--text", action="store_true", help="encode captions with --text_encoder")
    parser.add_argument("--text_encoder", type=cli.place, default="", help="folder or hub id of a published T5")
    parser.add_argument("--limit", type=cli.number(Length), default=180, help="largest number of ids per caption")
    parser.add_argument(
        "--prompts_file", type=cli.path, help="more texts to encode: .txt with one per line, .jsonl or .csv"
    )
    parser.add_argument(
        "--checkpoint", type=cli.place, default="", help="trained tokenizer or other autoencoder; encode clips with it"
    )
    parser.add_argument("--num_frames", type=cli.number(Frames), default=0, help="frames of a clip; 0: as trained")
    parser.add_argument("--height", type=cli.number(Side), default=0, help="in pixels; 0: as trained")
    parser.add_argument("--width", type=cli.number(Side), default=0, help="in pixels; 0: as trained")
    parser.add_argument("--fps", type=cli.number(Rate), default=0.0, help="frame rate of a clip; 0: as trained")
    parser.add_argument(
        "--batch_size", type=cli.number(Batch), default=16, help="items computed at once, over all devices"
    )
    parser.add_argument("--process_index", type=cli.number(Natural), default=0, help="number of this process, from 0")
    parser.add_argument("--process_count", type=cli.number(Processes), default=1, help="processes that share the work")
    args = parser.parse_args(argv)
    return cli.run(lambda: _encode(args), as_json=args.json)


def _encode(args: argparse.Namespace) -> dict[str, Any]:
    if args.text == bool(args.checkpoint) or args.text != bool(args.text_encoder):
        raise UserError("encode needs either --text with --text_encoder, or --checkpoint of a tokenizer")
    if args.process_index >= args.process_count:
        raise UserError(f"--process_index={args.process_index}: must be below --process_count={args.process_count}")
    from motionaura_jax.core.files import check_folder
    from motionaura_jax.pipelines import encode

    check_folder(args.output)
    work = encode.Work(
        output=args.output,
        batch_size=args.batch_size,
        process_index=args.process_index,
        process_count=args.process_count,
    )
    if args.text:
        return encode.encode_texts(
            args.manifest, args.text_encoder, work, limit=args.limit, prompts_file=args.prompts_file
        )
    shape = {name: getattr(args, name) for name in ("num_frames", "height", "width", "fps")}
    return encode.encode_clips(args.manifest, args.checkpoint, work, **shape)


if __name__ == "__main__":
    raise SystemExit(main())
