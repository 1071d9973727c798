"""Adapters: the formula in float64, initial values, the folded form, and merging without an activation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import merge, partition
from motionaura_jax.models.denoisers.block import Mlp
from motionaura_jax.models.denoisers.config import preset
from motionaura_jax.models.denoisers.fold import fold
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.layers import spectral
from motionaura_jax.models.layers.config import LoraConfig
from tests.models.test_fold import SMALL, network

KINDS = ("re_fft2", "hartley", "hartley3d", "seq_hartley", "filter", "none")
GRIDS = {"even": (2, 3, 1), "odd": (3, 3, 1)}
F32 = jnp.dtype("float32")
WHOLE = LoraConfig(rank=3, targets=("q", "k", "v", "o"))


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def fourier(x, kind, grid, weight=None):
    """Return Re(w F x) from the definition, `(s, d)` in float64."""
    if kind == "none":
        return x
    axes = {"hartley3d": (0, 1, 2, 3), "seq_hartley": (0,)}.get(kind, (0, 1))
    shaped = x.reshape(*grid, -1) if kind == "hartley3d" else x
    bins = np.fft.fftn(shaped, axes=axes, norm="ortho").reshape(x.shape)
    fixed = 1.0 if kind in ("re_fft2", "filter") else 1 + 1j
    return ((fixed if weight is None else weight[0] + 1j * weight[1]) * bins).real


def adapted(x, p, name):
    """Return L(x) + W_up GELU(W_down x)."""
    return x @ p[name] + gelu(x @ p[f"{name}_lora_down"]) @ p[f"{name}_lora_up"]


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_adapters_are_the_formula_on_what_the_projections_see(kind, size):
    grid, width, inner, learned = GRIDS[size], 9 if size == "odd" else 12, 8, kind == "filter"
    into = spectral.SpectralInput(("q", "k", "v"), inner, kind, grid, learned, F32, lora=LoraConfig(rank=3))
    out = spectral.SpectralOutput(width, kind, grid, F32, lora=WHOLE)
    rng = np.random.default_rng(0)
    x, heads = (rng.standard_normal((np.prod(grid), n)).astype(np.float32) for n in (width, inner))

    def filled(module, x):
        shapes = jax.eval_shape(module.init, jax.random.key(0), x[None])["params"]
        return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)

    params = filled(into, x), filled(out, heads)
    assert not any(name.startswith("v_lora") for name in params[0])
    (q, k, _), o = jax.jit(
        lambda params: (into.apply({"params": params[0]}, x[None]), out.apply({"params": params[1]}, heads[None]))
    )(params)
    wide, last = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    seen = fourier(x.astype(np.float64), kind, grid, wide.get("filter"))
    np.testing.assert_allclose(q[0], adapted(seen, wide, "q"), atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(k[0], adapted(seen, wide, "k"), atol=1e-4, rtol=1e-5)
    left = fourier(adapted(heads.astype(np.float64), last, "o"), kind, grid)
    np.testing.assert_allclose(o[0], left, atol=1e-4, rtol=1e-5)


def test_the_adapter_of_the_mlp_reads_its_output():
    rng, mlp = np.random.default_rng(0), Mlp(7, F32, LoraConfig(rank=3))
    x = rng.standard_normal((1, 4, 5)).astype(np.float32)
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    p = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    y = gelu(x @ p["in"]["kernel"] + p["in"]["bias"]) @ p["out"]["kernel"] + p["out"]["bias"]
    expected = y + gelu(y @ p["lora_down"]) @ p["lora_up"]
    np.testing.assert_allclose(jax.jit(mlp.apply)({"params": params}, x), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("kind", spectral.FOLDED_KINDS)
def test_folded_layers_are_equal(kind, size):
    """Compare values and all gradients, adapters included; rows of folded layers are in `paired_order`."""
    grid, width, learned = GRIDS[size], 9 if size == "odd" else 12, kind == "filter"
    names, common = ("q", "k", "v"), {"dtype": F32, "lora": WHOLE}
    direct = (
        spectral.SpectralInput(names, 8, kind, grid, learned, **common),
        spectral.SpectralOutput(width, kind, grid, **common),
    )
    folded = (
        spectral.FoldedInput(names, 8, kind == "re_fft2", **common),
        spectral.FoldedOutput(width, kind != "hartley", **common),
    )
    config = preset("tiny", width=16, heads=2, spectral=kind, cross_spectral=False)
    rng, length = np.random.default_rng(0), int(np.prod(grid))
    x, heads = (rng.standard_normal((1, length, n)).astype(np.float32) for n in (width, 8))
    shapes = [jax.eval_shape(m.init, jax.random.key(0), y)["params"] for m, y in zip(direct, (x, heads), strict=True)]
    params = jax.tree.map(lambda s: 0.5 * rng.standard_normal((1, *s.shape)).astype(np.float32), shapes)
    order = spectral.paired_order(length)

    def apply(modules, into, out, rows):
        into, out = jax.tree.map(lambda leaf: leaf[0], (into, out))
        q, k, v = modules[0].apply({"params": into}, x)
        return q, k, v, modules[1].apply({"params": out}, (q * k + v)[:, rows])

    def unfolded(into, out):
        return apply(direct, into, out, slice(None))

    def merged(into, out):
        attention = {"into": into, "out": out}
        found = fold({"trunk": {"blocks": {"self_attention": attention}}}, config)["trunk"]["blocks"]["self_attention"]
        *projected, left = apply(folded, found["into"], found["out"], slice(None))
        return *(y[:, np.argsort(order)] for y in projected), left

    @jax.jit
    def both(into, out):
        (a, transpose), (b, other) = jax.vjp(unfolded, into, out), jax.vjp(merged, into, out)
        seed = jax.tree.map(jnp.cos, a)
        return (a, transpose(seed)), (b, other(seed))

    expected, got = both(*params)
    jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, atol=2e-4, rtol=1e-4), expected, got)


def test_a_fresh_adapter_changes_no_bit_and_is_drawn_like_the_frozen_weights():
    base = preset("tiny", **{**SMALL, "width": 48})
    model, params, inputs = network(base)
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, params)
    config = preset("tiny", **{**SMALL, "width": 48, "lora": LoraConfig(rank=24)})
    grown = SpectralTransformer(config)

    grow = functools.partial(grown.apply, rngs={"params": jax.random.key(0)}, mutable="params")
    new = jax.jit(grow)({"params": shifted}, *inputs)[1]["params"]
    with jax.disable_jit():  # separate programs may round the same sums differently
        both = (grown.apply({"params": new}, *inputs), model.apply({"params": shifted}, *inputs))
        np.testing.assert_array_equal(*(prediction.dense() for prediction in both))
    fresh, kept = partition(new, "lora_")
    jax.tree.map(np.testing.assert_array_equal, kept, shifted)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(partition(fresh, "lora_up")[0]))
    blocks = new["trunk"]["blocks"]
    pairs = [(blocks["self_attention"]["into"][f"{n}_lora_down"], blocks["self_attention"]["into"][n]) for n in "qk"]
    pairs.append((blocks["mlp"]["lora_down"], blocks["mlp"]["out"]["kernel"]))
    for down, kernel in pairs:
        for one, frozen in zip(down, kernel, strict=True):  # every block has its own
            assert abs(one.mean() - frozen.mean()) < 4 * frozen.std() / one.size**0.5
            assert abs(one.std() / frozen.std() - 1) < 0.1


def merged(params):
    """Return equivalent weights without adapters; the adapters must have no activation."""
    if not isinstance(params, dict):
        return params
    lora = {name: np.asarray(value) for name, value in params.items() if "lora_" in name}
    rest = {name: merged(value) for name, value in params.items() if name not in lora}
    for name in lora:
        if name == "lora_down":
            change = np.eye(lora["lora_up"].shape[-1]) + lora["lora_down"] @ lora["lora_up"]
            bias = np.einsum("ni,nio->no", rest["out"]["bias"], change)
            rest["out"] = {"kernel": rest["out"]["kernel"] @ change, "bias": bias}
        elif name.endswith("_lora_down"):
            target = name.removesuffix("_lora_down")
            rest[target] = rest[target] + lora[name] @ lora[f"{target}_lora_up"]
    return rest


@pytest.mark.parametrize("folded", [False, True])
def test_linear_adapters_merge_into_the_weights(folded):
    """Compare whole networks, plain and folded, which also catches errors outside the formula."""
    lora = LoraConfig(rank=3, targets=("q", "k", "v", "o"), activation="none")
    config = preset("tiny", **SMALL, lora=lora)
    _, params, inputs = network(config)
    plain, model = SpectralTransformer(preset("tiny", **SMALL)), SpectralTransformer(config, folded=folded)
    closed = jax.tree.map(np.float32, merged(params))
    assert not partition(closed, "lora_")[0]
    found = jax.jit(lambda p: model.apply({"params": fold(p, config) if folded else p}, *inputs).dense())(params)
    np.testing.assert_allclose(found, jax.jit(plain.apply)({"params": closed}, *inputs).dense(), atol=2e-4)


def test_ranks_that_are_no_low_rank_and_unknown_targets_are_refused():
    with pytest.raises(UserError, match=r"SpectralTransformerConfig.lora.rank=12: must be below the 12 channels"):
        preset("tiny", **SMALL, lora=LoraConfig(rank=12))
    with pytest.raises(UserError, match=r"LoraConfig.targets\[1\]='w'"):
        LoraConfig(targets=("q", "w"))
    with pytest.raises(UserError, match="adapters need targets"):
        LoraConfig(rank=8, targets=(), mlp=False)


def test_trees_are_partitioned_by_name_and_merged_again():
    tree = {"a": {"lora_up": 1, "b": 2}, "empty": {}, "c": {"lora_down": 3}}
    chosen, rest = partition(tree, "lora_(up|down)$")
    assert chosen == {"a": {"lora_up": 1}, "c": {"lora_down": 3}}
    assert rest == {"a": {"b": 2}, "empty": {}}
    assert merge(rest, chosen) == tree and partition(tree, lambda name: name == "a/b")[0] == {"a": {"b": 2}}
    assert merge(tree, {"a": {"b": 5}}) == {**tree, "a": {"lora_up": 1, "b": 5}}
