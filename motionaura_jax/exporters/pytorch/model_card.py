"""The model card of an exported folder: how to use it, what it is, where it comes from."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

_PIPELINE = """```python
import sys

sys.path.insert(0, "FOLDER")  # this folder
from pipeline_motionaura import MotionAuraPipeline, export_to_video

pipe = MotionAuraPipeline.from_pretrained("FOLDER")
video = pipe({prompt}, seed=0).frames[0]  # uint8 (frames, height, width, 3)
export_to_video(video, "out.mp4", fps={fps:g})  # needs `av`
```

It draws {num_frames} frames of {height} x {width} pixels unless told otherwise; see the arguments of `__call__`."""

_TOKENIZER = """```python
import sys

sys.path.insert(0, "FOLDER")  # this folder
from modeling_mbq_vae import MBQVAE

vae = MBQVAE.from_pretrained("FOLDER")
latent = vae.encode(video)  # video (batch, 3, frames, height, width) in [-1, 1]
video = vae.decode(latent.values, latent.size)
```"""


def model_card(folder: pathlib.Path, meta: Mapping[str, Any], deviations: Mapping[str, float] | None) -> str:
    """Returns the text of `README.md`.

    Args:
      folder: the rest of the exported folder.
      meta: content of `training.json`.
      deviations: see `compare.compare`; None where nothing was compared.
    """
    whole = meta["system"] == "text_to_video"
    needs = "`torch` and `safetensors`"
    if whole:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        usage = _PIPELINE.format(
            prompt=json.dumps(next(iter(meta["recipe"]["sample"]["prompts"]), "a prompt")), **index
        )
        if index["text_encoder"][1] == "PublishedT5":
            needs = "`torch`, `safetensors` and `transformers` 4.56 or newer"
            usage += "\n\n" + _published(index)
    else:
        usage = _TOKENIZER
    what = "MotionAura, text to video" if whole else "3D-MBQ-VAE, a video tokenizer"
    sections = [
        _front_matter(whole),
        f"# {what}",
        f"Discrete-diffusion video generation after MotionAura, trained with motionaura_jax "
        f"{meta['versions']['motionaura_jax']} and exported to PyTorch. "
        f"It needs {needs}, runs no code from elsewhere, and holds no pickle.",
        "## Use",
        usage,
        f"The folder is also a checkpoint of motionaura_jax: `motionaura {'sample' if whole else 'reconstruct'} "
        f"--checkpoint=FOLDER` uses it and `train --config.init_from=FOLDER` goes on from it. `training.json` and "
        f"`training.safetensors` are for that; PyTorch reads neither.",
        "## Provenance",
        _provenance(meta),
        "## Compared with JAX",
        _comparison(deviations),
    ]
    return "\n\n".join(sections) + "\n"


def _published(index: Mapping[str, Any]) -> str:
    """Where the text encoder comes from."""
    if "text_encoder_id" not in index:
        return "Prompts are read by a published T5, which lies in `text_encoder/` as it was published."
    return (
        f"Prompts are read by the published T5 `{index['text_encoder_id']}`, which is fetched from the Hugging Face hub when the "
        f"pipeline is opened; `from_pretrained(..., text_encoder=PATH)` takes a copy instead."
    )


def _front_matter(whole: bool) -> str:
    task = "pipeline_tag: text-to-video\n" if whole else ""
    return f"---\nlibrary_name: pytorch\n{task}tags:\n- motionaura\n- discrete-diffusion\n- video\n---"


def _provenance(meta: Mapping[str, Any]) -> str:
    lines = {
        "training step": meta["step"],
        "weights": f"{meta['weights']} over training steps" if meta["weights"] == "averaged" else meta["weights"],
        "data": meta["recipe"]["data"]["manifest"],
        "seed": meta["recipe"]["seed"],
        "versions": ", ".join(f"{name} {version}" for name, version in meta["versions"].items()),
    }
    text = "\n".join(f"- {name}: {value}" for name, value in lines.items())
    told = json.dumps(meta.get("provenance", {}), indent=2)
    return text if told == "{}" else f"{text}\n\n```json\n{told}\n```"


def _comparison(deviations: Mapping[str, float] | None) -> str:
    if deviations is None:
        return "**Not compared.** This folder was written with `--no_check`: nobody has run its modules against JAX."
    lines = "\n".join(f"| {name} | {value:.1e} |" for name, value in deviations.items())
    return (
        "The exporter ran this folder in a process of its own and compared it with JAX, in float32 on random inputs.\n\n"
        f"| output | largest deviation / largest value |\n|---|---|\n{lines}"
    )
