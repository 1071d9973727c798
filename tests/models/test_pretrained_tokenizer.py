"""Tokenizers of published encoders: ids match the transformers library; limits, and bad files."""

import json
import os
import random
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.encoders.text_tokenizers import PretrainedTokenizer
from tests.models import published

LENGTH, LIMIT = 24, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def strings(count):
    """Generate strings of words, accents, other scripts, emoji, control characters, spaces and marks; empty and long."""
    rng = random.Random(0)
    parts = [
        *published.WORDS, "Café", "naïve", "東京", "привет", "مرحبا", "नमस्ते", "👩‍🚀", "🏳️‍🌈", "\u200b", "\t", "\n", "  ",
        "ﬁ", "e\u0301", "½", "</s>", "<pad>", "<unk>", "\u2581", "😀" * 5, "0123456789", "\x00", "\ud7ff", "𝕏",
    ]  # fmt: skip
    drawn = [
        "".join(rng.choice(["", " "]) + rng.choice(parts) for _ in range(rng.randrange(40))) for _ in range(count - 4)
    ]
    return ["", " ", "red " * 2000, "👩‍🚀" * 500, *drawn]


def test_a_thousand_strings_have_the_ids_of_the_library(folder):
    texts, reference = strings(1000), AutoTokenizer.from_pretrained(str(folder))
    tokenizer = PretrainedTokenizer(folder, LENGTH, LIMIT)
    expected = reference(texts, truncation=True, max_length=LIMIT, padding="max_length")["input_ids"]
    ids = tokenizer.batch(texts)
    assert ids.shape == (1000, LENGTH) and ids.dtype == np.int32 and (ids[:, LIMIT:] == tokenizer.pad).all()
    np.testing.assert_array_equal(ids[:, :LIMIT], expected)
    for row, text in zip(ids, texts, strict=True):
        assert tokenizer.encode(text).ids == row[: len(tokenizer.encode(text).ids)].tolist()


def test_the_end_that_does_not_fit_is_told(folder):
    tokenizer = PretrainedTokenizer(folder, 8, 4)
    assert tokenizer.encode("a red circle moves up").cut.strip() == "moves up"
    assert tokenizer.encode("a red circle").cut == ""
    assert tokenizer.decode(tokenizer.batch(["a red star"])[0]) == "a red star"
    assert tokenizer.batch([]).shape == (0, 8)
    assert tokenizer.batch([""]).tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]


def test_the_digest_is_that_of_the_tokenizer(folder, tmp_path):
    tokenizer = PretrainedTokenizer(folder, 8, 4)
    tokenizer.save(tmp_path / "copy")
    assert PretrainedTokenizer(tmp_path / "copy", 9, 5).digest == tokenizer.digest
    other = published.write_tokenizer(tmp_path / "other", [("\u2581red", -1.0)])
    assert PretrainedTokenizer(other, 8, 4).digest != tokenizer.digest


def refused(folder):
    with pytest.raises(UserError) as error:
        PretrainedTokenizer(folder, 8, 4)
    return str(error.value)


def test_what_is_no_tokenizer_is_one_line(folder, tmp_path):
    assert "has no tokenizer" in refused(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be opened" in refused(tmp_path)


def test_code_that_comes_with_a_tokenizer_does_not_run(tmp_path):
    published.write_tokenizer(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        PretrainedTokenizer(tmp_path, 8, 4)
    except UserError as error:
        assert "cannot be opened" in str(error)
    assert not (tmp_path / "ran").exists()


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(kind, steps):
    return {"type": "Sequence", kind: steps}


@pytest.mark.parametrize(
    ("part", "value", "fault"),
    [
        ("normalizer", sequence("normalizers", [replace({"String": "a"}, "aa")] * 40), "4096 times as long"),
        ("normalizer", sequence("normalizers", [{"type": "Lowercase"}] * 100), "steps, 64 at most are read"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 10_000}, "4096 times as long"),
        ("decoder", sequence("decoders", [replace({"String": "a"}, "aa")] * 40), "4096 times as long"),
        ("normalizer", replace({"Regex": "a" * 2000}, ""), "is too long"),
        ("pre_tokenizer", split("(a+)+$"), "reading short texts with it fails"),
        ("padding", {"strategy": {"Fixed": 10**12}, "pad_id": 0}, "it pads every text to"),
        ("post_processor", {"type": "TemplateProcessing", "single": [{}] * 10_000}, "64 at most are read"),
    ],
)
def test_a_tokenizer_that_would_end_the_process_is_refused(folder, tmp_path, part, value, fault):
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**settings, part: value}))
    assert fault in refused(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_deep_nesting_and_pipes_are_one_line(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).write_text('{"a":' * 100_000)
    assert f"{name}: is damaged" in refused(copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert f"{name}: is a pipe or device" in refused(copy)


def test_harmless_patterns_are_read(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "tokenizer.json").read_text())
    for pattern in (" {2,}", r"[0-9]{1,3}"):
        settings["normalizer"] = replace({"Regex": pattern}, " ")
        (copy / "tokenizer.json").write_text(json.dumps(settings))
        assert len(PretrainedTokenizer(copy, 8, 4).encode("a  red 123").ids) > 0
