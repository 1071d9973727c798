"""Generate a video with the graphs in this folder, using jax alone: python serve.py "a prompt" out.npz [SEED]"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.export
import numpy as np
import tokenizers
from safetensors import safe_open

FOLDER = pathlib.Path(__file__).parent
MANIFEST = json.loads((FOLDER / "stablehlo.json").read_text("utf-8"))
WORDS = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
WORDS.enable_truncation(MANIFEST["text"]["limit"])
WORDS.enable_padding(pad_id=MANIFEST["text"]["pad"], length=MANIFEST["text"]["length"])


def run(name: str, **inputs: Any) -> dict[str, jax.Array]:
    """Run one graph, casting inputs to its dtypes. To serve many calls, keep the program and the weights."""
    graph = MANIFEST["graphs"][name]
    program = jax.export.deserialize(bytearray((FOLDER / graph["file"]).read_bytes()))
    given = {key: np.asarray(inputs[key], about["dtype"]) for key, about in graph["inputs"].items()}
    with safe_open(FOLDER / "weights.safetensors", "numpy") as weights:
        return jax.jit(program.call)({key: weights.get_tensor(key) for key in graph["weights"]}, given)


def read(text: str) -> dict[str, Any]:
    """Return a text as inputs of `sample`: ids, and features if the model has a published encoder."""
    ids = np.array([WORDS.encode(text).ids])
    return {"ids": ids, **(run("text", ids=ids) if "text" in MANIFEST["graphs"] else {})}


if __name__ == "__main__":
    grid = MANIFEST["graphs"]["sample"]["inputs"]["tokens"]["shape"][1:]
    given = {**MANIFEST["defaults"], "fps": [MANIFEST["defaults"]["fps"]], "seed": [int(*sys.argv[3:4] or "0")]}
    start = np.full((1, *grid), MANIFEST["mask_id"])
    negative = {f"negative_{key}": value for key, value in read("").items()}
    tokens = run("sample", tokens=start, **read(sys.argv[1]), **negative, **given)["tokens"]
    video = np.asarray(run("decode", tokens=tokens)["video"][0])
    np.savez(sys.argv[2], video=np.uint8((video + 1) * 127.5 + 0.5))
