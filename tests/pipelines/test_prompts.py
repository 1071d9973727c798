"""Lists of prompts: the same prompts from text, .jsonl and .csv; files of another kind are one line."""

import json
import logging
import os

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.pipelines.prompts import Prompt, read_prompts


def test_broken_lines_are_named_and_left_out(tmp_path, caplog):
    path = tmp_path / "prompts.jsonl"
    lines = ['{"prompt": "a", "negative_prompt": "b"}', '{"prompt": ', "", '{"text": "c"}', '"d"', '{"prompt": "e"}']
    lines += ['{"prompt": "f", "negative_prompt": 0}', '{"prompt": "\\ud83d"}', "[" * 100_000, '{"prompt": ["g"]}']
    path.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        prompts = read_prompts(path)
    assert prompts == [Prompt(text="a", negative="b", position=0), Prompt(text="e", position=5)]
    left_out = [n for n in range(1, 11) if f"line {n} is left out" in caplog.text]
    assert left_out == [2, 4, 5, 7, 8, 9, 10]


@pytest.mark.parametrize("suffix", ["txt", "TXT", "jsonl", "JSONL", "csv", "Csv", ""])
def test_kinds_of_files_agree_with_suffixes_in_any_case(tmp_path, suffix):
    texts = ["a red circle, moving up", "größer"]
    path = tmp_path / (f"prompts.{suffix}" if suffix else "prompts")
    lines = {
        "jsonl": [json.dumps({"prompt": text}) for text in texts],
        "csv": ["prompt,negative_prompt", *(f'"{text}",' for text in texts)],
    }.get(suffix.lower(), texts)
    path.write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    first = 1 if suffix.lower() == "csv" else 0
    assert read_prompts(path) == [Prompt(text=text, position=first + n) for n, text in enumerate(texts)]


def test_a_csv_has_negative_prompts_and_strict_rows(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('negative_prompt, prompt\nblue,"red, large"\n\n,green\n')
    assert read_prompts(path) == [
        Prompt(text="red, large", negative="blue", position=1),
        Prompt(text="green", position=3),
    ]
    for content, fault in [
        ("prompt\na red circle, moving\n", "line 2 has 2 cells, but the header names 1 columns; put text"),
        ('prompt\na\n"b\nc\n', "line 3 is not CSV"),
        ("text\na\n", "no prompt column among text"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=fault):
            read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("p.txt", "a\nb\n".encode("utf-16"), "line 1 is not UTF-8 text"),
        ("p.txt", "a\nb\n".encode("utf-16-le"), "line 1 is not UTF-8 text"),
        ("p.txt", "a\n".encode("utf-32"), "line 1 is not UTF-8 text"),
        ("p.txt", b"a\nb\0\n", "line 2 is not UTF-8 text"),
        ("p.txt", b"a\ngr\xf6\xdfer\n", r"line 2 is not UTF-8 text \(byte 4\); check --prompts_file"),
        ("p.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "line 1 is not UTF-8 text"),
        ("p.json", b'{"prompt": "a"}', r"suffix '.json' is not that of a list of prompts; did you mean '.jsonl'"),
        ("p.docx", b"PK", r"suffix '.docx' is not .*; use .txt .jsonl .csv"),
        ("p.txt", b"\n\n", "has no usable prompt"),
        ("p.txt", None, "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, content, fault):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=fault) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_pipe_or_device_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.csv"):
        with pytest.raises(UserError, match="is a pipe or device, not a file"):
            read_prompts(tmp_path / name)


def test_files_that_were_joined_have_no_marks_inside(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\r\n")
    assert [prompt.text for prompt in read_prompts(path)] == ["a", "b"]
