"""Writes a trained model as a release folder, which every command takes for a checkpoint.

python -m motionaura_jax.export --checkpoint=runs/t2v --output=releases/t2v
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import motionaura_jax
from motionaura_jax import cli
from motionaura_jax.errors import UserError

if TYPE_CHECKING:
    from motionaura_jax.weights.load import Loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = cli.Parser("export", "Write a trained model, with the tokenizer that it needs, as one folder to pass on.")
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path, help="workdir, step folder or release")
    parser.add_argument("--tokenizer", default="", help="its tokenizer, where that has moved")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a release folder that exists")
    args = parser.parse_args(argv)
    return cli.run(lambda: _export(args), as_json=args.json)


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from motionaura_jax.weights import release
    from motionaura_jax.weights.load import load

    release.check_output(args.output, overwrite=args.overwrite)
    model = load(args.checkpoint)
    parts = _parts(model, args.tokenizer)
    with release.draft(args.output, overwrite=args.overwrite) as folder:
        for name, part in {"": model, **parts}.items():
            (folder / name).mkdir(exist_ok=True)
            inside = {key: key for key in parts} if part is model else {}
            release.write_folder(folder / name, _meta(part, inside), part.params, part.extra)
            _check(part, folder / name)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "output": args.output,
        "system": model.recipe.system,
        "checkpoint_step": model.step,
        "weights": model.weights,
        "parts": list(parts),
        "bytes": size,
    }


def _parts(model: "Loaded", tokenizer: str) -> dict[str, "Loaded"]:
    """The other runs that the model needs, by the recipe key that names them."""
    from motionaura_jax.weights.load import load_tokenizer

    if not hasattr(model.recipe, "tokenizer"):
        if tokenizer:
            raise UserError(f"--tokenizer={tokenizer}: a {model.recipe.system} needs no tokenizer; leave it out")
        return {}
    _, loaded = load_tokenizer(tokenizer or model.recipe.tokenizer, model.recipe.latent_space)  # type: ignore[attr-defined]
    return {"tokenizer": loaded}


def _meta(model: "Loaded", inside: Mapping[str, str]) -> dict[str, Any]:
    """The content of `config.json`; `inside` replaces recipe keys."""
    import jax

    from motionaura_jax import config

    meta = {
        "system": model.recipe.system,
        "recipe": {**config.to_dict(model.recipe), **inside},
        "step": model.step,
        "weights": model.weights,
        "versions": {"motionaura_jax": motionaura_jax.__version__, "jax": jax.__version__},
    }
    return {**meta, "provenance": dict(model.provenance)} if model.provenance else meta


def _check(model: "Loaded", folder: pathlib.Path) -> None:
    """Reads a written folder as any command would and compares every bit."""
    import jax
    import numpy as np

    from motionaura_jax.weights.load import load

    again = load(folder, model.recipe.system)
    pairs = zip(*(jax.tree.leaves((one.params, one.extra)) for one in (model, again)), strict=True)
    if not all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs):
        raise UserError(f"{folder}: reads back differently from what was written; check the disk and export again")


if __name__ == "__main__":
    raise SystemExit(main())
