"""Folded kernels give the values and gradients of the unfolded network with less work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.types import Cond
from motionaura_jax.models.denoisers.config import FAITHFUL, preset
from motionaura_jax.models.denoisers.fold import fold
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.layers import spectral

F32 = jnp.dtype("float32")


def layers(kind, names, learned, width, dtype=F32):
    """Return the projections around attention, unfolded and folded, and random parameters for `fold`."""
    inner, grid = 6, (1, 1, 1)
    direct = (
        spectral.SpectralInput(names, inner, kind, grid, learned, dtype),
        spectral.SpectralOutput(width, kind, grid, dtype),
    )
    folded = (
        spectral.FoldedInput(names, inner, kind == "re_fft2" and not learned, dtype),
        spectral.FoldedOutput(width, kind != "hartley", dtype),
    )
    rng = np.random.default_rng(width)
    into = {name: rng.standard_normal((1, width, inner)).astype(np.float32) for name in names}
    if learned:
        into["filter"] = rng.standard_normal((1, 2, width)).astype(np.float32)
    attention = {"into": into, "out": {"o": rng.standard_normal((1, inner, width)).astype(np.float32)}}
    return direct, folded, attention


def apply(modules, params, x, order=slice(None)):
    """Return inputs in natural order, and the output for one of them with its rows reordered by `order`."""
    into, out = (jax.tree.map(lambda p: p[0], params[name]) for name in ("into", "out"))
    projected = modules[0].apply({"params": into}, x)
    return projected, modules[1].apply({"params": out}, projected[0][:, order])


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        *(("re_fft2", size) for size in [(6, 8), (7, 8), (6, 9), (5, 7), (1, 4)]),
        *((layer, size) for layer in ("hartley", "filter", "cross_attention") for size in [(6, 8), (7, 9)]),
    ],
)
def test_layers_are_equal(layer, size):
    """Compare values and all gradients, for even and odd lengths and widths."""
    length, width = size
    cross = layer == "cross_attention"
    kind, names = ("re_fft2", ("q",)) if cross else (layer, ("q", "k", "v"))
    direct, folded, params = layers(kind, names, cross or kind == "filter", width)
    place = "cross_attention" if cross else "self_attention"
    config = preset("tiny", width=16, heads=2, spectral=kind, cross_spectral=cross)
    tree = {"self_attention": layers(kind, ("q", "k", "v"), kind == "filter", width)[2], place: params}
    x = np.random.default_rng(0).standard_normal((2, length, width)).astype(np.float32)
    order = spectral.paired_order(length)
    natural = np.argsort(order)

    def unfolded(tree, x):
        return apply(direct, tree[place], x)

    def merged(tree, x):
        params = fold({"trunk": {"blocks": tree}}, config)["trunk"]["blocks"][place]
        projected, out = apply(folded, params, x)
        return tuple(y[:, natural] for y in projected), out

    @jax.jit
    def both(tree, x):
        (a, transpose), (b, other) = jax.vjp(unfolded, tree, x), jax.vjp(merged, tree, x)
        seed = jax.tree.map(jnp.cos, a)
        return (a, transpose(seed)), (b, other(seed))

    expected, got = both(tree, x)
    jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, atol=1e-4), expected, got)


def network(config, grid=(2, 3, 1)):
    model = SpectralTransformer(config)
    rng = np.random.default_rng(0)
    x = rng.integers(0, config.vocab_size + 1, (2, *grid))
    tokens = rng.standard_normal((2, 3, config.text_dim)).astype(np.float32)
    cond = Cond(tokens=tokens, scalars={"fps": np.array([8.0, 24.0], np.float32)})
    inputs = x, np.array([0.2, 0.9], np.float32), cond
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    return model, params, inputs


SMALL = {"vocab_size": 11, "width": 12, "heads": 2, "blocks": 2, "text_dim": 3, "text_len": 4, "mlp_ratio": 1.0}


@pytest.mark.parametrize("overrides", [FAITHFUL, {"spectral": "hartley"}])
def test_networks_are_equal(overrides):
    """Compare logits and parameter gradients through `fold`, as in a training step that folds inside its loss."""
    config = preset("tiny", **{**SMALL, **overrides})
    model, params, inputs = network(config)
    folded = SpectralTransformer(config, folded=True)

    def loss(apply):
        return lambda p: (jnp.sum(jnp.sin(logits := apply(p))), logits)

    @jax.jit
    def both(params):
        a = jax.grad(loss(lambda p: model.apply({"params": p}, *inputs).dense()), has_aux=True)(params)
        b = jax.grad(loss(lambda p: folded.apply({"params": fold(p, config)}, *inputs).dense()), has_aux=True)(params)
        return a, b

    (gradient, logits), (other, others) = both(params)
    np.testing.assert_allclose(others, logits, atol=1e-4)
    jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, atol=2e-3, rtol=1e-3), gradient, other)


EVEN, ODD = ((2, 3, 1), {}), ((3, 3, 1), {"width": 9, "attention_ratio": 8 / 9})


@pytest.mark.parametrize(
    ("overrides", "shape"),
    [(FAITHFUL, EVEN), (FAITHFUL, ODD), ({"spectral": "hartley"}, ODD), ({"spectral": "filter"}, EVEN)],
    ids=str,
)
def test_half_precision_stays_close(overrides, shape):
    """For even and odd sequence and width."""
    grid, size = shape
    config = preset("tiny", **{**SMALL, **overrides, **size}, dtype="bfloat16")
    model, params, inputs = network(config, grid)
    exact = SpectralTransformer(dataclasses.replace(config, dtype="float32"))
    folded = SpectralTransformer(config, folded=True)

    @jax.jit
    def all_three(p):
        return [m.apply({"params": q}, *inputs).dense() for m, q in ((exact, p), (model, p), (folded, fold(p, config)))]

    reference, direct, merged = all_three(params)
    assert direct.dtype == merged.dtype == jnp.float32
    scale = float(jnp.std(reference))
    assert np.abs(direct - reference).max() < 0.15 * scale
    assert np.abs(merged - reference).max() < 0.15 * scale


def test_other_kinds_come_back_unchanged():
    config = preset("tiny", **SMALL, spectral="hartley3d")
    _, params, _ = network(config)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, params, fold(params, config)))


def test_self_attention_projections_take_half_of_the_work():
    """Performance.md 2.2: XLA counts about half of the operations of plain projections, transforms included."""
    length, width, grid = 256, 256, (1, 1, 256)
    names = ("q", "k", "v")
    plain = (
        spectral.SpectralInput(names, width, "none", grid, False, F32),
        spectral.SpectralOutput(width, "none", grid, F32),
    )
    half = spectral.FoldedInput(names, width, True, F32), spectral.FoldedOutput(width, True, F32)
    x = jax.ShapeDtypeStruct((1, length, width), F32)

    def operations(modules):
        params = [jax.eval_shape(module.init, jax.random.key(0), x) for module in modules]

        def around_attention(params, x):
            q, k, v = modules[0].apply(params[0], x)
            return modules[1].apply(params[1], q + k + v)

        return jax.jit(around_attention).lower(params, x).compile().cost_analysis()["flops"]

    assert operations(half) < 0.6 * operations(plain)
