"""StableHLO graphs of a trained model.  JAX runs them without this package, on CPU, CUDA and TPU, at any batch size.

A folder holds one file per graph (`jax.export`), `weights.safetensors`, and `stablehlo.json`, which lists the inputs and
outputs of each graph.  A text-to-video export also contains `serve.py`, an example that runs the graphs.  A graph maps
`(weights, inputs)`, both dicts of arrays, to a dict of arrays.  All inputs but scalars have a leading batch axis.  The
video size is that of the first training bucket.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from motionaura_jax import assets
from motionaura_jax.conditioning.text import FrozenText, TrainedText, make_text
from motionaura_jax.core.trees import path_name
from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.data.media import write_json
from motionaura_jax.diffusion.samplers.absorbing import State
from motionaura_jax.exporters.base import Opened, Options
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.systems.text_to_video.recipe import make_sampler
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.weights.load import Loaded
from motionaura_jax.weights.shards import save_tensors

PLATFORMS = ("cpu", "cuda", "tpu")
NEGATIVE = "negative_"
MANIFEST, WEIGHTS, EXAMPLE = "stablehlo.json", "weights.safetensors", "serve.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A function to export, with its weights and inputs; it processes one sample and has no batch axis.

    Attributes:
      function: `(weights, inputs) -> outputs`.
      weights: tree of arrays.
      inputs: shapes and dtypes of one sample's inputs, by name.
      shared: names of scalar inputs that the whole batch shares.
    """

    function: Callable[[PyTree, Mapping[str, Array]], dict[str, Array]]
    weights: PyTree
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    shared: tuple[str, ...] = ()


def write_tokenizer(folder: pathlib.Path, opened: Opened, options: Options) -> None:
    """Write the graphs of a tokenizer into an empty folder; raise UserError if the disk is full or not writable."""
    _write(folder, opened, tokenizer_graphs(opened.model, _clip(opened.model)))


def write_text_to_video(folder: pathlib.Path, opened: Opened, options: Options) -> None:
    """Write the graphs of a text-to-video model and its tokenizer into an empty folder, with an example script.

    Raises:
      UserError: the disk is full or not writable, or a published text encoder is not the one used in training.
    """
    model, tokenizer = opened.model, opened.parts["tokenizer"].model
    graphs = tokenizer_graphs(tokenizer, _clip(model)) | denoiser_graphs(model, tokenizer)
    recipe: Any = model.recipe
    make_text(recipe.text, recipe.model).words.save(folder)
    _write(folder, opened, graphs, _hints(model))
    shutil.copyfile(assets.FOLDER / EXAMPLE, folder / EXAMPLE)


def _write(
    folder: pathlib.Path, opened: Opened, graphs: Mapping[str, Graph], hints: Mapping[str, Any] | None = None
) -> None:
    described: dict[str, Any] = {}
    stored: dict[str, np.ndarray] = {}
    for name, graph in graphs.items():
        exported = export(graph)
        (folder / f"{name}.stablehlo").write_bytes(exported.serialize())
        outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        named = _named(graph.weights)
        stored |= named
        described[name] = {
            "file": f"{name}.stablehlo",
            "weights": list(named),
            "inputs": {
                key: _describe(leaf.shape, leaf.dtype, key in graph.shared) for key, leaf in graph.inputs.items()
            },
            "outputs": {key: _describe(leaf.shape[1:], leaf.dtype, False) for key, leaf in outputs.items()},
        }
    save_tensors(stored, folder / WEIGHTS)
    write_json(folder / MANIFEST, {**opened.meta(), "platforms": PLATFORMS, "graphs": described, **(hints or {})})


def export(graph: Graph) -> jax.export.Exported:
    """Trace `graph` for all platforms with a symbolic batch size."""
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = {
        name: leaf if name in graph.shared else jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype)
        for name, leaf in graph.inputs.items()
    }
    axes = {name: None if name in graph.shared else 0 for name in graph.inputs}

    def function(weights: dict[str, Array], inputs: dict[str, Array]) -> dict[str, Array]:
        tree = jax.tree_util.tree_map_with_path(lambda path, _: weights[path_name(path)], graph.weights)
        # vmap over samples: no shape inside depends on the batch size, and each sample is independent of the others.
        return jax.vmap(functools.partial(graph.function, tree), in_axes=(axes,))(inputs)

    abstract = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in _named(graph.weights).items()}
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(abstract, inputs)


