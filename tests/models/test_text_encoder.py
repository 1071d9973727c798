"""Word tokenizer: ids, truncation, unknown words.  T5 encoder against a numpy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.encoders.config import TextEncoderConfig
from motionaura_jax.models.encoders.t5 import T5Encoder, relative_buckets
from motionaura_jax.models.encoders.text_tokenizers import PAD, UNKNOWN, WordTokenizer, build_vocabulary

CONFIG = TextEncoderConfig(layers=2, heads=2, mlp_ratio=1.5, buckets=8, max_distance=16)
CAPTIONS = ["A red circle, moving", "a red star", "a blue circle"]


def test_the_vocabulary_is_ordered_by_count_and_bounded():
    assert build_vocabulary(CAPTIONS, 100) == ("a", "circle", "red", ",", "blue", "moving", "star")
    assert build_vocabulary(CAPTIONS, 2) == ("a", "circle")


def test_case_width_and_punctuation_do_not_matter():
    words = WordTokenizer(build_vocabulary(CAPTIONS, 100), 8)
    assert words.encode("A  RED circle,moving").ids == words.encode("a red circle , moving").ids
    assert words.encode("\uff52\uff45\uff44").ids == words.encode("red").ids


def test_what_does_not_fit_and_what_is_unknown_is_told():
    words = WordTokenizer(build_vocabulary(CAPTIONS, 100), 3)
    encoded = words.encode("a Zebra red, Circle <unk>")
    assert encoded.ids == [2, UNKNOWN, 4] and encoded.unknown == ("Zebra",) and encoded.cut == ", Circle <unk>"
    assert words.encode("").ids == [] and words.encode("a red star").cut == ""


def test_a_batch_is_padded_and_decodes():
    words = WordTokenizer(build_vocabulary(CAPTIONS, 100), 5)
    ids = words.batch(["a red star", ""])
    assert ids.shape == (2, 5) and ids.dtype == np.int32 and (ids[1] == PAD).all()
    assert words.decode(ids[0]) == "a red star" and words.batch([]).shape == (0, 5)


@given(st.text(max_size=30))
def test_any_text_encodes_within_the_limit(text):
    words = WordTokenizer(("a", "b"), 4)
    encoded = words.encode(text)
    assert len(encoded.ids) <= 4 and all(0 < index < words.size for index in encoded.ids) and text.endswith(encoded.cut)


def test_near_distances_have_their_own_bias_and_far_ones_share():
    table = relative_buckets(40, 8, 16)
    assert (np.diag(table) == 0).all() and table[1, 0] == 1 and table[0, 1] == 5
    assert table[39, 0] == 3 and table[0, 39] == 7 and table.min() == 0 and table.max() == 7
    np.testing.assert_array_equal(table[5:, 5:], table[:-5, :-5])


@pytest.fixture(scope="module")
def encoder():
    network = T5Encoder(CONFIG.t5(10, 8), scanned=False)
    ids = jnp.array([[3, 4, 5, 0, 0], [7, 3, 2, 9, 4], [0, 0, 0, 0, 0]])
    return network, jax.jit(network.init)(jax.random.key(0), ids), ids


def test_the_encoder_is_t5(encoder):
    network, variables, ids = encoder
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    expected = [numpy_t5(p, np.asarray(row)) for row in ids[:2]]
    actual = np.asarray(jax.jit(network.apply)(variables, ids))
    np.testing.assert_allclose(actual[0, :3], expected[0][:3], atol=2e-5)
    np.testing.assert_allclose(actual[1], expected[1], atol=2e-5)


def numpy_t5(p, ids):
    """Encode one sequence without padding in float64."""
    ids = ids[ids != PAD]
    bias = p["relative_bias"][relative_buckets(len(ids), 8, 16)]
    x = p["embedding"][ids]
    norm = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale  # noqa: E731
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    for layer in range(2):
        a, y = p[f"attention_{layer}"], norm(x, p[f"attention_norm_{layer}"]["scale"])
        query, key, value = (np.einsum("ld,dhc->lhc", y, a[name]["kernel"]) for name in ("query", "key", "value"))
        scores = np.exp(np.einsum("qhc,khc->qkh", query, key) + bias)
        mixed = np.einsum("qkh,khc->qhc", scores / scores.sum(1, keepdims=True), value)
        x = x + np.einsum("qhc,hcd->qd", mixed, a["output"]["kernel"])
        m, y = p[f"mlp_{layer}"], norm(x, p[f"mlp_norm_{layer}"]["scale"])
        x = x + (gelu(y @ m["gate"]["kernel"]) * (y @ m["up"]["kernel"])) @ m["out"]["kernel"]
    return norm(x, p["norm"]["scale"])


def test_stacked_and_numbered_layers_compute_the_same(encoder):
    """The published form scans over stacked layers; checkpoints with a trained encoder have one name per layer."""
    network, variables, ids = encoder
    params = variables["params"]
    parts = ("attention", "attention_norm", "mlp", "mlp_norm")
    stacked = {
        name: jax.tree.map(lambda *x: jnp.stack(x), *(params[f"{name}_{i}"] for i in range(2))) for name in parts
    }
    shared = {name: params[name] for name in ("embedding", "relative_bias", "norm")}
    scanned = T5Encoder(network.config)
    found = jax.jit(scanned.apply)({"params": {**shared, "blocks": stacked}}, ids)
    np.testing.assert_allclose(found, jax.jit(network.apply)(variables, ids), atol=1e-5)


def test_padding_changes_nothing_and_an_empty_text_is_finite(encoder):
    network, variables, ids = encoder
    apply = jax.jit(network.apply)
    np.testing.assert_allclose(apply(variables, ids)[0, :3], apply(variables, ids[:1, :3])[0], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda v: network.apply(v, ids).sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((apply(variables, ids), gradient)))


def test_order_matters_and_every_parameter_learns(encoder):
    network, variables, ids = encoder
    pooled = jax.jit(lambda ids: network.apply(variables, ids)[1].mean(0))
    assert np.abs(pooled(ids) - pooled(ids[:, ::-1])).max() > 1e-4
    gradient = jax.jit(jax.grad(lambda v: jnp.square(network.apply(v, ids)[:, 1] - 1).sum()))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("change", [{"layers": 0}, {"buckets": 6}, {"max_distance": 2}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(UserError, match="must be"):
        TextEncoderConfig(**{"buckets": 8, **change})
