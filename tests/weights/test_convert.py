"""Conversion rules between torch and our leaves: views against torch's definitions, both directions, strictness, placement."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from motionaura_jax.core import tensor_map
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.tensor_map import Rule, TensorMap
from motionaura_jax.core.trees import leaf_types
from motionaura_jax.weights import convert
from motionaura_jax.weights.tensors import TensorFiles

LAYOUT = TensorMap(
    rules=(
        Rule("shared.weight", "embedding"),
        Rule("block.{i}.q.weight", "blocks/query/kernel", tensor_map.linear()),
        Rule("block.{i}.q.bias", "blocks/query/bias", tensor_map.flat),
        Rule("down.{level}.conv.{j}.weight", "down_{level}/conv_{j}/kernel", tensor_map.conv),
        Rule("count", "count"),
    ),
    prefixes=("model.",),
    ignored=("decoder.*",),
    new=("adapter/*",),
)
LAYERS, WIDTH, HEADS, CHANNELS = 3, 8, 2, 5


def params(dtype=np.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    return {
        "embedding": draw(7, WIDTH),
        "blocks": {
            "query": {"kernel": draw(LAYERS, WIDTH, HEADS, CHANNELS), "bias": draw(LAYERS, HEADS, CHANNELS)},
        },
        "down_0": {"conv_0": {"kernel": draw(3, 2, 1, 4, 6)}, "conv_1": {"kernel": draw(3, 3, 6, 6)}},
        "down_1": {"conv_0": {"kernel": draw(1, 1, 6, 2)}},
        "count": np.arange(4, dtype=np.int32),
    }


def abstract(tree, sharding=None, dtype=None):
    def one(leaf):
        kind = dtype if dtype and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding)

    return jax.tree.map(one, tree)


@pytest.fixture
def published(tmp_path):
    """Write tensors as `model.safetensors`; return a function of changes to them."""

    def write(**changes):
        tensors = {**dict(convert.export_tensors(LAYOUT, params())), **changes}
        save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / "model.safetensors")
        return tmp_path

    return write


def assert_same_trees(a, b):
    assert leaf_types(a) == leaf_types(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_what_was_exported_comes_back(published):
    assert_same_trees(convert.import_tensors(TensorFiles(published()), LAYOUT, abstract(params())), params())


def test_the_names_and_shapes_are_those_of_torch():
    tensors = dict(convert.export_tensors(LAYOUT, params()))
    assert {name: value.shape for name, value in tensors.items()} == {
        "shared.weight": (7, 8),
        **{f"block.{i}.q.weight": (10, 8) for i in range(3)},
        **{f"block.{i}.q.bias": (10,) for i in range(3)},
        "down.0.conv.0.weight": (6, 4, 3, 2, 1),
        "down.0.conv.1.weight": (6, 6, 3, 3),
        "down.1.conv.0.weight": (2, 6, 1, 1),
        "count": (4,),
    }
    assert all(value.flags.c_contiguous for value in tensors.values())


@pytest.mark.parametrize("dims", [2, 3])
def test_views_mean_what_torch_means(dims):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x, bias = draw(2, *(4, 5, 6)[:dims], 3), draw(8)
    y = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    axes = "DHW"[-dims:]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    window = (3, 2, 3)[:dims]

    def torch_of(view, leaf):
        return torch.from_numpy(np.ascontiguousarray(view(leaf)))

    kernel = draw(*window, 3, 8)
    ours = jax.lax.conv_general_dilated(x, kernel, (1,) * dims, "VALID", dimension_numbers=numbers)
    theirs = getattr(torch.nn.functional, f"conv{dims}d")(y, torch_of(tensor_map.conv, kernel))
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), atol=1e-5)

    kernel = draw(*window, 3)
    ours = jax.lax.conv_general_dilated(
        x, kernel[..., None, :], (1,) * dims, "VALID", dimension_numbers=numbers, feature_group_count=3
    )
    theirs = getattr(torch.nn.functional, f"conv{dims}d")(y, torch_of(tensor_map.depthwise, kernel), groups=3)
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), atol=1e-5)

    kernel = draw(3, 2, 4)  # in, heads, channel
    theirs = torch.nn.functional.linear(
        torch.from_numpy(x), torch_of(tensor_map.linear(), kernel), torch_of(tensor_map.flat, bias.reshape(2, 4))
    )
    ours = np.einsum("...i,ihc->...hc", x, kernel) + bias.reshape(2, 4)
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs.numpy(), atol=1e-5)


def test_the_transposed_view_fits_the_kernel_of_our_operation():
    torch = pytest.importorskip("torch")
    from motionaura_jax.ops.upsample import conv_transpose_1x4x4

    rng = np.random.default_rng(2)
    x, kernel = (rng.standard_normal(s).astype(np.float32) for s in ((1, 2, 4, 5, 3), (1, 4, 4, 3, 6)))
    theirs = torch.nn.functional.conv_transpose3d(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
        torch.from_numpy(np.ascontiguousarray(tensor_map.conv_transpose(kernel))),
        stride=(1, 2, 2),
        padding=(0, 1, 1),
    )
    np.testing.assert_allclose(conv_transpose_1x4x4(x, kernel), np.moveaxis(theirs.numpy(), 1, -1), atol=1e-5)


@given(
    shape=st.lists(st.integers(1, 4), min_size=3, max_size=5),
    view=st.sampled_from(
        [
            tensor_map.same,
            tensor_map.flat,
            tensor_map.linear(),
            tensor_map.linear(2),
            tensor_map.conv,
            tensor_map.depthwise,
            tensor_map.conv_transpose,
        ]
    ),
)
def test_every_view_reads_and_writes_the_leaf_itself(shape, view):
    leaf = np.arange(np.prod(shape)).reshape(shape)
    copy = np.zeros_like(leaf)
    view(copy)[...] = view(leaf)
    np.testing.assert_array_equal(copy, leaf)


def test_a_prefix_may_stand_before_all_names_and_ignored_tensors_may_be_there(published):
    tensors = {f"model.{name}": value for name, value in convert.export_tensors(LAYOUT, params())}
    folder = published(**dict.fromkeys(dict(convert.export_tensors(LAYOUT, params()))), **tensors)
    assert_same_trees(convert.import_tensors(TensorFiles(folder), LAYOUT, abstract(params())), params())
    folder = published(**{"decoder.a.weight": np.zeros(1)})
    assert_same_trees(convert.import_tensors(TensorFiles(folder), LAYOUT, abstract(params())), params())


def test_new_leaves_come_back_as_they_are(published):
    adapter = {"up": np.ones(3)}
    tree = {**abstract(params()), "adapter": adapter}
    again = convert.import_tensors(TensorFiles(published()), LAYOUT, tree)
    assert again["adapter"]["up"] is adapter["up"]
    assert (
        dict(convert.export_tensors(LAYOUT, {**params(), "adapter": adapter})).keys()
        == dict(convert.export_tensors(LAYOUT, params())).keys()
    )


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_floats_are_cast_to_what_is_asked_for(published, stored):
    tensors = {
        name: value.astype(stored) if value.dtype == np.float32 else value
        for name, value in convert.export_tensors(LAYOUT, params())
    }
    folder = published(**tensors)
    again = convert.import_tensors(TensorFiles(folder), LAYOUT, abstract(params(), dtype=jnp.bfloat16))
    expected = jax.tree.map(
        lambda leaf: leaf.astype(stored).astype(ml_dtypes.bfloat16) if leaf.dtype == np.float32 else leaf, params()
    )
    assert_same_trees(again, expected)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"block.1.q.weight": None}, "missing block.1.q.weight; not used none"),
        ({"block.3.q.weight": np.zeros((10, 8), np.float32)}, "missing none; not used block.3.q.weight"),
        ({"shared.weight": None, "other": np.zeros(1)}, "missing shared.weight; not used other"),
        (
            {f"block.{i}.q.{kind}": None for i in range(3) for kind in ("weight", "bias")},
            "missing block.0.q.bias, block.0.q.weight, block.1.q.bias and 3 more",
        ),
        ({"shared.weight": np.zeros((8, 7), np.float32)}, "shared.weight has the shape [8, 7] instead of [7, 8]"),
        ({"block.0.q.bias": np.zeros((2, 5), np.float32)}, "block.0.q.bias has the shape [2, 5] instead of [10]"),
        ({"shared.weight": np.zeros((7, 8), np.int64)}, "shared.weight has the dtype I64, which is not float32"),
        ({"shared.weight": np.zeros((7, 8), np.float64)}, "shared.weight has the dtype F64, which is not float32"),
        ({"count": np.arange(4)}, "count has the dtype I64, which is not int32"),
        ({"count": np.zeros(4, np.float32)}, "count has the dtype F32, which is not int32"),
    ],
)
def test_tensors_that_do_not_fit_are_one_line_before_anything_is_placed(published, changes, fault, monkeypatch):
    files = TensorFiles(published(**changes))
    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError) as error:
        convert.import_tensors(files, LAYOUT, abstract(params()))
    assert fault in str(error.value) and str(files.path) in str(error.value) and "\n" not in str(error.value)


def test_a_map_with_a_hole_or_a_double_is_a_defect():
    with pytest.raises(ValueError, match="0 rules for the leaf extra"):
        dict(convert.export_tensors(LAYOUT, {**params(), "extra": np.zeros(1)}))
    with pytest.raises(ValueError, match="2 rules for the leaf embedding"):
        dict(convert.export_tensors(TensorMap(rules=(*LAYOUT.rules, Rule("again", "embedding"))), params()))
    with pytest.raises(ValueError, match="is both"):
        dict(
            convert.export_tensors(
                TensorMap(rules=(Rule("x", "a"), Rule("x", "b"))), {"a": np.zeros(1), "b": np.zeros(1)}
            )
        )
    with pytest.raises(ValueError, match="number that the source lacks"):
        Rule("a", "b_{i}")
    with pytest.raises(ValueError, match="source has two that stack"):
        Rule("a.{i}.{j}", "b")


def test_leaves_go_where_their_sharding_says(published):
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.P(None, "model"))
    target = abstract(params())
    query = target["blocks"]["query"]
    query["kernel"] = jax.ShapeDtypeStruct(query["kernel"].shape, np.float32, sharding=split)
    again = convert.import_tensors(TensorFiles(published()), LAYOUT, target)
    assert again["blocks"]["query"]["kernel"].sharding == split
    assert not again["embedding"].committed
    assert_same_trees(again, params())


def test_leaves_may_stay_in_host_memory(published):
    again = convert.import_tensors(TensorFiles(published()), LAYOUT, abstract(params()), on_host=True)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(again))
    assert_same_trees(again, params())


def test_shards_are_read_through_their_index(tmp_path):
    tensors = dict(convert.export_tensors(LAYOUT, params()))
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same_trees(convert.import_tensors(TensorFiles(tmp_path), LAYOUT, abstract(params())), params())