def tokenizer_graphs(loaded: Loaded, size: tuple[int, int, int]) -> dict[str, Graph]:
    """Build `encode` (video `(T, H, W, 3)` in [-1, 1] to `tokens` and `values`) and `decode` (tokens or values to video)."""
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
    """Build `sample`, which maps a text to tokens, and `step`, which runs sampling step `index` alone.

    A text is given as `ids`, plus the `features` output by the graph `text` if the model uses a published encoder.  Inputs
    of the negative prompt have the same names prefixed with `negative_`.  `tokens` holds MASK (id: the number of codes) at
    the positions to sample; `step` also takes `free`, which is True at all positions that sampling may fill.  `seed` fixes
    the randomness: up to rounding, the video equals that of `motionaura sample --seed` with one prompt.
    """
    recipe: Any = loaded.recipe
    system = TextToVideoSystem(recipe)
    config, steps = recipe.sample, recipe.sample.num_inference_steps
    grid = tokenizer.recipe.model.latent_shape(*_clip(loaded))  # type: ignore[attr-defined]
    null = system.text.prompts([""])
    parts = {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in _parts(null).items()}
    inputs = {
        **parts,
        **{f"{NEGATIVE}{name}": leaf for name, leaf in parts.items()},
        "fps": jax.ShapeDtypeStruct((), jnp.float32),
        "seed": jax.ShapeDtypeStruct((), jnp.uint32),
        "tokens": jax.ShapeDtypeStruct(grid, jnp.int32),
        "guidance_scale": jax.ShapeDtypeStruct((), jnp.float32),
        "temperature": jax.ShapeDtypeStruct((), jnp.float32),
    }

    def text_of(inputs: Mapping[str, Array], prefix: str = "") -> PyTree:
        found = {name: inputs[f"{prefix}{name}"][None] for name in parts}
        return found if isinstance(null, Mapping) else found["ids"]

    def arguments(inputs: Mapping[str, Array]) -> tuple[Any, Any, tuple[PyTree, PyTree]]:
        sampler = dataclasses.replace(make_sampler(config, recipe.model.vocab_size), temperature=inputs["temperature"])
        guidance = config.guided(inputs["guidance_scale"])
        both = ({"text": text_of(inputs, prefix), "fps": inputs["fps"][None]} for prefix in ("", NEGATIVE))
        return sampler, guidance, (next(both), next(both))

    def sample(weights: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        sampler, guidance, conditions = arguments(inputs)
        keys, start = _key(inputs["seed"])[None], inputs["tokens"][None]
        sampled = system.sample(weights, *conditions, keys, start, sampler, guidance, steps=steps)
        return {"tokens": sampled.x[0]}

    def step(weights: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        sampler, guidance, conditions = arguments(inputs)
        start: State = sampler.init(_key(inputs["seed"])[None], inputs["tokens"][None])
        state = start._replace(free=inputs["free"][None])  # positions revealed by earlier steps are free too
        denoise = system.denoise(weights, *conditions, guidance)
        return {"tokens": sampler.step(denoise, state, inputs["index"], sampler.timesteps(steps)).x[0]}

    weights = jax.jit(system.for_inference)(loaded.params)
    shared = ("guidance_scale", "temperature")
    more = {"free": jax.ShapeDtypeStruct(grid, jnp.bool_), "index": jax.ShapeDtypeStruct((), jnp.int32)}
    return {
        **text_graphs(system.text, parts),
        "sample": Graph(function=sample, weights=weights, inputs=inputs, shared=shared),
        "step": Graph(function=step, weights=weights, inputs={**inputs, **more}, shared=(*shared, "index")),
    }


def text_graphs(text: TrainedText | FrozenText, parts: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Graph]:
    """Build `text`, which maps ids to features of a published encoder; a jointly trained encoder is part of `sample`."""
    tower = text.frozen()
    if tower is None:
        return {}

    def read(weights: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = dataclasses.replace(tower, params=weights["text"])
        return {"features": text.read(given, inputs["ids"][None])["features"][0]}

    return {"text": Graph(function=read, weights={"text": tower.params}, inputs={"ids": parts["ids"]})}


def _parts(text: PyTree) -> Mapping[str, Array]:
    """Return the arrays of a text by name."""
    return text if isinstance(text, Mapping) else {"ids": text}


def _key(seed: Array) -> Key[Array, ""]:
    """Return the key of the first window of the first video of the first prompt."""
    return functools.reduce(jax.random.fold_in, (0, 0, 0), jax.random.key(seed))


def _clip(model: Loaded) -> tuple[int, int, int]:
    bucket = model.recipe.data.all_buckets()[0]
    return bucket.num_frames, bucket.height, bucket.width


def _hints(model: Loaded) -> dict[str, Any]:
    """Return the default settings and token ids that a caller of the graphs needs."""
    recipe: Any = model.recipe
    sample = recipe.sample
    defaults = {"guidance_scale": sample.guidance_scale, "temperature": sample.temperature, "fps": recipe.data.rates[0]}
    words = make_text(recipe.text, recipe.model).words
    text = {"pad": words.pad, "limit": words.limit, "length": words.length}
    return {"defaults": defaults, "steps": sample.num_inference_steps, "mask_id": recipe.model.vocab_size, "text": text}


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _describe(shape: Sequence[int], dtype: Any, shared: bool) -> dict[str, Any]:
    """Describe the inputs or outputs of one sample."""
    return {"shape": [*shape] if shared else ["batch", *shape], "dtype": np.dtype(dtype).name}
