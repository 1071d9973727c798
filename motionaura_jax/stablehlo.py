"""A trained model as StableHLO graphs that JAX serves without this package, on CPU, CUDA and TPU, at any batch size.

A folder holds one file per graph (`jax.export`), `weights.npz`, `stablehlo.json` that says what each takes and gives, and, of
a text-to-video model, `serve.py`, which uses them.  A graph takes `(weights, inputs)`, both dicts of arrays, and gives a dict;
inputs lead with the batch unless they are single numbers.  Sizes of the video are those of the first training bucket.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from motionaura_jax import assets
from motionaura_jax.data.media import write_json
from motionaura_jax.diffusion.guidance import Guidance
from motionaura_jax.diffusion.samplers import State
from motionaura_jax.errors import UserError
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.encoders.text_tokenizer import TextTokenizer
from motionaura_jax.systems.text_to_video.recipe import make_sampler
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.trees import path_name
from motionaura_jax.types import Latent, PyTree
from motionaura_jax.weights.load import Loaded

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST, WEIGHTS, EXAMPLE = "stablehlo.json", "weights.npz", "serve.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A function of one sample, without the batch axis, and what it takes.

    Attributes:
      function: `(weights, inputs) -> outputs`.
      weights: tree of arrays.
      inputs: abstract arrays by name, of one sample.
      shared: inputs that are one number for the whole batch.
    """

    function: Callable[[PyTree, Mapping[str, Array]], dict[str, Array]]
    weights: PyTree
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    shared: tuple[str, ...] = ()


def write(folder: pathlib.Path, model: Loaded, tokenizer: Loaded, meta: Mapping[str, Any]) -> None:
    """Writes the graphs of a tokenizer, and of a text-to-video model if `model` is another one, into an empty folder.

    Args:
      meta: what a release says of `model`.

    Raises:
      UserError: the disk is full or not writable.
    """
    graphs = tokenizer_graphs(tokenizer, _clip(model))
    if model is not tokenizer:
        graphs |= denoiser_graphs(model, tokenizer)
        recipe: Any = model.recipe
        TextTokenizer(recipe.text.vocabulary, recipe.model.text_len).save(folder)
    described: dict[str, Any] = {}
    stored: dict[str, np.ndarray] = {}
    for name, graph in graphs.items():
        exported = serialize(graph)
        (folder / f"{name}.stablehlo").write_bytes(exported)
        named = _named(graph.weights)
        stored |= named
        described[name] = {
            "file": f"{name}.stablehlo",
            "weights": list(named),
            "inputs": {key: _describe(leaf, key in graph.shared) for key, leaf in graph.inputs.items()},
            "outputs": {key: _describe(leaf, False) for key, leaf in _outputs(graph).items()},
        }
    try:
        np.savez(folder / WEIGHTS, **stored)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be written ({error}); free disk space") from error
    write_json(folder / MANIFEST, {**meta, "platforms": PLATFORMS, "graphs": described, **_hints(model)})
    if model is not tokenizer:
        shutil.copyfile(assets.FOLDER / EXAMPLE, folder / EXAMPLE)


def serialize(graph: Graph) -> bytearray:
    """Traces `graph` with a symbolic batch for all platforms."""
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = {
        name: leaf if name in graph.shared else jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype)
        for name, leaf in graph.inputs.items()
    }
    axes = {name: None if name in graph.shared else 0 for name in graph.inputs}

    def function(weights: dict[str, Array], inputs: dict[str, Array]) -> dict[str, Array]:
        tree = jax.tree_util.tree_map_with_path(lambda path, _: weights[path_name(path)], graph.weights)
        # One sample at a time, so that no shape inside depends on the batch: sample i is what it would be alone.
        return jax.vmap(functools.partial(graph.function, tree), in_axes=(axes,))(inputs)

    abstract = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in _named(graph.weights).items()}
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(abstract, inputs).serialize()


