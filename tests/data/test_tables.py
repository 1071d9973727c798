"""Untrusted tables and folders: nothing is lost in silence, one bad entry does not refuse the rest, one read per run."""

import json
import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import DataConfig, EvaluateConfig
from motionaura_jax.data import listing, manifest
from motionaura_jax.data.array_cache import file_content
from motionaura_jax.data.latents import FileHashes
from motionaura_jax.data.listing import list_folder
from motionaura_jax.data.loader import held_out_split
from motionaura_jax.data.manifest import Record, read_manifest
from motionaura_jax.data.preflight import Rejections
from motionaura_jax.data.video import VideoError
from motionaura_jax.systems.captions import captions
from motionaura_jax.training import data as training_data


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Return what is logged; nothing of earlier tests is remembered."""
    listing.warn_once.cache_clear()
    manifest._records.clear()
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        yield caplog


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def captions_of(location: Path) -> dict[str, str | None]:
    return {record.id: record.caption for record in read_manifest(location)}


# ---------------------------------------------------------------- Rows
HEADER = "path,caption\n"


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("m.csv", HEADER + "c0.mp4,a large red circle, moving up, on gray\n", "line 2 has 4 cells, but the header names 2"),
        ("m.csv", HEADER + 'a.mp4,x\nb.mp4,"a red\nc.mp4,y\n', "line 3 is not CSV .*; check its quotes"),
        ("m.csv", HEADER + 'a.mp4,"a red" one\n', "line 2 is not CSV"),
        ("m.csv", HEADER + 'a.mp4,"a red\nb.mp4,x\nc.mp4,y"\n', "line 2: the caption holds the row of another file"),
        ("m.csv", 'caption,path\n"a dog,a.mp4\nb",b.mp4\n', "line 2: the caption holds the row of another file"),
        ("m.csv", HEADER + f'a.mp4,"{"x" * 200_000}"\n', "line 2 is not CSV"),
        ("m.csv", "path,caption,caption\na.mp4,x,y\n", "has two columns caption"),
        ("m.csv", "path\na.mp4\nb\0.mp4\n", "line 3 is not UTF-8 text"),
        ("m.jsonl", '{"file": "a.mp4"}\n{"file": "b.mp4", "x": ' + "[" * 50_000, "line 2 is not JSON .nested too deeply"),
        ("m.jsonl", '{"file": "a.mp4", "text": NaN}', r"line 1: column caption\|text is not text"),
        ("m.jsonl", '{"file": ["a.mp4"]}', "line 1: column file is not text"),
        ("m.jsonl", '{"file": "a.mp4", "x": ' + "9" * 9999 + "}", "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_a_damaged_row_is_named_by_its_line(tmp_path: Path, name: str, text: str, fault: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: {fault}"):
        read_manifest(tmp_path / name)


def test_rows_may_hold_what_is_not_read(tmp_path: Path) -> None:
    rows = '{"file_name": "a.mp4", "text": "one", "score": NaN}\n{"file_name": "b.mp4", "tags": ["x", "\\ud800"]}\n'
    (tmp_path / "m.jsonl").write_text(rows)
    (tmp_path / "m.csv").write_text('file_name,text,\na.mp4,"one\ntwo",,\n,,\nb.mp4\n')
    assert captions_of(tmp_path / "m.jsonl") == {"a.mp4": "one", "b.mp4": None}
    assert captions_of(tmp_path / "m.csv") == {"a.mp4": "one two", "b.mp4": None}


def test_a_pipe_or_device_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.jsonl")
    (tmp_path / "m.csv").symlink_to("/dev/zero")
    for name in ("m.jsonl", "m.csv"):
        with pytest.raises(UserError, match=r"is a pipe or device, not a file; give a \.jsonl or a \.csv file"):
            read_manifest(tmp_path / name)


def test_a_caption_or_path_that_utf8_cannot_hold_loses_one_row(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    latin = os.fsdecode("größe.mp4".encode("latin-1"))
    touch(tmp_path / latin)
    rows = [{"file": "a.mp4", "text": "half \ud83d"}, {"file": latin, "text": "whole"}, {"file": "\ud800.mp4"}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    records = read_manifest(tmp_path / "m.jsonl")
    assert {record.id: record.caption for record in records} == {"a.mp4": None, latin: "whole", "\ud800.mp4": None}
    assert next(record for record in records if record.id == latin).path.exists()
    assert any("1 of 3 rows lose their caption" in line for line in log.messages)
    train, held = held_out_split(records, 0.5)
    assert len(train) + len(held) == 3
    assert [record.id for record in read_manifest(tmp_path)] == [latin]


# ---------------------------------------------------------------- Rows and files
def test_rows_without_a_file_are_counted_once(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "a.mp4")
    for name in ("metadata.csv", "list.csv"):
        (tmp_path / name).write_text("file,text\na.mp4,x\ngone.mp4,y\nsub/lost.mp4,z\n")
    for location in (tmp_path, tmp_path / "list.csv"):
        log.clear()
        read_manifest(location)
        manifest._records.clear()
        read_manifest(location)
        (line,) = log.messages
        assert "2 of 3 rows match no file, e.g. 'gone.mp4'" in line


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_backslashes_and_other_normal_forms_are_found(tmp_path: Path, log: pytest.LogCaptureFixture, form: str) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    name, written = unicodedata.normalize(form, "größe.mp4"), unicodedata.normalize(other, "größe.mp4")
    touch(tmp_path / "sub" / name, tmp_path / name)
    (tmp_path / written).with_suffix(".txt").write_text("beside")
    rows = [{"file": f"sub\\{written}", "text": "far"}]
    for table in ("metadata.jsonl", "list.jsonl"):
        (tmp_path / table).write_text("\n".join(json.dumps(row) for row in rows))
    assert captions_of(tmp_path) == {f"sub/{name}": "far", name: "beside"}
    (record,) = read_manifest(tmp_path / "list.jsonl")
    # The id is as written, so that it does not depend on what a host sees of the files.
    assert record.path == tmp_path / "sub" / name and record.id == f"sub\\{written}" and not log.messages


def test_paths_of_a_metadata_table_may_be_written_as_find_writes_them(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "sub" / "b.mp4", tmp_path / "sub" / "c.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\n./a.mp4,one\nsub/../sub//b.mp4,two\n.\\sub\\c.mp4,three\n")
    assert captions_of(tmp_path) == {"a.mp4": "one", "sub/b.mp4": "two", "sub/c.mp4": "three"} and not log.messages


# ---------------------------------------------------------------- Folders
def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    touch(tmp_path / "far" / "deep" / "a.mp4", tmp_path / "data" / "b.mp4", tmp_path / "data" / "own" / "c.mp4")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "own")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "far" / "self").symlink_to("self")
    assert list_folder(tmp_path / "data").media == ["b.mp4", "link/deep/a.mp4", "own/c.mp4"]


def test_files_with_other_suffixes_are_counted(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    touch(*(tmp_path / name for name in ("a.mp4", "a.txt", "README", "b.docx", "sub/c.docx", "d.xyz", ".e.xyz")))
    read_manifest(tmp_path)
    assert [line.split(": ")[1] for line in log.messages] == ["3 files left out, with suffixes .docx (2), .xyz (1)"]


def test_one_unreadable_entry_does_not_refuse_the_folder(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "closed" / "c.mp4")
    (tmp_path / "a.txt").write_text("readable")
    os.mkfifo(tmp_path / "b.txt")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere")
    scan = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert captions_of(tmp_path) == {"a.mp4": "readable", "b.mp4": None}
    assert any("3 such entries" in line and "broken.mp4: cannot be read" in line for line in log.messages)
    assert any("b.txt: is a pipe" in line and "1 of 2 clips lose their caption" in line for line in log.messages)
    assert len(log.messages) == 2


def test_a_run_does_not_train_on_samples(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "runs" / "one"
    touch(tmp_path / "a.mp4", run / "config.json", run / "lock", run / "samples" / "0001" / "s.mp4", run / "b.mp4")
    assert list(captions_of(tmp_path)) == ["a.mp4"]
    assert list(captions_of(run)) == ["b.mp4"]  # the clips and the run share a folder
    assert [("left out of the data" in line) for line in log.messages] == [True, True]
    with pytest.raises(UserError, match="holds samples of the run in"):
        training_data._records(DataConfig(manifest=str(run / "samples")), EvaluateConfig(), run, ())


# ---------------------------------------------------------------- One read
@pytest.mark.parametrize("kind", ["jsonl", "csv", "folder"])
def test_a_run_parses_its_manifest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    touch(*(tmp_path / f"{n}.mp4" for n in range(40)))
    table = tmp_path / ("metadata.csv" if kind == "folder" else f"list.{kind}")
    lines = ["file,text", *(f"{n}.mp4,one" for n in range(40))]
    if kind == "jsonl":
        lines = [json.dumps({"file": f"{n}.mp4", "text": "one"}) for n in range(40)]
    table.write_text("\n".join(lines))
    os.utime(table, (1e9, 1e9))
    location, reads, read = tmp_path if kind == "folder" else table, [], manifest._table
    monkeypatch.setattr(manifest, "_table", lambda *args: reads.append(args) or read(*args))
    data = DataConfig(manifest=str(location))
    for _ in range(2):
        assert captions(data, 0.0) == ["one"] * 40
    train, held_out = training_data._records(data, EvaluateConfig(), tmp_path / "run", [])
    assert len(train) + len(held_out) == 40 and len(reads) == 1
    # A change is seen, and a file that is too young to tell is read each time.
    table.write_text("\n".join(lines).replace("one", "two"))
    for count in (2, 3):
        assert captions(data, 0.0) == ["two"] * 40 and len(reads) == count
    touch(tmp_path / "new.mp4")
    assert len(read_manifest(location)) == (41 if kind == "folder" else 40)


def test_records_are_copies_of_one_list(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    read_manifest(tmp_path).clear()
    assert len(read_manifest(tmp_path)) == 2


# ---------------------------------------------------------------- Lists next to the data
def test_a_list_of_rejected_files_of_another_form_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    lines = ['{"file": [1]}', "[1]", "[" * 50_000, '{"file": "old.mp4"}', '{"file": "cut']
    path.write_bytes("\n".join(lines).encode() + b"\xc3")
    rejections = Rejections(path)
    latin = os.fsdecode("größe.mp4".encode("latin-1"))
    for name in ("old.mp4", latin, "new.mp4", latin):
        rejections.add(VideoError(name, "is empty", "replace it"))
    assert len(rejections) == 3
    assert [json.loads(line)["file"] for line in path.read_bytes().splitlines()[5:]] == [latin, "new.mp4"]
    Rejections(path).add(VideoError(latin, "is empty", "replace it"))
    assert len(path.read_bytes().splitlines()) == 7
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a pipe or device"):
        Rejections(path)


@pytest.mark.parametrize(
    "kept", ['{"a.mp4": [1, 2, 3]}', '{"a.mp4": "x"}', "[1]", "[" * 50_000, '{"a.mp4": [1, STAMP, "zz"]}']
)
def test_hashes_of_another_form_are_made_again(tmp_path: Path, kept: str) -> None:
    touch(tmp_path / "a.mp4")
    stamp = (tmp_path / "a.mp4").stat().st_mtime_ns
    (tmp_path / "files.json").write_text(kept.replace("STAMP", str(stamp)))
    hashes, (record,) = FileHashes(tmp_path), read_manifest(tmp_path)
    assert hashes.content(record) == file_content(record.path)
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("pipe.mp4", "\ud800.mp4", "gone.mp4"):
        with pytest.raises(UserError, match="check the path or the manifest row"):
            hashes.content(Record(path=tmp_path / name, caption=None, id=name))
