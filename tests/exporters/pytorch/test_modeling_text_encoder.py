"""The exported text encoder matches ours, and its tokenizer splits words as in training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.models.encoders.config import TextEncoderConfig
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.models.encoders.text_tokenizers import WordTokenizer, build_vocabulary
from tests.exporters.pytorch import parity

torch = pytest.importorskip("torch")

TEXTS = [
    "A large RED circle, moving up!",
    "",
    " \t\n ",
    "naïve café — “quotes” 100% $5+1=6 `x`",
    "日本語のテキスト。赤い丸",
    "emoji 🎥👩‍👩‍👧 flag 🇫🇷",
    "ΑΒΣ ΟΔΟΣ İstanbul ẞ ﬁ ½ Ⅷ",
    "<pad> <unk> <PAD>",
    "zero\u200bwidth\u00a0space\u3000wide\u0085next\x1cfile",
    "word " * 500,
]


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (TextEncoderConfig(layers=2, heads=2, buckets=8, max_distance=16), 8),
        (TextEncoderConfig(layers=1, heads=3, mlp_ratio=1.5), 10),
    ],
)
def test_an_encoder_computes_what_ours_does(config, width):
    params = parity.text_encoder(config, 20, width)
    ids = np.random.default_rng(0).integers(1, 20, (4, 40)).astype(np.int32)
    ids[1, 3:], ids[2, 1:], ids[3] = 0, 0, 0
    wanted = jax.jit(T5Encoder(config.t5(20, width), scanned=False).apply)({"params": params}, jnp.asarray(ids))
    network = parity.torch_text_encoder(config, 20, width, params)
    with torch.inference_mode():
        found = network(torch.from_numpy(ids), torch.from_numpy(ids) != 0)
    parity.assert_close(found[:3], wanted[:3])


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    from motionaura_jax.exporters.pytorch.modeling_text_encoder import WordTokenizer as Exported

    folder = tmp_path_factory.mktemp("tokenizer")
    ours = WordTokenizer(build_vocabulary(TEXTS, 1000), 24)
    ours.save(folder)
    return ours, Exported.from_pretrained(folder)


@given(st.lists(st.text(max_size=60), max_size=3))
def test_any_text_has_the_ids_of_training(tokenizers, texts):
    ours, theirs = tokenizers
    np.testing.assert_array_equal(theirs(texts), ours.batch(texts))


def test_hard_texts_have_the_ids_of_training(tokenizers):
    ours, theirs = tokenizers
    np.testing.assert_array_equal(theirs(TEXTS), ours.batch(TEXTS))


def test_transformers_reads_the_tokenizer_too(tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, _ = tokenizers
    ours.save(tmp_path)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in TEXTS if "<pad>" not in text]  # which transformers treats as padding
    found = fast(texts, padding="max_length", truncation=True, max_length=24)["input_ids"]
    np.testing.assert_array_equal(found, ours.batch(texts))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 24
