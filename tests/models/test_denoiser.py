"""The spectral transformer: a float64 reference of the paper's block, conditioning, text, counts, precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Cond
from motionaura_jax.models.denoisers.config import FAITHFUL, PRESETS, SpectralTransformerConfig, preset
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer

SMALL = {"vocab_size": 11, "width": 12, "heads": 2, "blocks": 2, "text_dim": 3, "text_len": 4, "mlp_ratio": 2.0}
GRID = (2, 3, 1)


def small(**overrides) -> SpectralTransformerConfig:
    return preset("tiny", **{**SMALL, **overrides})


def text(length: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, length, 3)).astype(np.float32)


def condition(tokens=None, mask=None) -> Cond:
    return Cond(tokens=tokens, token_mask=mask, scalars={"fps": np.array([8.0, 24.0], np.float32)})


TOKENS = np.random.default_rng(1).integers(0, 12, (2, *GRID))
TIME = np.array([0.25, 0.75], np.float32)


def random_params(config: SpectralTransformerConfig):
    """Return random values for all parameters, gates and gains included, so that no path is off."""
    model, rng = SpectralTransformer(config), np.random.default_rng(2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, TIME, condition(text()))["params"]
    return jax.tree.map(lambda s: 0.5 * rng.standard_normal(s.shape).astype(np.float32), shapes)


def logits(config, params, cond, tokens=TOKENS, time=TIME, memory=None):
    model = SpectralTransformer(config)
    return np.asarray(jax.jit(model.apply)({"params": params}, tokens, time, cond, memory).dense())


class Reference:
    """The faithful network in numpy float64, from equations 2-5, with Fourier transforms as matrices."""

    def __init__(self, config, params):
        self.config, self.params = config, jax.tree.map(lambda x: x.astype(np.float64), params)

    @staticmethod
    def fourier(n):
        return np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / n**0.5

    def transform(self, x, weight=(1.0, 0.0), inverse=False):
        rows, columns = (self.fourier(n) for n in x.shape)
        if inverse:
            rows, columns = rows.conj(), columns.conj()
        return ((weight[0] + 1j * weight[1]) * (rows @ x @ columns)).real

    @staticmethod
    def norm(x, affine=None):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x if affine is None else x * affine["scale"] + affine["bias"]

    @staticmethod
    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    @staticmethod
    def gelu(x):
        return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))

    @staticmethod
    def silu(x):
        return x / (1 + np.exp(-x))

    def attend(self, query, key, value, gain, rope):
        heads, width = self.config.heads, self.config.head_dim
        out = []
        for head in range(heads):
            q, k, v = (x[:, head * width : (head + 1) * width] for x in (query, key, value))
            q, k = (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) for x in (q, k))
            if rope:
                angle = np.outer(np.arange(len(q)), 10000.0 ** (-np.arange(0, width, 2) / width))
                q, k = ((x[:, : width // 2] + 1j * x[:, width // 2 :]) * np.exp(1j * angle) for x in (q, k))
                scores = (q @ k.conj().T).real
            else:
                scores = q @ k.T
            weights = np.exp(gain[head] * scores / width**0.5)
            out.append(weights @ v / weights.sum(-1, keepdims=True))
        return np.concatenate(out, -1)

    def scalar(self, x, layer):
        phase = x * 10000.0 ** (-np.arange(128) / 128)
        features = np.concatenate([np.cos(phase), np.sin(phase)])
        return self.dense(self.silu(self.dense(features, layer["in"])), layer["out"])

    def block(self, z, b, encoded, vectors):
        s1, c1, s2, c2, s3, c3, g3 = vectors
        own, cross, text = b["self_attention"], b["cross_attention"], encoded
        adapted = self.norm(z) * (1 + c1) + s1
        spectrum = self.transform(adapted)
        q, k, v = (spectrum @ own["into"][name] for name in "qkv")
        attended = self.attend(q, k, v, own["gain"], True) @ own["out"]["o"]
        z = self.norm(self.transform(attended, inverse=True), b["self_norm"]) + adapted
        q = self.transform(z, cross["into"]["filter"]) @ cross["into"]["q"]
        attended = self.attend(q, *text, cross["gain"], False) @ cross["out"]["o"]
        crossed = self.norm(self.transform(attended, inverse=True), b["cross_norm"])
        z = crossed + self.norm(z) * (1 + c2) + s2
        hidden = self.gelu(self.dense(self.norm(z) * (1 + c3) + s3, b["mlp"]["in"]))
        return z + g3 * self.dense(hidden, b["mlp"]["out"])

    def __call__(self, tokens, time, features, fps):
        p, config = self.params, self.config
        table = np.concatenate([p["embedding"]["table"], p["embedding"]["mask"][None]])
        z = table[tokens.reshape(-1)]
        c = self.scalar(64 * np.log2(fps), p["condition"]["fps"]) + self.scalar(1000 * time, p["condition"]["time"])
        shared = self.dense(self.silu(c), p["condition"]["project"])
        content = np.zeros((config.text_len, config.width))
        content[: len(features)] = self.dense(features, p["text"]["project"])
        for i in range(config.blocks):
            b = jax.tree.map(lambda x, i=i: x[i], p["trunk"]["blocks"])
            t = jax.tree.map(lambda x, i=i: x[i], p["text"]["blocks"])
            encoded = [self.transform(content, t[f"{n}_input"]["filter"]) @ t[f"{n}_input"][n] for n in "kv"]
            z = self.block(z, b, encoded, np.split(shared + b["modulation"]["table"], 7))
        z = self.gelu(self.dense(self.norm(z, p["head"]["norm"]), p["head"]["dense"]))
        z = self.norm(z, p["head"]["output_norm"]) if config.head_norm else z
        logits = z @ p["embedding"]["table"].T + (p["head"]["bias"] if config.output_bias else 0)
        return logits.reshape(*tokens.shape, -1)


@pytest.mark.parametrize("options", [{}, {"head_norm": True, "output_bias": True}])
def test_faithful_network_equals_a_float64_reference(options):
    config = small(**FAITHFUL, **options)
    params = random_params(config)
    reference = Reference(config, params)
    features, fps = text(), (8.0, 24.0)
    expected = np.stack([reference(TOKENS[i], float(TIME[i]), features[i], fps[i]) for i in range(2)])
    got = logits(config, params, condition(features))
    assert got.dtype == np.float32 and got.shape == (2, *GRID, 11)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("S", 906), ("M", 1961), ("L", 3065), ("S_paper_width", 312), ("M_paper_width", 1961),
        ("L_paper_width", 10210), ("L_paper_width_slim", 3070), ("S_paper_width_fat", 883),
    ],
)  # fmt: skip
def test_parameter_counts(name, millions):
    """The published counts .89, 1.94 and 3.12 B within 2 % for S, M and L."""
    assert "vocab_size" in PRESETS[name]
    tokens, time = jax.ShapeDtypeStruct((1, 2, 2, 2), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = Cond(scalars={"fps": jax.ShapeDtypeStruct((1,), jnp.float32)})
    shapes = jax.eval_shape(SpectralTransformer(preset(name)).init, jax.random.key(0), tokens, time, cond)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert abs(count / millions - 1) < 0.02
    published = {"S": 890, "M": 1940, "L": 3120}
    assert name not in published or abs(count / published[name] - 1) < 0.02


def test_identity_blocks_start_as_the_identity():
    """AdaLN-zero: after `init`, the logits at a position do not depend on text, time or other tokens."""
    config = small(abs_pos=False)
    model = SpectralTransformer(config)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS, TIME, condition(text()))["params"]
    base = logits(config, params, condition(text()))
    np.testing.assert_array_equal(logits(config, params, condition(text(seed=5)), time=1 - TIME), base)
    other = np.where(np.arange(3)[:, None] == 0, TOKENS, 11 - TOKENS)
    changed = logits(config, params, condition(text()), tokens=other)
    np.testing.assert_allclose(changed[:, :, 0], base[:, :, 0], atol=1e-6)
    assert np.abs(base).max() > 0


@pytest.mark.parametrize("cross_spectral", [True, False])
def test_text_padding_and_null(cross_spectral):
    """Padding never matters; an absent text becomes the learned null, alone or next to a sample with text."""
    config = small(cross_spectral=cross_spectral)
    params = random_params(config)
    model = SpectralTransformer(config)
    encode = jax.jit(lambda cond: model.apply({"params": params}, cond, method="encode_cond"))

    def equal(a, b):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)

    features, mask = text(4), np.array([[True, True, False, False], [False] * 4])
    mixed, null = encode(condition(features, mask)), encode(condition())
    assert (mixed.mask is None) == cross_spectral
    equal(encode(condition(np.where(mask[..., None], features, 7.0).astype(np.float32), mask)), mixed)
    equal(encode(condition(features[:, :2], mask[:, :2])), mixed)
    equal([x[:, 0] for x in encode(condition(features[:, :2]))[:2]], [x[:, 0] for x in mixed[:2]])
    equal([x[:, 1] for x in mixed[:2]], [x[:, 0] for x in null[:2]])
    assert all(np.isfinite(x).all() for x in mixed[:2])
    assert np.abs(mixed.values[:, 0] - null.values[:, 0]).max() > 0.01


def test_options_of_the_head_start_as_a_norm_without_a_bias():
    shapes = {
        name: jax.eval_shape(
            SpectralTransformer(small(**options)).init, jax.random.key(0), TOKENS, TIME, condition(text())
        )
        for name, options in {"plain": {}, "norm": {"head_norm": True}, "bias": {"output_bias": True}}.items()
    }
    heads = {name: set(found["params"]["head"]) for name, found in shapes.items()}
    assert heads == {
        "plain": {"norm", "dense"}, "norm": {"norm", "dense", "output_norm"}, "bias": {"norm", "dense", "bias"}
    }  # fmt: skip


def test_without_a_learned_null_a_missing_text_is_zero():
    config = small(learned_null=False)
    params = random_params(config)
    assert "null" not in params["text"]
    encode = functools.partial(SpectralTransformer(config).apply, {"params": params}, method="encode_cond")
    found = encode(condition(text(), np.array([[True, True, False], [False] * 3])))
    zero = {**params, "text": {**params["text"], "project": jax.tree.map(np.zeros_like, params["text"]["project"])}}
    silent = SpectralTransformer(config).apply({"params": zero}, condition(text()), method="encode_cond")
    np.testing.assert_allclose(found.values[:, 1], silent.values[:, 1], atol=1e-6)
    assert np.abs(found.values[:, 0] - found.values[:, 1]).max() > 0.01


@pytest.mark.parametrize("cross_spectral", [True, False])
def test_encoded_text_replaces_the_text(cross_spectral):
    """Keys and values are computed once per prompt; those of one sample serve the whole batch."""
    config = small(cross_spectral=cross_spectral)
    params = random_params(config)
    one = condition(np.tile(text(2)[:1], (2, 1, 1)))
    encode = jax.jit(functools.partial(SpectralTransformer(config).apply, method="encode_cond"))
    memory = encode({"params": params}, Cond(tokens=one.tokens[:1]))
    assert memory.keys.shape == (2, 1, 4, 2, 6)
    np.testing.assert_allclose(
        logits(config, params, condition(), memory=memory), logits(config, params, one), atol=1e-4
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {"spectral": "none", "cross_spectral": False, "adaln": "perblock", "heads": 3, "residual": "paper"},
        {"spectral": "hartley3d", "adaln": "lowrank256", "attention_ratio": 0.5, "heads": 1},
        {"spectral": "seq_hartley", "rope": "sinusoidal", "time_cond": False, "abs_pos": False},
        {"spectral": "filter", "qk_gain": 1.0},
    ],
)
def test_variants_use_everything_they_are_given(overrides):
    """Every parameter gets a gradient, and logits depend on tokens, positions, text, frame rate, and time if enabled."""
    config = small(**overrides)
    params = random_params(config)
    model = SpectralTransformer(config)

    @jax.jit
    def gradients(params, time, features, fps):
        def loss(params, time, features, fps):
            cond = Cond(tokens=features, token_mask=jnp.array([[True] * 3, [False] * 3]), scalars={"fps": fps})
            logits = model.apply({"params": params}, tokens, time, cond).dense()
            return jnp.sum(jnp.sin(logits)), logits

        return jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(params, time, features, fps)

    tokens = TOKENS.copy()
    tokens[:, :, 1:] = config.vocab_size
    rates = np.array([8.0, 24.0], np.float32)
    (of_params, of_time, of_text, of_fps), values = gradients(params, TIME, text(), rates)
    silent = [path for path, g in jax.tree.leaves_with_path(of_params) if not np.abs(g).max() > 0]
    assert silent == []
    assert (np.abs(of_time) > 0).all() == config.time_cond
    assert (np.abs(of_fps) > 0).all()
    assert np.abs(of_text[0]).max() > 0 and np.abs(of_text[1]).max() == 0
    assert np.abs(np.diff(values[:, :, 1:], axis=2)).max() > 1e-3


def test_loop_and_recomputation_change_nothing():
    base = small(spectral="none", cross_spectral=False)
    params = random_params(base)

    def gradient(config):
        model = SpectralTransformer(config)
        inputs = TOKENS, TIME, condition(text())
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, *inputs).dense()))))(params)

    expected = gradient(base)
    # `offload` recomputes what `dots` does.
    for overrides in ({"scan": False, "remat": "full"}, {"remat": "offload"}):
        got = gradient(dataclasses.replace(base, **overrides))
        jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, atol=1e-3, rtol=1e-3), expected, got)


def test_odd_grids_share_parameters():
    config = small()
    tokens = np.zeros((1, 3, 1, 5), int)
    cond = Cond(scalars={"fps": np.array([8.0], np.float32)})
    assert logits(config, random_params(config), cond, tokens=tokens, time=TIME[:1]).shape == (1, 3, 1, 5, 11)


@pytest.mark.parametrize(
    "overrides",
    [{"spectral": "dct"}, {"heads": 5}, {"rope": "axial"}, {"rope": "signed", "spectral": "none"}, {"blocks": 0}],
)
def test_bad_settings_are_named(overrides):
    with pytest.raises(UserError, match=f"SpectralTransformerConfig.{next(iter(overrides))}="):
        small(**overrides)


def test_bad_inputs_are_named():
    config = small()
    init = SpectralTransformer(config).init
    with pytest.raises(UserError, match="fps"):
        jax.eval_shape(init, jax.random.key(0), TOKENS, TIME, Cond())
    with pytest.raises(UserError, match=r"5 positions of width 3.*text_len"):
        jax.eval_shape(init, jax.random.key(0), TOKENS, TIME, condition(text(5)))
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        preset("tinny")
