"""Readers of core/files.py: every damaged or hostile file is one UserError, every sound one reads as written."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.files import (
    MAX_DEPTH,
    check_folder,
    check_outputs,
    check_writable,
    expanded,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_strict_json_reads_back_what_json_writes(value):
    text = json.dumps(value, ensure_ascii=False)
    assert parse_json(text) == parse_json(text.encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
        "NaN",
        "[-Infinity]",
        '"\\ud800"',
        '{"\\udfff": 1}',
        "9" * 10_000,
        "{'a': 1}",
        b"\xff",
        "",
    ],
)
def test_other_json_is_a_short_value_error(text):
    with pytest.raises(ValueError, match=r"^.{1,80}") as caught:
        parse_json(text)
    assert "\n" not in str(caught.value) and "sys." not in str(caught.value)


def test_an_allowed_depth_is_read():
    value = parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert isinstance(value, list) and len(value) == 1


@pytest.mark.parametrize("content", [b"[1]", b'"x"', b"", b"\xff{}", b"{" * 5000, b'{"a": NaN}'])
def test_a_file_without_one_json_object_is_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: is damaged \(.*\); copy it again$"):
        read_json(path, remedy="copy it again")


def test_only_regular_files_of_bounded_size_are_opened(tmp_path):
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.write_bytes(bytes(11))
    for path in (pipe, Path("/dev/zero"), tmp_path, large, tmp_path / "missing", tmp_path / ("n" * 400)):
        with pytest.raises(UserError, match=r"; try another$"):
            read_bytes(path, limit=10, remedy="try another")
    assert read_bytes(large, limit=11, remedy="") == bytes(11)


def test_text_is_utf8_without_nul(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\xc3\xa4\n")
    assert read_text(path) == "a\nbä\n"
    for content in ("a\nb".encode("utf-16"), b"a\n\xe4", b"a\n\0"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"line [12] is not UTF-8 text"):
            read_text(path)


def test_paths_are_taken_as_written_except_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x"
    for name in ("12:30.mp4", "a~b", "[exp]", "with space", "-x"):
        assert str(expanded(name)) == name
    for name in ("", " ", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UserError):
            expanded(name)


def test_what_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folders" / "o.mp4")
    check_folder(tmp_path / "new")
    check_outputs([tmp_path / "o.mp4", tmp_path / "o.json"])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a folder"):
        check_folder(tmp_path / "file")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match=f"{name}: is not a file; remove it"):
            check_outputs([tmp_path / "o.mp4", tmp_path / name])
    # The draft of a name that is just short enough would be too long.
    for path in (
        tmp_path / "file" / "o.mp4",
        Path("/proc/none/o.mp4"),
        tmp_path / ("n" * 245),
        tmp_path / ("n" * 300) / "o",
    ):
        with pytest.raises(UserError, match=r": cannot be written \(.*\); choose a folder"):
            check_writable(path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(no space left on device\); free disk space"):
        check_writable(tmp_path / "o.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe"]