def tokenizer_graphs(loaded: Loaded, size: tuple[int, int, int]) -> dict[str, Graph]:
    """`encode`: video (T, H, W, 3) in [-1, 1] to `tokens` and `values`; `decode`: back, from tokens where there are any."""
    recipe: Any = loaded.recipe
    config = recipe.model
    weights = {"tokenizer": loaded.params["tokenizer"], "codebook": loaded.extra}
    grid = config.latent_shape(*size)

    def opened(weights: PyTree) -> Tokenizer:
        return Tokenizer(config=config, params=weights["tokenizer"], extra=weights["codebook"])

    def encode(weights: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        latent = opened(weights).encode(inputs["video"][None])
        found = {"values": latent.values, "tokens": latent.tokens}
        return {name: array[0] for name, array in found.items() if array is not None}

    def decode(weights: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        latent = Latent(**{name: array[None] for name, array in inputs.items()}, size=size)  # type: ignore[arg-type]
        return {"video": opened(weights).decode(latent)[0]}

    values = jax.ShapeDtypeStruct((*grid, config.latent_dim), jnp.float32)
    code = {"tokens": jax.ShapeDtypeStruct(grid, jnp.int32)} if config.vocab_size else {"values": values}
    video = {"video": jax.ShapeDtypeStruct((*size, 3), jnp.float32)}
    return {
        "encode": Graph(function=encode, weights=weights, inputs=video),
        "decode": Graph(function=decode, weights=weights, inputs=code),
    }


def denoiser_graphs(loaded: Loaded, tokenizer: Loaded) -> dict[str, Graph]:
    """`sample`: word ids to tokens; `step`: one step of it, number `index`, of tokens whose `free` positions are sampled.

    In both `tokens` has MASK (the number of codes) where tokens are still to be drawn, and `seed` fixes the randomness: the
    video is that of `motionaura sample --seed` for one prompt, up to rounding.
    """
    recipe: Any = loaded.recipe
    system = TextToVideoSystem(recipe)
    config, steps = recipe.sample, recipe.sample.num_inference_steps
    grid = tokenizer.recipe.model.latent_shape(*_clip(loaded))  # type: ignore[attr-defined]
    inputs = {
        "ids": jax.ShapeDtypeStruct((recipe.model.text_len,), jnp.int32),
        "negative_ids": jax.ShapeDtypeStruct((recipe.model.text_len,), jnp.int32),
        "fps": jax.ShapeDtypeStruct((), jnp.float32),
        "seed": jax.ShapeDtypeStruct((), jnp.uint32),
        "tokens": jax.ShapeDtypeStruct(grid, jnp.int32),
        "guidance_scale": jax.ShapeDtypeStruct((), jnp.float32),
        "temperature": jax.ShapeDtypeStruct((), jnp.float32),
    }

    def arguments(inputs: Mapping[str, Array]) -> tuple[Any, Any, tuple[Array, Array, Array]]:
        sampler = dataclasses.replace(make_sampler(config, recipe.model.vocab_size), temperature=inputs["temperature"])  # type: ignore[type-var]
        guidance = Guidance(scale=inputs["guidance_scale"] - 1, ramp=config.guidance_ramp)
        return sampler, guidance, (inputs["ids"][None], inputs["negative_ids"][None], inputs["fps"][None])

    def sample(weights: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        sampler, guidance, text = arguments(inputs)
        keys, start = _key(inputs["seed"])[None], inputs["tokens"][None]
        drawn = system.sample_tokens(weights, *text, keys, start, sampler, guidance, steps=steps)
        return {"tokens": drawn.tokens[0]}

    def step(weights: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        sampler, guidance, text = arguments(inputs)
        state: State = sampler.init(_key(inputs["seed"])[None], inputs["tokens"][None], inputs["free"][None])
        denoise = system.denoise(weights, *text, guidance)
        return {"tokens": sampler.step(denoise, state, inputs["index"], sampler.timesteps(steps)).x[0]}

    weights = jax.jit(system.folded)(loaded.params)
    shared = ("guidance_scale", "temperature")
    more = {"free": jax.ShapeDtypeStruct(grid, jnp.bool_), "index": jax.ShapeDtypeStruct((), jnp.int32)}
    return {
        "sample": Graph(function=sample, weights=weights, inputs=inputs, shared=shared),
        "step": Graph(function=step, weights=weights, inputs={**inputs, **more}, shared=(*shared, "index")),
    }


def _key(seed: Array) -> Key[Array, ""]:
    """The key of the first window of the first video of the first prompt."""
    return functools.reduce(jax.random.fold_in, (0, 0, 0), jax.random.key(seed))


def _clip(model: Loaded) -> tuple[int, int, int]:
    bucket = model.recipe.data.all_buckets()[0]
    return bucket.num_frames, bucket.height, bucket.width


def _hints(model: Loaded) -> dict[str, Any]:
    """What a caller needs beside the graphs."""
    recipe: Any = model.recipe
    if recipe.system != "text_to_video":
        return {}
    sample = recipe.sample
    defaults = {"guidance_scale": sample.guidance_scale, "temperature": sample.temperature, "fps": recipe.data.rates[0]}
    return {"defaults": defaults, "steps": sample.num_inference_steps, "mask_id": recipe.model.vocab_size}


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _outputs(graph: Graph) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(graph.function, graph.weights, graph.inputs)


def _describe(leaf: jax.ShapeDtypeStruct, shared: bool) -> dict[str, Any]:
    shape = list(leaf.shape) if shared else ["batch", *leaf.shape]
    return {"shape": shape, "dtype": np.dtype(leaf.dtype).name}
