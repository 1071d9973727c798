"""Writes a trained model as a folder to pass on: a release, PyTorch modules with weights, compiled graphs, or adapters alone.

python -m motionaura_jax.export --checkpoint=runs/t2v --output=releases/t2v
python -m motionaura_jax.export --checkpoint=runs/t2v --output=exports/t2v --format=pytorch
python -m motionaura_jax.export --checkpoint=runs/t2v --output=serving/t2v --format=stablehlo
python -m motionaura_jax.export --checkpoint=runs/adapted --output=adapters/mine --format=adapter
python -m motionaura_jax.export --checkpoint=runs/t2v --output=exports/t2v --format=pytorch --push_to_hub=me/t2v
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import motionaura_jax
from motionaura_jax.core import cli
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Count

if TYPE_CHECKING:
    from motionaura_jax.weights.load import Loaded


SHARD_BYTES = 5 * 10**9
FORMATS = ("release", "pytorch", "stablehlo", "adapter")
# Flags that not every format reads.
_READ_BY = {
    "dtype": ("release", "pytorch"),  # compiled graphs and adapters are float32
    "tokenizer": ("release", "pytorch", "stablehlo"),
    "text_encoder": ("release", "pytorch", "stablehlo"),
    "provenance": ("release", "pytorch", "stablehlo"),
    "max_shard_bytes": ("pytorch",),
    "no_check": ("pytorch",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = cli.Parser("export", "Write a trained model, with the tokenizer that it needs, as one folder to pass on.")
    parser.add_argument("--checkpoint", required=True, help="workdir, step folder, release, or ID@REVISION on the hub")
    parser.add_argument("--tokenizer", default="", help="its tokenizer, where that has moved")
    parser.add_argument("--text_encoder", default="", help="its published text encoder, where that has moved")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write")
    parser.add_argument("--format", choices=FORMATS, default="release", help="of the folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the file")
    parser.add_argument(
        "--provenance", type=pathlib.Path, help="JSON object to keep in config.json: command, data, hours"
    )
    parser.add_argument(
        "--max_shard_bytes", type=cli.number(Count), default=SHARD_BYTES, help="pytorch: largest file of weights"
    )
    parser.add_argument("--no_check", action="store_true", help="pytorch: do not run the result against this model")
    parser.add_argument("--overwrite", action="store_true", help="replace a release folder that exists")
    parser.add_argument("--push_to_hub", metavar="ID", default="", help="upload it to the Hugging Face hub as well")
    args = parser.parse_args(argv)
    given = [name for name in _READ_BY if getattr(args, name) != parser.get_default(name)]
    return cli.run(lambda: _export(args, given), as_json=args.json)


def _export(args: argparse.Namespace, given: Sequence[str]) -> dict[str, Any]:
    from motionaura_jax.weights import hub, release
    from motionaura_jax.weights.load import load

    release.check_output(args.output, overwrite=args.overwrite)
    for name in given:
        if args.format not in _READ_BY[name]:
            formats = " and ".join(_READ_BY[name])
            raise UserError(f"--{name}: not read by --format={args.format}, only by {formats}; leave it out")
    if args.push_to_hub:
        hub.check_push(args.push_to_hub)
    if args.format == "stablehlo":
        _trace_on_cpu()
    checked = args.format == "pytorch" and not args.no_check
    if checked:
        _require_torch()
    model, parts = load(args.checkpoint), {}
    if args.format != "adapter":
        model = _with_text_encoder(_rounded(model, args.dtype), args.text_encoder)
        if args.provenance:
            model = dataclasses.replace(model, provenance=_read_object(args.provenance))
        parts = _parts(model, args.tokenizer, args.dtype)
    with release.draft(args.output, overwrite=args.overwrite) as folder:
        writers = {
            "release": _write_release,
            "pytorch": _write_pytorch,
            "stablehlo": _write_stablehlo,
            "adapter": _write_adapter,
        }
        writers[args.format](folder, model, parts, args)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    message = f"Export {model.recipe.system} of step {model.step} with motionaura_jax {motionaura_jax.__version__}"
    pushed = {"hub": hub.push(args.output, args.push_to_hub, message)} if args.push_to_hub else {}
    return {
        **pushed,
        "output": args.output,
        "format": args.format,
        "system": model.recipe.system,
        "checkpoint_step": model.step,
        "weights": model.weights,
        "parts": list(parts),
        "bytes": size,
        "compared_in_torch": checked,
    }


def _trace_on_cpu() -> None:
    """Keeps kernels of the accelerator at hand out of graphs that have to run everywhere."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _require_torch() -> None:
    from motionaura_jax.exporters.pytorch.compare import can_compare

    if not can_compare():
        raise UserError(
            "torch is not installed, so that the exported modules cannot be compared with this model; pip install torch, "
            "or add --no_check to write them without"
        )


