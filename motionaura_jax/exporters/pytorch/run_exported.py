"""Run the networks of an exported folder on given inputs, using only the modules in that folder.

python -I run_exported.py FOLDER INPUTS.safetensors OUTPUTS.safetensors
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def run_tokenizer(vae: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return encoder outputs and codes of `video`, and the video decoded from `values`."""
    features = vae.features(given["video"])
    codes = {} if vae.config.quantizer == "none" else {"codes": vae.quantizer.codes(features.movedim(1, -1))}
    return {"features": features, "decoded": vae.decode(given["values"]), **codes}


def run_denoiser(pipeline: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return word ids, text features, and logits of the plain and the folded network."""
    texts = bytes(given["texts"].tolist()).decode().split("\n")
    features, mask = pipeline.encode_prompt(texts)
    inputs = (given["tokens"], given["level"], given["fps"], features, mask)
    plain = pipeline.transformer(*inputs)
    found = {"ids": pipeline.tokenizer(texts), "text": features * mask[..., None], "logits": plain}
    return {**found, "logits_folded": pipeline.transformer.fold()(*inputs)}


def main(folder: str, inputs: str, outputs: str) -> None:
    """Load the folder as a user would and write the outputs of its networks."""
    sys.path.insert(0, folder)
    given = load_file(inputs)
    with torch.inference_mode():
        if (Path(folder) / "model_index.json").is_file():
            module = importlib.import_module("pipeline_motionaura")
            pipeline = module.MotionAuraPipeline.from_pretrained(folder, fold=False)
            found = {**run_tokenizer(pipeline.vae, given), **run_denoiser(pipeline, given)}
        else:
            module = importlib.import_module("modeling_mbq_vae")
            found = run_tokenizer(module.MBQVAE.from_pretrained(folder), given)
    assert "jax" not in sys.modules
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
