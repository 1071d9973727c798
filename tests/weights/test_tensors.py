"""Published weights on disk: the choice of file, and a one-line error for every kind of damage."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from motionaura_jax.core.errors import UserError
from motionaura_jax.weights import tensors
from motionaura_jax.weights.tensors import Tensor, TensorFiles

A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
B = {"b": np.array(5, np.int64)}


def shards(folder, places, **files):
    for name, content in files.items():
        save_file(content, folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def refused(path):
    with pytest.raises(UserError) as error:
        TensorFiles(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_a_folder_and_shards_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_PIECE", 24)  # a row of `a`
    for name in ("s", "f"):
        (tmp_path / name).mkdir()
    shards(tmp_path / "s", {"a": "x.safetensors", "b": "y.safetensors"}, x=A, y=B)
    save_file(A | B, tmp_path / "f" / "diffusion_pytorch_model.safetensors")
    for path in (tmp_path / "s", tmp_path / "f", tmp_path / "f" / "diffusion_pytorch_model.safetensors"):
        files = TensorFiles(path)
        assert set(files) == {"a", "b"} and len(files) == 2 and files["a"].shape == (2, 3)
        assert (files["b"].dtype, files["b"].shape) == ("I64", ())
        a, b = np.empty((3, 2), np.float64), np.empty((), np.int64)
        files.read("a", a.T)
        files.read("b", b)
        np.testing.assert_array_equal(a.T, A["a"])
        assert b == 5


def test_the_usual_name_is_taken_where_there_are_several(tmp_path):
    save_file(A, tmp_path / "model.safetensors")
    save_file(B, tmp_path / "model.fp16.safetensors")
    assert TensorFiles(tmp_path)["a"] == Tensor(file=tmp_path / "model.safetensors", dtype="F32", shape=(2, 3))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert "holds several weight files (model.fp16.safetensors, other.safetensors)" in refused(tmp_path)


def test_a_folder_without_weights_says_what_to_give(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "absent")
    assert "holds no model.safetensors" in refused(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        line = refused(path)
        assert name in line and f"motionaura_jax.convert_weights {path} --output=" in line
    save_file(A, tmp_path / "model.safetensors")
    assert "a" in TensorFiles(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        (2).to_bytes(8, "little") + b"no",
        (10**13).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04 a zip archive",
    ],
    ids=["empty", "short", "no json", "terabytes of header", "more than there is", "another format"],
)
def test_a_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert f"{path}: is not a complete safetensors file" in refused(tmp_path)


def test_a_header_that_claims_terabytes_is_not_believed(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    assert "is not a complete safetensors file" in refused(tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_one_line(tmp_path, share):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((100, 100), np.float32)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "is not a complete safetensors file" in refused(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened_is_one_line(tmp_path):
    save_file(A, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        files.read("a", np.empty((2, 3)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": 1}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "x\\u0000"}}',
        json.dumps({"weight_map": {"a": "x" * 300}}),
    ],
)
def test_an_index_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    line = refused(tmp_path)
    assert "is not an index of shards" in line or "index.json: is damaged" in line
    assert "download or copy it again" in line and len(line) < 500


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_reaches_no_other_folder(tmp_path, place):
    assert "is not an index of shards in the same folder" in refused(shards(tmp_path, {"a": place}))


def test_an_index_that_does_not_fit_its_shards_is_one_line(tmp_path):
    assert "names missing shards: y.safetensors" in refused(
        shards(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"}, x=A)
    )
    assert "does not match its shard x.safetensors, which differs in b" in refused(
        shards(tmp_path, {"a": "x.safetensors", "b": "x.safetensors"}, x=A)
    )
    assert "differs in b" in refused(shards(tmp_path, {"a": "x.safetensors"}, x=A | B))
