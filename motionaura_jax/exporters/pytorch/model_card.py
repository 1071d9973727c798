"""Model card of an exported folder: usage, provenance and the comparison with JAX."""

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

By default it generates {num_frames} frames of {height} x {width} pixels; see the arguments of `__call__`."""

_TOKENIZER = """```python
import sys

sys.path.insert(0, "FOLDER")  # this folder
from modeling_mbq_vae import MBQVAE

vae = MBQVAE.from_pretrained("FOLDER")
latent = vae.encode(video)  # video (batch, 3, frames, height, width) in [-1, 1]
video = vae.decode(latent.values, latent.size)
```"""


def model_card(folder: pathlib.Path, meta: Mapping[str, Any], deviations: Mapping[str, float] | None) -> str:
    """Return the text of `README.md`.

    Args:
      folder: the exported folder, complete but for the card.
      meta: content of `training.json`.
      deviations: result of `compare.compare`; None if the comparison was skipped.
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
        f"It requires {needs}, downloads no code, and contains no pickle files.",
        "## Use",
        usage,
        f"The folder is also a motionaura_jax checkpoint: run it with `motionaura {'sample' if whole else 'reconstruct'} "
        f"--checkpoint=FOLDER`, or continue training with `train --config.init_from=FOLDER`. Only motionaura_jax reads "
        f"`training.json` and `training.safetensors`; PyTorch does not need them.",
        "## Provenance",
        _provenance(meta),
        "## Compared with JAX",
        _comparison(deviations),
    ]
    return "\n\n".join(sections) + "\n"


def _published(index: Mapping[str, Any]) -> str:
    """Return the paragraph that says where the text encoder comes from."""
    if "text_encoder_id" not in index:
        return "The text encoder is a published T5; `text_encoder/` holds an unmodified copy."
    return (
        f"The text encoder is the published T5 `{index['text_encoder_id']}`. `from_pretrained` takes it from the local "
        f'cache; to fetch it from the Hugging Face hub, pass `text_encoder="{index["text_encoder_id"]}"`, or a PATH.'
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
        return "**Not compared.** This folder was exported with `--no_check`, so its modules have not been compared with JAX."
    lines = "\n".join(f"| {name} | {value:.1e} |" for name, value in deviations.items())
    return (
        "The exporter ran this folder in a separate process and compared its outputs with JAX, in float32 on random inputs.\n\n"
        f"| output | maximum deviation / maximum value |\n|---|---|\n{lines}"
    )
