"""One training step of both systems on meshes of eight virtual devices, compared with one device; prints JSON.

A separate program, because the number of devices is fixed once JAX has started.
"""

import dataclasses
import json
import math
import re
import sys
from unittest import mock

import jax
import numpy as np
import optax

from motionaura_jax.core import config
from motionaura_jax.core.trees import path_name
from motionaura_jax.models.autoencoders.mbq_vae import init_tokenizer
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.encoders.config import T5Config
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.models.layers import spectral
from motionaura_jax.ops import attention
from motionaura_jax.parallel import collectives, constraints, mesh, rules
from motionaura_jax.parallel.config import MeshConfig, parse
from motionaura_jax.systems import registry
from motionaura_jax.systems.mbq_vae import MBQVAERecipe, MBQVAESystem
from motionaura_jax.training import groups, state, step
from motionaura_jax.training.checkpoint import snapshot
from tests.systems import tiny

CLIPS, GRID = 8, (4, 6, 4)
_CONSTRAINED = re.compile(r"sharding_constraint .* : tensor<([\dx]+)x(bf16|f32)>")
_FFT = re.compile(r"= (?:c64|f32)\[([\d,]+)\]\S* fft\(")
# Numbers of activation and frequency rows, whole and split over 2, 4 or 8 devices; no parameter has as many.
TOKENS = {96, 48, 24, 12, 49, 50, 25, 52, 26, 13, 56, 28, 14, 7}
SIDE = 20  # frame sizes: 20, 10 and 5 rows and columns in the tokenizer; no parameter has an axis divisible by 5
# With the usual gain, sharp attention amplifies rounding 20-fold: 4e-5 even between two forms on one device.
DENOISER = {
    "width": 64,
    "heads": 8,
    "blocks": 2,
    "vocab_size": 16,
    "text_dim": 16,
    "text_len": 8,
    "mlp_ratio": 2.0,
    "qk_gain": 1.0,
}
MESHES = {
    "text_to_video": {
        "fsdp": ("fsdp:8", {}),
        "tensor": ("data:2,tensor:4", {}),
        "sequence": ("sequence:8", {}),
        "three": ("fsdp:2,tensor:2,sequence:2", {}),
        "folded": ("fsdp:4,tensor:2", {"model": {"folded_training": True}, "train": {"accumulation": 2}}),
    },
    "mbq_vae": {"fsdp": ("fsdp:8", {}), "three": ("data:2,fsdp:2,tensor:2", {})},
}


def build(name, sizes, **changes):
    """Return the system `name` with sections of its recipe changed."""
    if name == "text_to_video":
        values = {**tiny.text_to_video("absent", model=DENOISER), "latent_space": "any"}
    else:
        values = {"system": name, "loss": {"adversarial": 0.1, "adversarial_start": 0.0}}
        values["model"] = {**tiny.TOKENIZER, "channels": [16, 16], "enc_mb": [1, 0], "enc_inc": [0, 1]}
        values["model"] |= {"restart_pool": 16}  # latents of a clip, shared by all devices by design
        values["discriminator"] = {"channels": [8, 16]}
    values["data"] = {**tiny.SIZE, "height": SIDE, "width": SIDE, "batch_size": CLIPS}
    for section, part in changes.items():
        values[section] = {**values.get(section, {}), **part}
    cls = registry.system_class(name)
    return cls(config.build(cls.Recipe, {**values, "mesh": dataclasses.asdict(sizes)}))


def batch_of(system):
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (CLIPS, 4, SIDE, SIDE, 3)).astype(np.float32)
    batch = {"video": video, "sample": np.arange(CLIPS, dtype=np.int32)}
    if system.recipe.system == "mbq_vae":
        return batch
    tokens = rng.integers(0, DENOISER["vocab_size"], (CLIPS, *GRID)).astype(np.int32)
    text = system.conditioners["text"].batch([tiny.CAPTIONS[index % 4] for index in range(CLIPS)])
    return {**batch, "fps": np.full(CLIPS, 8.0, np.float32), "tokens": tokens, "text": text}


# A trace without decay is the gradient itself, which thus becomes part of the state.
DESCENT = optax.chain(optax.trace(0.0), optax.scale(-0.1))


def start(system):
    """Return a perturbed state in host memory; initial gates, and so most gradients, would be zero."""
    begun = jax.device_get(jax.jit(lambda: state.create(system, DESCENT, 0))())
    return dataclasses.replace(begun, params=tiny.perturb(begun.params, 0.03))


