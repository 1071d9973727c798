"""Folders and tables: the same records in a stable order, or a one-line error that names the fault."""

import json
import logging
from pathlib import Path

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.manifest import Record, read_manifest


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def test_folder_is_searched_with_captions_beside(tmp_path: Path) -> None:
    touch(tmp_path / "b.mp4", tmp_path / "deep" / "er" / "a.GIF", tmp_path / "c.png", tmp_path / "notes.md")
    touch(tmp_path / ".cache" / "x.mp4", tmp_path / ".b.mp4.tmp.mp4")
    (tmp_path / "b.txt").write_text(" a red  car \n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("\n")
    assert read_manifest(tmp_path) == [
        Record(path=tmp_path / "b.mp4", caption="a red car", id="b.mp4"),
        Record(path=tmp_path / "c.png", caption=None, id="c.png"),
        Record(path=tmp_path / "deep" / "er" / "a.GIF", caption=None, id="deep/er/a.GIF"),
    ]


def test_a_caption_in_another_encoding_counts_as_none_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4")
    (tmp_path / "a.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "b.txt").write_text("größer", encoding="utf-8")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        captions = [{record.id: record.caption for record in read_manifest(tmp_path)} for _ in range(2)]
    assert captions == [{"a.mp4": None, "b.mp4": "größer", "c.mp4": None}] * 2
    (line,) = caplog.messages
    assert (
        "a.txt: line 1 is not UTF-8 text (byte 2); make it a readable file" in line
        and "2 of 3 clips lose their caption" in line
    )


def test_folder_takes_captions_from_the_nearest_metadata(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "sub" / "b.mp4", tmp_path / "sub" / "c.mp4", tmp_path / "d.mp4")
    (tmp_path / "metadata.csv").write_text("file,text\na.mp4,from csv\nsub/b.mp4,far\nsub/c.mp4,far\n")
    (tmp_path / "sub" / "metadata.jsonl").write_text('{"path": "b.mp4", "caption": "near"}\n')
    (tmp_path / "d.txt").write_text("beside")
    captions = {record.id: record.caption for record in read_manifest(str(tmp_path))}
    assert captions == {"a.mp4": "from csv", "d.mp4": "beside", "sub/b.mp4": "near", "sub/c.mp4": "far"}


@pytest.mark.parametrize("column", ["file", "path", "video"])
@pytest.mark.parametrize("caption", ["caption", "text"])
def test_tables_agree(tmp_path: Path, column: str, caption: str) -> None:
    rows = [("z.mp4", "last, with comma"), ("sub/a.mp4", ""), (str(tmp_path.parent / "far.mp4"), "größer")]
    jsonl = "\n\n".join(json.dumps({column: name, caption: text, "extra": 1}) for name, text in rows)
    (tmp_path / "list.jsonl").write_text(jsonl)
    table = "\r\n".join([f"{column}, {caption},extra", *(f'{name},"{text}",1' for name, text in rows)])
    (tmp_path / "list.csv").write_text(table, encoding="utf-8-sig", newline="")
    expected = [
        Record(path=tmp_path.parent / "far.mp4", caption="größer", id=(tmp_path.parent / "far.mp4").as_posix()),
        Record(path=tmp_path / "sub" / "a.mp4", caption=None, id="sub/a.mp4"),
        Record(path=tmp_path / "z.mp4", caption="last, with comma", id="z.mp4"),
    ]
    assert read_manifest(tmp_path / "list.jsonl") == expected
    assert read_manifest(tmp_path / "list.csv") == expected


def test_order_does_not_depend_on_the_file_and_repeats_count_once(tmp_path: Path) -> None:
    rows = ['{"file": "b.mp4"}', '{"file": "a.mp4", "text": "two"}', '{"file": "a.mp4", "text": "one"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(rows[::-1] + rows))
    records = read_manifest(tmp_path / "a.jsonl")
    assert [(record.id, record.caption) for record in records] == [("a.mp4", "one"), ("a.mp4", "two"), ("b.mp4", None)]
    assert read_manifest(tmp_path / "b.jsonl") == records


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("gone.jsonl", None, r"gone\.jsonl: no such folder or manifest; check data\.manifest"),
        ("list.txt", b"a.mp4", r"list\.txt: not a manifest; give a folder, a \.jsonl or a \.csv file"),
        ("list.csv", b"", r"list\.csv: is empty; add one row per video"),
        ("list.jsonl", b"\n \n", r"list\.jsonl: has no rows; add"),
        ("list.csv", b"file,caption\n", r"list\.csv: has no rows; add"),
        (
            "list.csv",
            b"name,caption\na,b\n",
            r"no path column among name, caption; name the column .* file\|path\|video",
        ),
        ("list.csv", b"file,caption\na.mp4,x\n,y\n", r"line 3 has no file in a column file\|path\|video"),
        ("list.jsonl", b'{"file": "a.mp4"}\n{"file": \n', r"line 2 is not JSON \(Expecting value\); give one object"),
        ("list.jsonl", b'{"file": "a.mp4"}\n\n["a"]\n', "line 3 is a JSON list; give one object per line"),
        ("list.jsonl", b'{"name": "a.mp4"}', r"line 1 has no file in .* \(columns: name\); add it"),
        ("list.jsonl", b'{"file": 3}', "line 1: column file is not text; put it in quotes"),
        ("list.jsonl", b'{"file": "a.mp4", "text": ["b"]}', r"line 1: column caption\|text is not text"),
        (
            "list.csv",
            b"file,text\na.mp4,gr\xf6\xdf\n",
            r"list\.csv: line 2 is not UTF-8 text \(byte 18\); make it a readable file",
        ),
    ],
)
def test_faults_are_one_line(tmp_path: Path, name: str, data: bytes | None, fault: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=fault) as caught:
        read_manifest(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_folder_without_media(tmp_path: Path) -> None:
    touch(tmp_path / "readme.md")
    with pytest.raises(UserError, match="holds no video or image; put files in it"):
        read_manifest(tmp_path)


def test_real_manifest(data_root: Path | None) -> None:
    if data_root is None:
        pytest.skip("no real clips here; set MOTIONAURA_DATA")
    table = {Path(r.id).name: r.caption for r in read_manifest(data_root / "clips.jsonl")}
    folder = [Path(record.id).name for record in read_manifest(data_root / "clips")]
    assert sorted(table) == folder
    assert all(table.values())