def _write_release(
    folder: pathlib.Path, model: "Loaded", parts: Mapping[str, "Loaded"], args: argparse.Namespace
) -> None:
    from motionaura_jax.weights import release

    _copy_text_encoder(folder, model, SHARD_BYTES)
    for name, part in {"": model, **parts}.items():
        (folder / name).mkdir(exist_ok=True)
        release.write_folder(folder / name, _meta(part, release.PARTS[0]), part.params, part.extra, args.dtype)
        _check(part, folder / name)


def _write_pytorch(
    folder: pathlib.Path, model: "Loaded", parts: Mapping[str, "Loaded"], args: argparse.Namespace
) -> None:
    from motionaura_jax.exporters.pytorch import writer
    from motionaura_jax.exporters.pytorch.compare import compare

    files = writer.Files(dtype=args.dtype, shard_bytes=args.max_shard_bytes)
    tokenizer = parts.get("tokenizer", model)
    if tokenizer is model:
        meta = _meta(model)
        writer.write_tokenizer(folder, model, meta, files)
    else:
        meta = _meta(model, writer.VAE)
        writer.write_text_to_video(folder, model, tokenizer, (meta, _meta(tokenizer)), files)
        _copy_text_encoder(folder, model, args.max_shard_bytes)
        _check(tokenizer, folder / writer.VAE)
    _check(model, folder)
    writer.write_card(folder, meta, None if args.no_check else compare(folder, model, tokenizer))


def _write_stablehlo(
    folder: pathlib.Path, model: "Loaded", parts: Mapping[str, "Loaded"], args: argparse.Namespace
) -> None:
    from motionaura_jax.exporters import stablehlo

    stablehlo.write(folder, model, parts.get("tokenizer", model), _meta(model))


def _write_adapter(
    folder: pathlib.Path, model: "Loaded", parts: Mapping[str, "Loaded"], args: argparse.Namespace
) -> None:
    from motionaura_jax.weights import adapter

    adapter.write(folder, model)
    _compare(model, adapter.applied(adapter.removed(model), folder), folder)


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object was expected")
    return value


def _rounded(model: "Loaded", dtype: str) -> "Loaded":
    """The model as it will be after a round trip through `dtype`."""
    import jax
    import jax.numpy as jnp

    def through(leaf: Any) -> Any:
        return leaf.astype(jnp.dtype(dtype)).astype(leaf.dtype) if leaf.dtype == jnp.float32 else leaf

    params, extra = jax.tree.map(through, (model.params, model.extra))
    return dataclasses.replace(model, params=params, extra=extra)


