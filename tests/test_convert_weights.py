"""Pickled weights: tensors convert bit for bit, embedded code does not run, and failures leave nothing behind."""

import importlib.util
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motionaura_jax import convert_weights
from motionaura_jax.weights import output
from motionaura_jax.weights.tensors import TensorFiles


class Evil:
    """Object that creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def run(source, output, *flags):
    return convert_weights.main([str(source), f"--output={output}", *flags, "--json"])


def test_tensors_come_out_as_they_are(tmp_path, torch, capsys):
    shared = torch.randn(3, 4)
    source = tmp_path / "in"
    source.mkdir()
    torch.save({"a": shared, "b": shared, "t": shared.T, "half": shared.bfloat16()}, source / "pytorch_model.bin")
    (source / "config.json").write_text("{}")
    (source / "run.py").write_text("")
    assert run(source, tmp_path / "out") == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == 4
    found = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(found["a"], shared.numpy())
    np.testing.assert_array_equal(found["t"], shared.numpy().T)
    assert found["half"].dtype.name == "bfloat16"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert run(source, tmp_path / "out") == 2 and run(source, tmp_path / "out", "--overwrite") == 0
    (tmp_path / "out" / "notes.txt").write_text("")
    assert run(source, tmp_path / "out", "--overwrite") == 2


def test_shards_and_old_formats(tmp_path, torch):
    source = tmp_path / "in"
    source.mkdir()
    torch.save({"state_dict": {"a": torch.ones(2)}}, source / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, source / "pytorch_model-00002-of-00002.bin", _use_new_zipfile_serialization=False)
    (source / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
    assert run(source, tmp_path / "out") == 0
    assert TensorFiles(tmp_path / "out").keys() == {"a", "b"}
    assert not list((tmp_path / "out").glob("*.bin*"))


@pytest.mark.parametrize("form", ["plain", "torch"])
def test_a_program_in_a_pickle_does_not_run(tmp_path, torch, capsys, form):
    source, witness = tmp_path / "model.ckpt", tmp_path / "ran"
    if form == "plain":
        source.write_bytes(pickle.dumps({"a": Evil(witness)}))
    else:
        torch.save({"a": torch.ones(2), "b": Evil(witness)}, source)
    assert run(source, tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert f"{source}: cannot be converted (it is damaged, or holds other objects than tensors" in line
    assert not witness.exists() and "weights_only" not in line and "safe_globals" not in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt"]
    pickle.loads(pickle.dumps(Evil(witness)))
    assert witness.exists(), "the test is blind"


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04", pickle.dumps([1, 2]), pickle.dumps({"a": 1})])
def test_what_holds_no_tensors_is_one_line(tmp_path, torch, capsys, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert run(tmp_path / "model.pt", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_nothing_to_convert_and_something_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert run(tmp_path, tmp_path / "out") == 2
    assert "nothing to convert" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert run(tmp_path, tmp_path / "out") == 2
    assert "choose another name" in capsys.readouterr().err


def test_without_torch_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path, tmp_path / "out") == 2
    assert "pip install torch" in capsys.readouterr().err


def expanded(torch):
    return {"big": torch.zeros(1).expand(2**25)}


def overlapping(torch):
    return {"big": torch.arange(2.0**12).as_strided((2**11, 2**11), (1, 1))}


def shared(torch):
    one = torch.zeros(2**18)
    return {str(number): one for number in range(100)}


def sparse(torch):
    return {"big": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (2**30,))}


@pytest.mark.parametrize("content", [expanded, overlapping, shared, sparse])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_output_out_of_proportion_is_not_written(tmp_path, torch, content, zipped):
    from motionaura_jax.exporters.pytorch.unpickle import Refused, unpickle

    torch.save(content(torch), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused):
        unpickle(str(tmp_path / "model.pt"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_compressed_archive_is_not_unpacked(tmp_path, torch):
    from motionaura_jax.exporters.pytorch.unpickle import Refused, unpickle

    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "model.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(Refused, match="it is a compressed archive"):
        unpickle(str(tmp_path / "model.pt"), str(tmp_path / "out"))


@pytest.fixture
def converted(monkeypatch):
    """Replace the conversion by a copy that needs no torch."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        convert_weights, "_unpickle", lambda source, target: save_file({"a": np.zeros(2)}, target, output.CONVERTED)
    )


def test_only_known_files_beside_the_weights_are_copied(tmp_path, converted, caplog):
    (tmp_path / "in").mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json", "passwords.txt", "notes.json", "secret.model"):
        (tmp_path / "in" / name).write_text("{}")
    (tmp_path / "in" / "vocab.json").symlink_to(tmp_path / "in" / "passwords.txt")
    assert run(tmp_path / "in" / "model.bin", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert "vocab.json: is a link and is not copied" in caplog.text


@pytest.mark.parametrize("source", ["in", "in/model.bin", "."])
def test_relative_paths_are_converted(tmp_path, converted, monkeypatch, source):
    (tmp_path / "in").mkdir()
    for name in ("model.bin", "config.json"):
        (tmp_path / "in" / name).write_text("{}")
    monkeypatch.chdir(tmp_path / "in" if source == "." else tmp_path)
    assert run(source, tmp_path / "out") == 0 and (tmp_path / "out" / "config.json").is_file()


def test_links_of_the_cache_of_the_hub_are_followed(tmp_path, converted):
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.bin"):
        (blobs / f"hash of {name}").write_text("{}")
        (snapshot / name).symlink_to(f"../../blobs/hash of {name}")
    assert run(snapshot, tmp_path / "out") == 0 and (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("name", ["config.json", "model.bin"])
def test_what_is_no_file_is_one_line(tmp_path, converted, capsys, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.bin").write_bytes(b"")
    (tmp_path / "in" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out") == 2
    assert f"{name}: is a pipe or device" in capsys.readouterr().err and not (tmp_path / "out").exists()