def run(system, begun, devices):
    """Run one step of plain gradient descent; return its result, the program text, and the copies of the state in a snapshot."""
    place = mesh.make_mesh(system.recipe.mesh, devices)
    with jax.set_mesh(place):
        shardings = state.shardings(begun, place)
        current = jax.device_put(begun, shardings)
        batch = mesh.spread_batch(place, batch_of(system))
        program = step.make_train_step(system, DESCENT, shardings).lower(current, {}, batch).compile()
        after, metrics = program(current, {}, batch)
        result = {"gradient": after.opt_state[0].trace, "params": after.params, "extra": after.extra}
        return jax.device_get({**result, "loss": metrics["loss"]}), program.as_text(), copies(after)


def copies(current):
    """Return the average copies of each byte in a snapshot of a state; fail if the snapshot differs from the state."""
    copied = jax.tree.leaves(snapshot(current))
    for leaf, copy in zip(jax.tree.leaves(current), copied, strict=True):
        np.testing.assert_array_equal(copy, leaf)
    held = sum(shard.data.nbytes for copy in copied for shard in copy.addressable_shards)
    return held / sum(copy.nbytes for copy in copied)


def largest_differences(ours, theirs):
    """Return the three largest differences between leaves as (difference, path), relative to each leaf's maximum."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    rows = ((float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9)), path_name(path)) for (path, a), b in leaves)
    return sorted(rows, reverse=True)[:3]


def is_activation(name, shape):
    """Return True if an array has an axis of tokens or frame positions, alone or merged with others."""
    if name == "mbq_vae":
        return any(size and size % 5 == 0 for size in shape)
    if len(shape) == 2:  # the rows of several clips, which products on a CPU merge
        return shape[0] in {math.prod(GRID) * CLIPS // parts for parts in (1, 2, 4, 8)}
    return len(shape) > 2 and bool(TOKENS.intersection(shape))


def report(name, labels):
    """Compare with one device that runs the whole batch at once in the plain form."""
    alone = build(name, MeshConfig())
    begun = start(alone)
    whole, _, _ = run(alone, begun, jax.devices()[:1])
    rows = {}
    for label in labels or MESHES[name]:
        sizes, changes = MESHES[name][label]
        parts, program, held = run(build(name, parse(sizes), **changes), begun, jax.devices())
        found = collectives.collectives(program)
        activations = {one.kind for one in found if any(is_activation(name, shape) for shape in one.shapes)}
        rows[label] = {
            "differences": {key: largest_differences(parts[key], whole[key]) for key in parts},
            "activations": sorted(activations),
            "gathered_bytes": collectives.bytes_by_kind(found)["all-gather"],
            "copies": held,
            "parameters": state.parameter_count(begun.params),
        }
    return rows


def transforms():
    """Report the communication of a layer's transforms and their gradient with split tokens, by layer form."""
    rows, width, heads = {}, DENOISER["width"], DENOISER["heads"]
    x = np.random.default_rng(0).standard_normal((2, math.prod(GRID), width)).astype(np.float32)
    for name, half in (("re_fft2", True), ("hartley", False)):
        into = spectral.FoldedInput(("v",), width, half, np.dtype(np.float32), heads)
        out = spectral.FoldedOutput(width, half, np.dtype(np.float32), heads)
        params = into.init(jax.random.key(0), x), out.init(jax.random.key(1), x)

        def change(x, into=into, out=out, params=params):
            value, back = jax.vjp(lambda x: out.apply(params[1], into.apply(params[0], constraints.tokens(x))[0]), x)
            return constraints.tokens(back(jax.numpy.sin(value))[0])

        results = []
        for sizes, devices in (("data:1", jax.devices()[:1]), ("sequence:8", jax.devices())):
            with jax.set_mesh(mesh.make_mesh(parse(sizes), devices)):
                program = jax.jit(change).lower(x).compile()
                results.append(jax.device_get(program(x)))
        found = collectives.collectives(program.as_text())
        kinds, times = {one.kind for one in found}, sum(one.times for one in found)
        difference = float(np.abs(results[1] - results[0]).max())
        rows[name] = {"kinds": sorted(kinds), "times": times, "difference": difference}
    return rows


