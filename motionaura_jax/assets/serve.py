"""Draws a video with the graphs beside this file; needs jax and numpy only.  python serve.py "a prompt" out.npz [SEED]"""

import json
import pathlib
import re
import sys
from typing import Any

import jax
import jax.export
import numpy as np

FOLDER = pathlib.Path(__file__).parent
MANIFEST = json.loads((FOLDER / "stablehlo.json").read_text("utf-8"))
WEIGHTS = np.load(FOLDER / "weights.npz")
WORDS = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]


def run(name: str, **inputs: Any) -> dict[str, jax.Array]:
    """Runs one graph, casting inputs as it wants them; keep the result of `deserialize` to serve many calls."""
    graph = MANIFEST["graphs"][name]
    program = jax.export.deserialize(bytearray((FOLDER / graph["file"]).read_bytes()))
    given = {key: np.asarray(inputs[key], about["dtype"]) for key, about in graph["inputs"].items()}
    return jax.jit(program.call)({key: WEIGHTS[key] for key in graph["weights"]}, given)


def ids(text: str) -> np.ndarray:
    """Word ids, 1 for an unknown word and 0 behind the end."""
    length = MANIFEST["graphs"]["sample"]["inputs"]["ids"]["shape"][1]
    found = [WORDS.get(word, 1) for word in re.findall(r"\w+|[^\w\s]", text.lower())][:length]
    return np.array([found + [0] * (length - len(found))])


if __name__ == "__main__":
    grid = MANIFEST["graphs"]["sample"]["inputs"]["tokens"]["shape"][1:]
    given = {**MANIFEST["defaults"], "fps": [MANIFEST["defaults"]["fps"]], "seed": [int(*sys.argv[3:4] or "0")]}
    start = np.full((1, *grid), MANIFEST["mask_id"])
    tokens = run("sample", ids=ids(sys.argv[1]), negative_ids=ids(""), tokens=start, **given)["tokens"]
    video = np.asarray(run("decode", tokens=tokens)["video"][0])
    np.savez(sys.argv[2], video=np.uint8((video + 1) * 127.5 + 0.5))
