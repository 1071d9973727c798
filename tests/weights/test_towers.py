"""Loading published encoders: other models give a one-line error, and nothing is loaded partially."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motionaura_jax.core.errors import UserError
from motionaura_jax.weights.tensors import TensorFiles
from motionaura_jax.weights.towers import describe_tower, open_tower
from tests.models import published


@pytest.fixture
def folder(tmp_path):
    return published.write_t5(tmp_path / "t5")


def refused(place, kind="t5"):
    with pytest.raises(UserError) as error:
        open_tower(str(place), kind)
    assert "\n" not in str(error.value)
    return str(error.value)


def settings(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def test_a_tower_is_its_content(folder, tmp_path):
    tower = open_tower(str(folder), "t5")
    assert tower.digest == open_tower(str(published.write_t5(tmp_path / "again")), "t5", dtype="float32").digest
    assert tower.digest != open_tower(str(published.write_t5(tmp_path / "other", seed=1)), "t5").digest
    assert {leaf.dtype.name for leaf in jax.tree.leaves(tower.params)} == {"bfloat16"}
    described = describe_tower(str(folder), "t5")
    assert described.digest == tower.digest and described.network == tower.network and described.params == {}
    settings(folder, layer_norm_epsilon=1e-5)
    assert tower.digest != open_tower(str(folder), "t5").digest


def test_leaves_go_where_the_caller_says(folder):
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.P())

    def shard(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree)

    tower = open_tower(str(folder), "t5", dtype="float32", shard=shard)
    plain = open_tower(str(folder), "t5", dtype="float32")
    for ours, other in zip(jax.tree.leaves(tower.params), jax.tree.leaves(plain.params), strict=True):
        assert ours.sharding == everywhere
        np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "t6"}, "the model type 't6' is not t5; did you mean 't5'?"),
        ({"model_type": ["t5"]}, "describes no model"),
        ({"num_layers": "many"}, "num_layers=many"),
        ({"num_layers": -1}, "num_layers=-1: must be at least 1"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj=gated-silu: expected one of relu, gated-gelu"),
        ({"d_model": 17}, "shape"),
        ({"num_layers": 3}, "missing encoder.block.2."),
        ({"num_layers": 1}, "not used encoder.block.1."),
        ({"feed_forward_proj": "relu"}, "not used encoder.block.0.layer.1.DenseReluDense.wi_0"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(folder, changes, fault):
    settings(folder, **changes)
    line = refused(folder)
    assert fault in line and str(folder) in line


def test_a_tower_of_another_kind_is_named(folder):
    assert "the model type 't5' is not clip_text; known: clip, clip_text_model" in refused(folder, "clip_text")


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"model_type": 3}', '{"model_type": "t5"'])
def test_a_config_that_is_none_is_one_line(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refused(folder)


def test_missing_parts_are_named(folder, tmp_path):
    (folder / "config.json").unlink()
    assert "config.json: is missing" in refused(folder)
    assert "no such folder" in refused(tmp_path / "nowhere")


def test_a_truncated_file_and_a_tensor_of_the_wrong_kind_are_one_line(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "shared.weight": tensors["shared.weight"].astype(np.int32)}, path)
    assert "shared.weight has the dtype I32" in refused(folder)
    path.write_bytes(path.read_bytes()[:-10])
    assert "is not a complete safetensors file" in refused(folder)


def test_a_pickle_is_refused_with_the_way_out(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert f"motionaura_jax.convert_weights {folder} --output=" in refused(folder)


@pytest.mark.parametrize(
    "changes", [{"num_layers": 10**6}, {"num_layers": 10**12}, {"vocab_size": 10**12}, {"d_ff": 10**12}]
)
def test_sizes_out_of_proportion_to_the_weights_are_refused_at_once(folder, changes):
    settings(folder, **changes)
    line = refused(folder)
    assert "out of proportion to the weights" in line or "layers, but" in line or "must be at least" in line


def test_weights_that_are_not_numbers_or_of_unknown_kinds_are_refused(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "shared.weight": np.full_like(tensors["shared.weight"], np.nan)}, path)
    assert "shared.weight holds values that are not numbers" in refused(folder)
    header = b'{"shared.weight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"00")
    assert "tensors do not match" in refused(folder)
    with pytest.raises(UserError, match="has the dtype F8_E4M3, which is not read"):
        TensorFiles(path).whole("shared.weight")