def folding():
    """Report how folding kernels differs between one device and eight, and the numbers that each transforms, by kind."""
    rows = {}
    for kind in ("re_fft2", "hartley", "filter"):
        settings = {**DENOISER, "blocks": 8, "spectral": kind, "folded_training": True}
        network = SpectralTransformer(SpectralTransformerConfig(**settings))
        params = tiny.perturb(jax.jit(network.init)(jax.random.key(0), *network.example())["params"], 0.1)
        results, sizes = [], []
        for name, devices in (("data:1", jax.devices()[:1]), ("sequence:8", jax.devices())):
            place = mesh.make_mesh(parse(name), devices)
            with jax.set_mesh(place):
                given = jax.device_put(params, rules.shardings(params, place))

                def change(params, network=network):
                    folded, back = jax.vjp(network.for_training, params)
                    return folded, back(jax.tree.map(jax.numpy.cos, folded))

                program = jax.jit(change).lower(given).compile()
                results.append(jax.device_get(program(given)))
            sizes.append(sum(math.prod(map(int, dims.split(","))) for dims in _FFT.findall(program.as_text())))
        rows[kind] = {"difference": largest_differences(results[1], results[0])[0], "transformed": sizes}
    return rows


def half_precision():
    """Report in which dtypes a bfloat16 encoder exchanges its kernels, and how eight devices differ from one.

    The program is read before compilation, because XLA for CPUs exchanges float32 in place of bfloat16.
    """
    model = {**tiny.TOKENIZER, "channels": [16, 32], "dtype": "bfloat16"}
    tokenizer = config.build(MBQVAERecipe, {"system": "mbq_vae", "data": tiny.SIZE, "model": model}).model
    params, extra = jax.device_get(jax.jit(lambda: init_tokenizer(tokenizer, jax.random.key(0)))())
    video = np.random.default_rng(0).uniform(-1, 1, (CLIPS, 4, SIDE, SIDE, 3)).astype(np.float32)
    encode = lambda params, video: Tokenizer(config=tokenizer, params=params, extra=extra).features(video)  # noqa: E731
    results = []
    for sizes, devices in (("data:1", jax.devices()[:1]), ("fsdp:8", jax.devices())):
        place = mesh.make_mesh(parse(sizes), devices)
        with jax.set_mesh(place):
            arguments = jax.device_put(params, rules.shardings(params, place)), mesh.spread_batch(place, video)
            program = jax.jit(encode).lower(*arguments)
            results.append(jax.device_get(program.compile()(*arguments)))
    kernels = {leaf.shape for leaf in jax.tree.leaves(params["network"]["encoder"]) if leaf.ndim == 5}
    found = ((tuple(map(int, dims.split("x"))), dtype) for dims, dtype in _CONSTRAINED.findall(program.as_text()))
    exchanged = {shape: dtype for shape, dtype in found if shape in kernels}
    difference = float(np.abs(results[1] - results[0]).max())
    return {
        "dtypes": sorted(set(exchanged.values())),
        "missing": len(kernels - exchanged.keys()),
        "difference": difference,
    }


def norm():
    """Report the communication of the norm of sharded gradients as GPUs compute it, its value, and that in float64."""
    rng = np.random.default_rng(0)
    sizes = {"head/dense/kernel": (64, 24), "head/norm/scale": (5,), "gain": (8,), "down_0/kernel": (6, 40)}
    tree = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    place = mesh.make_mesh(parse("data:2,fsdp:2,tensor:2"), jax.devices())
    with (
        jax.set_mesh(place),
        mock.patch.object(groups, "on_gpu", lambda: True),
        mock.patch.object(groups, "_SMALL", 300),
    ):
        spread = jax.device_put(tree, rules.shardings(tree, place))
        program = jax.jit(groups.global_norm).lower(spread).compile()
        value = float(program(spread))
    found = collectives.collectives(program.as_text())
    exact = math.sqrt(sum(float(np.square(leaf.astype(np.float64)).sum()) for leaf in jax.tree.leaves(tree)))
    return {"found": [(one.kind, one.shapes) for one in found], "value": value, "exact": exact}


def tower():
    """Report the communication of a published text encoder for a batch of texts, by mesh."""
    network = T5Encoder(T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4))
    ids = np.random.default_rng(0).integers(0, 32, (CLIPS, 12))
    mask = np.ones_like(ids, bool)
    params = network.init(jax.random.key(0), ids, mask)["params"]
    results = []
    for sizes, devices in (("data:1", jax.devices()[:1]), ("fsdp:4,tensor:2", jax.devices())):
        place = mesh.make_mesh(parse(sizes), devices)
        with jax.set_mesh(place):
            arguments = jax.device_put(params, rules.shardings(params, place)), *mesh.spread_batch(place, (ids, mask))
            encode = lambda params, ids, mask: network.apply({"params": constraints.gathered(params)}, ids, mask)  # noqa: E731
            program = jax.jit(encode).lower(*arguments).compile()
            results.append(jax.device_get(program(*arguments)))
        found = [one for one in collectives.collectives(program.as_text()) if any(12 in shape for shape in one.shapes)]
    kinds = {one.kind for one in found}
    difference = float(np.abs(results[1] - results[0]).max())
    return {"kinds": sorted(kinds), "times": sum(one.times for one in found), "difference": difference}


