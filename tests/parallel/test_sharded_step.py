"""A training step on eight devices equals one device, leaf by leaf, and moves no more than it must."""

import pytest

from tests import compilation, processes

TOLERANCE = 1e-5  # relative to the largest number of a leaf; 5.2e-6 is the most that was found
CANCELING = {"tokenizer/mask_fill": 5e-5}  # a sum over all masked pixels, most of which cancel: 1.7e-5 was found
PASSES = {"folded": 2}  # microbatches, each of which gathers the parameters


def report(root, *arguments, **environment):
    return processes.report("tests.parallel.sharded_step", *arguments, root=root, **environment)


def assert_equal(rows):
    for label, row in rows.items():
        assert row["differences"].keys() == {"loss", "gradient", "params", "extra"}
        for what, worst in row["differences"].items():
            for difference, path in worst:
                message = f"{label}: {what} {path} differs by {difference:.2g}"
                assert difference <= CANCELING.get(path, TOLERANCE), message


def assert_frugal(rows):
    """No device gathers activations, and parameters are gathered twice at most: forward and backward."""
    for label, row in rows.items():
        assert "all-gather" not in row["activations"], label
        assert row["gathered_bytes"] <= 2 * 4 * row["parameters"] * PASSES.get(label, 1), label


def test_transforms_of_split_tokens_exchange_all_to_all_and_nothing_else(root):
    for name, row in report(root, "exchanges").items():
        assert row["kinds"] == ["all-to-all"], name
        assert row["difference"] < 1e-5, name


def test_text_to_video_with_parameters_channels_and_tokens_split(root):
    rows = report(root, "text_to_video", "three")
    assert_equal(rows)
    assert_frugal(rows)


@pytest.mark.slow
def test_text_to_video_on_other_meshes(root):
    rows = report(root, "text_to_video", "fsdp", "tensor", "sequence", "folded")
    assert_equal(rows)
    assert_frugal(rows)
    kinds = {label: row["activations"] for label, row in rows.items()}
    assert kinds == {"fsdp": [], "tensor": ["all-reduce"], "sequence": ["all-to-all"], "folded": ["all-reduce"]}


@pytest.mark.slow
def test_tokenizer(root):
    """No code flips here; where one does, by a near tie, its clip differs in more than rounding."""
    assert_equal(report(root, "mbq_vae", **compilation.FUSIONS_AS_USERS_DO))  # else 1.1e-5 in one leaf
