"""Pickled weights: tensors convert bit for bit, embedded code does not run, and failures leave nothing behind."""

import importlib.util
import json
import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file

from motionaura_jax import convert_weights
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
    assert f"{source}: cannot be converted" in line and not witness.exists()
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
