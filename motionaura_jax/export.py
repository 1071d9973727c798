"""Export a trained model as one folder: a release, PyTorch modules with weights, compiled graphs, or adapters alone.

python -m motionaura_jax.export --checkpoint=runs/t2v --output=releases/t2v
python -m motionaura_jax.export --checkpoint=runs/t2v --output=exports/t2v --format=pytorch
python -m motionaura_jax.export --checkpoint=runs/t2v --output=serving/t2v --format=stablehlo
python -m motionaura_jax.export --checkpoint=runs/adapted --output=adapters/mine --format=adapter
python -m motionaura_jax.export --checkpoint=runs/t2v --output=exports/t2v --format=pytorch --push_to_hub=me/t2v
"""

import argparse
from collections.abc import Sequence
from typing import Any

import motionaura_jax
from motionaura_jax.core import cli, files
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Bytes

SHARD_BYTES = 5 * 10**9
FORMATS = ("release", "pytorch", "stablehlo", "adapter")  # a system may declare more
PARTS = ("tokenizer", "text_encoder")  # roles with a flag of their own; `--part` takes any
# Flags that only some of `FORMATS` read.
_READ_BY = {
    "dtype": ("release", "pytorch"),  # compiled graphs and adapters are float32
    "tokenizer": ("release", "pytorch", "stablehlo"),
    "text_encoder": ("release", "pytorch", "stablehlo"),
    "part": ("release", "pytorch", "stablehlo"),
    "provenance": ("release", "pytorch", "stablehlo"),
    "max_shard_bytes": ("pytorch",),
    "no_check": ("pytorch",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = cli.Parser("export", "Write a trained model and the tokenizer that it needs as one self-contained folder.")
    parser.add_argument(
        "--checkpoint", required=True, type=cli.place, help="workdir, step folder, release, or ID@REVISION on the hub"
    )
    parser.add_argument("--tokenizer", type=cli.place, default="", help="its tokenizer, if it has moved")
    parser.add_argument(
        "--text_encoder", type=cli.place, default="", help="its published text encoder, if it has moved"
    )
    parser.add_argument(
        "--part", action="append", metavar="ROLE=PLACE", default=[], help="any other part of the model, if it has moved"
    )
    parser.add_argument("--output", required=True, type=cli.path, help="folder to write")
    formats = f"{', '.join(FORMATS)}, or another format that the system declares"
    parser.add_argument("--format", default="release", help=formats)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="dtype of the weights"
    )
    parser.add_argument("--provenance", type=cli.path, help="JSON object to keep in config.json: command, data, hours")
    parser.add_argument(
        "--max_shard_bytes", type=cli.number(Bytes), default=SHARD_BYTES, help="pytorch: largest size of one file"
    )
    parser.add_argument("--no_check", action="store_true", help="pytorch: do not compare the result with this model")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing exported folder")
    parser.add_argument(
        "--push_to_hub", metavar="ID", default="", help="also upload the folder to the Hugging Face hub"
    )
    args = parser.parse_args(argv)
    given = [name for name in _READ_BY if getattr(args, name) != parser.get_default(name)]
    return cli.run(lambda: _export(args, given), as_json=args.json)


def _export(args: argparse.Namespace, given: Sequence[str]) -> dict[str, Any]:
    for name in given:
        if args.format in FORMATS and args.format not in _READ_BY[name]:
            formats = " and ".join(_READ_BY[name])
            raise UserError(f"--{name}: not read by --format={args.format}, only by {formats}; leave it out")
    files.check_writable(args.output)
    if args.format == "stablehlo":
        _trace_on_cpu()
    if args.format == "pytorch" and not args.no_check:
        from motionaura_jax.exporters.pytorch import compare

        compare.require_torch()  # before anything is opened or fetched
    from motionaura_jax.exporters import base
    from motionaura_jax.weights import hub

    if args.push_to_hub:
        hub.check_push(args.push_to_hub)
    options = base.Options(
        places=_places(args),
        dtype=args.dtype,
        provenance=base.read_provenance(args.provenance) if args.provenance else None,
        shard_bytes=args.max_shard_bytes,
        check=not args.no_check,
    )
    opened, size = base.export(args.checkpoint, args.output, args.format, options, overwrite=args.overwrite)
    model = opened.model
    message = f"Export {model.recipe.system} of step {model.step} with motionaura_jax {motionaura_jax.__version__}"
    pushed = {"hub": hub.push(args.output, args.push_to_hub, message)} if args.push_to_hub else {}
    return {
        **pushed,
        "output": args.output,
        "format": args.format,
        "system": model.recipe.system,
        "checkpoint_step": model.step,
        "weights": model.weights,
        "parts": list(opened.parts),
        "bytes": size,
        "compared_in_torch": args.format == "pytorch" and not args.no_check,
    }


def _places(args: argparse.Namespace) -> dict[str, str]:
    """Return the current places of parts, by role."""
    places = {role: place for role in PARTS if (place := getattr(args, role))}
    for text in args.part:
        role, separator, place = text.partition("=")
        if not (role and separator and place):
            raise UserError(f"--part={text}: write it as --part=ROLE=PLACE")
        places[role] = files.place(place)
    return places


def _trace_on_cpu() -> None:
    """Keep kernels of the local accelerator out of graphs that must run everywhere."""
    import jax

    jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
    raise SystemExit(main())
