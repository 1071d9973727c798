"""Meshes for a text-to-video model: tokens and heads must divide."""

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from tests.systems import tiny

GRID = (4, 6, 4)


def model(**values):
    return SpectralTransformerConfig(**{"vocab_size": 16, "width": 64, "heads": 8, "blocks": 1, **values})


@pytest.mark.parametrize("sizes", [{}, {"sequence": 8}, {"fsdp": 7, "tensor": 2, "sequence": 4}])
def test_a_mesh_that_divides_tokens_and_heads_passes_in_silence(sizes, caplog):
    model().check_mesh(sizes, GRID)
    assert not caplog.records


def test_tokens_that_do_not_divide_are_refused_with_sizes_that_do():
    with pytest.raises(
        UserError, match=r"sequence=5: does not divide the 96 tokens of a clip \(4 x 6 x 4\); use 3 or 4"
    ):
        model().check_mesh({"sequence": 5}, GRID)


def test_a_transform_of_all_axes_cannot_share_its_tokens():
    with pytest.raises(UserError, match="hartley3d transforms all axes"):
        model(spectral="hartley3d").check_mesh({"sequence": 2}, GRID)
    model(spectral="hartley3d").check_mesh({"fsdp": 2, "tensor": 2}, GRID)


def test_heads_that_do_not_divide_are_warned_of(caplog):
    model().check_mesh({"tensor": 4, "sequence": 4}, GRID)
    assert "8 heads do not divide over tensor x sequence = 16 devices" in caplog.text


def test_a_plan_refuses_what_a_training_would():
    values = {**tiny.text_to_video("", model={"spectral": "hartley3d"}), "tokenizer": "", "mesh": {"sequence": 2}}
    with pytest.raises(UserError, match="hartley3d"):
        TextToVideoSystem.planned(values)
    assert TextToVideoSystem.planned({**values, "mesh": {"tensor": 2}})