def patches():
    """Report the communication of a tokenizer with patches, loss and gradient, and how eight devices differ from one."""
    model = {**tiny.TOKENIZER, "stem": "haar", "stem_time": 2, "causal": True}
    tokenizer = config.build(MBQVAERecipe, {"system": "mbq_vae", "data": tiny.SIZE, "model": model}).model
    params, extra = jax.device_get(jax.jit(lambda: init_tokenizer(tokenizer, jax.random.key(0)))())
    video = np.random.default_rng(0).uniform(-1, 1, (CLIPS, 5, SIDE, SIDE, 3)).astype(np.float32)
    results = []

    def loss(params, video):
        made = Tokenizer(config=tokenizer, params=params, extra=extra)
        return jax.numpy.square(made.apply("decode", made.features(video)) - video).mean()

    for sizes, devices in (("data:1", jax.devices()[:1]), ("fsdp:4,tensor:2", jax.devices())):
        place = mesh.make_mesh(parse(sizes), devices)
        with jax.set_mesh(place):
            arguments = jax.device_put(params, rules.shardings(params, place)), mesh.spread_batch(place, video)
            program = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
            results.append(jax.device_get(program(*arguments)))
    found = collectives.collectives(program.as_text())
    kinds = {one.kind for one in found if any(is_activation("mbq_vae", shape) for shape in one.shapes)}
    return {"kinds": sorted(kinds), "difference": largest_differences(results[1], results[0])[0]}


def attention_in_parts():
    """Report the communication and error of attention with heads split over devices, computed a few rows at a time."""
    rng, results = np.random.default_rng(0), []
    query, *context = (rng.standard_normal((2, length, 8, 6)).astype(np.float32) for length in (21, 13, 13))
    for sizes, devices in (("data:1", jax.devices()[:1]), ("data:2,tensor:4", jax.devices())):
        place = mesh.make_mesh(parse(sizes), devices)
        split = jax.sharding.NamedSharding(place, jax.P("data", None, "tensor"))
        with jax.set_mesh(place), mock.patch.object(attention, "_CPU_BYTES", 4 * 13 * 16):
            program = (
                jax.jit(attention.attend, in_shardings=split, out_shardings=split).lower(query, *context).compile()
            )
            results.append(jax.device_get(program(*jax.device_put((query, *context), split))))
    kinds = {one.kind for one in collectives.collectives(program.as_text())}
    return {"kinds": sorted(kinds), "difference": float(np.abs(results[1] - results[0]).max())}


def codebook():
    """Report the clips each device encodes at once to initialize a codebook, and how eight devices differ from one."""
    recipe = config.build(MBQVAERecipe, {"system": "mbq_vae", "data": tiny.SIZE, "model": tiny.TOKENIZER})
    system, encode, held, codes = MBQVAESystem(recipe), Tokenizer.features, [], []
    clips = np.random.default_rng(0).uniform(-1, 1, (11, 4, 16, 16, 3)).astype(np.float32)
    params, extra = jax.device_get(jax.jit(system.init)(jax.random.key(0)))

    def watched(self, video):
        note = lambda place: held.append(place.shard_shape(video.shape)[0])  # noqa: E731
        jax.debug.inspect_array_sharding(video, callback=note)
        return encode(self, video)

    for sizes, devices in (("data:1", jax.devices()[:1]), ("data:2,fsdp:4", jax.devices())):
        place = mesh.make_mesh(parse(sizes), devices)
        with jax.set_mesh(place), mock.patch.object(Tokenizer, "features", watched):
            begun = jax.device_put(params, rules.shardings(params, place))
            prepared, _ = system.prepare(begun, extra, iter([{"video": clips}]))
            codes.append(np.asarray(prepared["tokenizer"]["quantizer"]["codebook"]))
    return {"held": held, "difference": float(np.abs(codes[1] - codes[0]).max()), "spread": float(codes[0].std())}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    system, *labels = sys.argv[1:]
    exchanges = {
        "transforms": transforms,
        "attention": attention_in_parts,
        "tower": tower,
        "codebook": codebook,
        "patches": patches,
        "folding": folding,
        "half_precision": half_precision,
        "norm": norm,
    }
    found = {name: part() for name, part in exchanges.items()} if system == "exchanges" else report(system, labels)
    json.dump(found, sys.stdout)
