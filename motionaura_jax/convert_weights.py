"""Convert pickled weights (.bin, .pt, .pth, .ckpt) to the safetensors that every other command reads.

python -m motionaura_jax.convert_weights FILE_OR_FOLDER_OR_ID --output=FOLDER

No other command needs PyTorch (`pip install torch`).
"""

import argparse
import importlib.util
import logging
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from motionaura_jax.core import cli, process, tokenizer_files
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.files import MAX_JSON_BYTES, check_regular, check_writable

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = cli.Parser("convert_weights", "Convert pickled weights to safetensors, in a separate process.")
    parser.add_argument("source", type=cli.place, help="pickled file, folder of pickled files, or hub id")
    parser.add_argument("--output", required=True, type=cli.path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of converted weights")
    args = parser.parse_args(argv)
    return cli.run(lambda: _convert(args), as_json=args.json)


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from motionaura_jax.data.media import write_json
    from motionaura_jax.weights import hub, output, tensors

    output.check_output(args.output, overwrite=args.overwrite)
    check_writable(args.output)
    if importlib.util.find_spec("torch") is None:
        raise UserError("convert_weights reads pickles with PyTorch, which is not installed; pip install torch")
    folder, files = pathlib.Path(args.source), [pathlib.Path(args.source)]
    if not folder.is_file():
        folder = hub.model_folder(args.source, (*hub.SAFE, *(f"*{suffix}" for suffix in tensors.PICKLES)))
        files = sorted(path for path in folder.iterdir() if path.suffix in tensors.PICKLES)
    if not files or files[0].suffix not in tensors.PICKLES:
        raise UserError(f"{args.source}: holds no {', '.join(tensors.PICKLES)} file; nothing to convert")
    for file in files:
        check_regular(file, remedy="give the weights of a published model")
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    names = names if len(files) > 1 else ["model.safetensors"]
    with output.draft(args.output, overwrite=args.overwrite) as draft:
        for file, name in zip(files, names, strict=True):
            _unpickle(file, draft / name)
        if len(files) > 1:
            places = {key: name for name in names for key in tensors.TensorFiles(draft / name)}
            write_json(draft / f"model.safetensors{tensors.INDEX}", {"metadata": {}, "weight_map": places})
        count = len(tensors.TensorFiles(draft))
        for name in (*output.SETTINGS, *tokenizer_files.NAMES):
            _copy(files[0].parent / name, draft / name)
    return {"output": args.output, "tensors": count, "files": names}


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a file of settings or of a tokenizer, if it is there; follow no link but those within a cache of the hub."""
    if not (source.exists() or source.is_symlink()):
        return
    snapshots = source.absolute().parent.parent
    blobs = snapshots.parent / "blobs"  # a cache holds blobs/HASH and snapshots/REVISION/NAME -> blobs/HASH
    cached = snapshots.name == "snapshots" and not blobs.is_symlink()
    if source.is_symlink() and not (cached and source.resolve().parent == blobs.resolve()):
        logger.warning("%s: is a link and is not copied", source)
        return
    check_regular(source, limit=MAX_JSON_BYTES, remedy="remove it or download it again")
    shutil.copyfile(source, target)


def _unpickle(source: pathlib.Path, target: pathlib.Path) -> None:
    command = process.child_command("motionaura_jax.exporters.pytorch.unpickle", str(source), str(target))
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise UserError(f"{source}: cannot be converted ({reason}); use the safetensors of this model if they exist")


if __name__ == "__main__":
    raise SystemExit(main())
