"""Encode and decode a video with a trained tokenizer and measure the quality of the reconstruction.

python -m motionaura_jax.reconstruct --checkpoint=runs/tokenizer --input=clip.mp4 --output=recon.mp4
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from motionaura_jax.core import cli
from motionaura_jax.core.limits import Count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = cli.Parser("reconstruct", "Encode and decode a video; write the result and a contact sheet.")
    parser.add_argument(
        "--checkpoint", required=True, type=cli.place, help="workdir, step folder or release of a tokenizer"
    )
    parser.add_argument("--input", required=True, type=cli.path, help="video or image")
    parser.add_argument(
        "--output", required=True, type=cli.path, help=".mp4, .webp, .gif, .npz or .png (numbered frames)"
    )
    parser.add_argument("--max_frames", type=cli.number(Count), help="stop after this many frames of the input")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(argv)
    return cli.run(lambda: _reconstruct(args), as_json=args.json)


def _reconstruct(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from motionaura_jax.core import memory
    from motionaura_jax.core.files import check_outputs
    from motionaura_jax.data import media, video

    media.check_output(args.output, overwrite=args.overwrite)
    sheet = args.output.with_name(f"{args.output.stem}_sheet.png")
    media.check_free(sheet, overwrite=args.overwrite)
    check_outputs((*media.output_files(args.output, 1), sheet))
    info = video.probe(args.input)
    # Bytes of a pixel: input and result, each in uint8 and float32.
    pixel = 3 * 2 * (np.float32().nbytes + np.uint8().nbytes)
    memory.require(
        "--max_frames",
        min(info.frames, args.max_frames or info.frames),
        lambda count: count * info.height * info.width * pixel,
    )
    frames, fps = video.read_video(args.input, max_frames=args.max_frames)

    from motionaura_jax.pipelines.reconstruct import reconstruct
    from motionaura_jax.systems.loading import load_autoencoder

    tokenizer, loaded = load_autoencoder(args.checkpoint)
    started = time.perf_counter()
    result = reconstruct(tokenizer, frames)
    seconds = time.perf_counter() - started
    written = media.write_video(args.output, result.frames, fps, overwrite=args.overwrite)
    rows = [("input", frames), ("reconstruction", result.frames)]
    media.contact_sheet([*rows, ("without quantization", result.continuous)] if tokenizer.vocab_size else rows, sheet)
    return {
        "outputs": [str(path) for path in written],
        "sheet": sheet,
        "frames": len(frames),
        "height": frames.shape[1],
        "width": frames.shape[2],
        "fps": fps,
        "tokens": None if result.tokens is None else result.tokens.size,
        **result.metrics(frames),
        "seconds": seconds,
        "checkpoint_step": loaded.step,
        "latent_space": tokenizer.latent_space,
    }


if __name__ == "__main__":
    raise SystemExit(main())
