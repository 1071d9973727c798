"""Small folders in published formats, written without torch: a T5 with random weights and a tokenizer of a few words."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from motionaura_jax.models.encoders import tensor_maps
from motionaura_jax.models.encoders.config import T5Config
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.weights.convert import export_tensors

T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3}
WORDS = [*"a red blue green circle square star moves up down stays still growing two".split(), ",", "."]  # noqa: SIM905


def write_tokenizer(folder: Path, pieces=None) -> Path:
    """Write a Unigram tokenizer in T5's format, which ends every text with </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(97, 123)] + ["\u2581"]
    pieces = pieces or [(f"\u2581{word}", -2.0) for word in WORDS] + [(letter, -6.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram([(mark, 0.0) for mark in marks] + pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(str(folder))
    return folder


def write_t5(folder: Path, seed: int = 0, **changes) -> Path:
    """Write a T5 v1.1 encoder with its tokenizer."""
    settings = {**T5, "feed_forward_proj": "gated-gelu", **changes}
    network = T5Encoder(T5Config(**settings))
    ids = np.ones((1, 4), np.int32)
    params = jax.jit(network.init)(jax.random.key(seed), ids, ids > 0)["params"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "dropout_rate": 0.1, **settings}))
    gated = ["shared.weight", "encoder.block.0.layer.1.DenseReluDense.wi_1.weight"]
    save_file(dict(export_tensors(tensor_maps.t5(gated), params)), folder / "model.safetensors")
    return write_tokenizer(folder)