def _parts(model: "Loaded", tokenizer: str, dtype: str) -> dict[str, "Loaded"]:
    """The other runs that the model needs, by the recipe key that names them."""
    from motionaura_jax.models.autoencoders.tokenizer import fingerprint
    from motionaura_jax.weights.load import load_tokenizer

    if not hasattr(model.recipe, "tokenizer"):
        if tokenizer:
            raise UserError(f"--tokenizer={tokenizer}: a {model.recipe.system} needs no tokenizer; leave it out")
        return {}
    opened, loaded = load_tokenizer(tokenizer or model.recipe.tokenizer, model.recipe.latent_space)  # type: ignore[attr-defined]
    rounded = _rounded(loaded, dtype)
    if fingerprint(opened.config, rounded.params["tokenizer"], rounded.extra) != opened.latent_space:
        raise UserError(
            f"--dtype={dtype}: the tokenizer would become another one; export it alone with this --dtype before training on it"
        )
    return {"tokenizer": rounded}


def _with_text_encoder(model: "Loaded", place: str) -> "Loaded":
    """The model with the published text encoder that it needs where that is now, and without a cache of its features."""
    from motionaura_jax.weights import hub

    recipe: Any = model.recipe
    if not hasattr(recipe, "text"):
        if place:
            raise UserError(f"--text_encoder={place}: a {recipe.system} reads no text; leave it out")
        return model
    recipe = recipe.with_text_encoder(place) if place else recipe
    text = recipe.text
    if not text.is_frozen:
        return model
    if not text.tower:
        raise UserError(
            f"--checkpoint={model.path}: was trained on features from {text.cache}; name their encoder with --text_encoder"
        )
    text = dataclasses.replace(text, tower=hub.pinned(text.tower), cache="")
    return dataclasses.replace(model, recipe=dataclasses.replace(recipe, text=text))


def _takes_text_encoder_along(model: "Loaded") -> bool:
    """Whether a published text encoder is a folder here, which is copied; one on the hub stays there."""
    text = getattr(model.recipe, "text", None)
    return text is not None and text.is_frozen and pathlib.Path(text.tower).is_dir()


def _copy_text_encoder(folder: pathlib.Path, model: "Loaded", shard_bytes: int) -> None:
    from motionaura_jax.conditioning.text import FrozenText
    from motionaura_jax.weights import release

    if _takes_text_encoder_along(model):
        recipe: Any = model.recipe
        (folder / release.TEXT_ENCODER).mkdir()
        FrozenText(recipe.text, recipe.model).save(folder / release.TEXT_ENCODER, shard_bytes)


def _meta(model: "Loaded", tokenizer: str = "") -> dict[str, Any]:
    """The content of `config.json`, without paths of this machine.

    Args:
      tokenizer: folder of that part inside, where it lies there; paths in the recipe are relative then.
    """
    import jax

    from motionaura_jax.core import config
    from motionaura_jax.weights import release

    recipe = release.without_places(config.to_dict(model.recipe))
    if tokenizer and "tokenizer" in recipe:
        recipe["tokenizer"] = tokenizer
        if _takes_text_encoder_along(model):
            recipe["text"] = {**recipe["text"], "tower": release.TEXT_ENCODER}
    meta = {
        "system": model.recipe.system,
        "recipe": recipe,
        "step": model.step,
        "weights": model.weights,
        "versions": {"motionaura_jax": motionaura_jax.__version__, "jax": jax.__version__},
    }
    return {**meta, "provenance": dict(model.provenance)} if model.provenance else meta


def _check(model: "Loaded", folder: pathlib.Path) -> None:
    """Reads a written folder as any command would and compares every bit."""
    from motionaura_jax.conditioning.text import make_text
    from motionaura_jax.weights.load import load

    again = load(folder, model.recipe.system)
    recipe: Any = again.recipe
    if getattr(recipe, "text", None) is not None:
        make_text(recipe.text, recipe.model).frozen()  # a published text encoder has to be the one of training
    _compare(model, again, folder)


def _compare(model: "Loaded", again: "Loaded", folder: pathlib.Path) -> None:
    import jax
    import numpy as np

    pairs = zip(*(jax.tree.leaves((one.params, one.extra)) for one in (model, again)), strict=True)
    if not all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs):
        raise UserError(f"{folder}: reads back differently from what was written; check the disk and export again")


if __name__ == "__main__":
    raise SystemExit(main())
