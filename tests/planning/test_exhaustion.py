"""Out of memory in training: the error suggests a change that has been tried."""

import logging
from pathlib import Path
from unittest import mock

import jax
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.planning import exhaustion
from motionaura_jax.systems import registry
from tests.planning.test_advice import ask as answer
from tests.systems import tiny

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.\nmore")


@pytest.fixture
def recipe():
    values = tiny.text_to_video("tokenizer", model={"remat": "none"}, train={"accumulation": 1})
    return config.build(registry.system_class("text_to_video").Recipe, values)


def message(recipe, error=FULL):
    with pytest.raises((UserError, type(error))) as raised, exhaustion.explained(recipe, Path("runs/a")):
        raise error
    return raised.value


def test_the_change_is_named_in_one_line(recipe):
    with mock.patch.object(exhaustion, "ask", lambda question, seconds: answer(question)):
        error = message(recipe)
    assert isinstance(error, UserError)
    # 6 GiB of state, 2 of gradients and 16 of activations must fit in 85 % of memory.
    assert str(error) == (
        "out of device memory (RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.); the estimate is "
        "24 GiB on each device; --config.model.remat=dots takes 16 GiB on each device (with train --override)"
    )


def test_another_mesh_is_named_as_train_takes_it(recipe):
    full = config.build(type(recipe), config.override(config.to_dict(recipe), ["--config.model.remat=full"]))
    answered = mock.patch.object(exhaustion, "ask", lambda question, seconds: answer(question))
    with answered, mock.patch.object(jax, "device_count", lambda: 4):
        said = str(message(full))
    # 6 GiB of state, 2 of gradients and 0.5 of activations; the state is split over four devices.
    assert said.endswith("; --config.mesh.data=1 --config.mesh.fsdp=4 takes 2.5 GiB on each device")
    flags = [word for word in said.split() if word.startswith("--")]
    changed = config.build(type(recipe), config.override(config.to_dict(full), flags))
    assert changed.mesh.sizes(4) == {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}


def test_one_of_several_processes_names_the_command_instead(recipe):
    with mock.patch.object(jax, "process_count", lambda: 2):
        assert str(message(recipe)).endswith("see motionaura estimate --config=runs/a/config.json --mesh=data:1")


def test_without_an_estimate_the_error_goes_on_as_it_was(recipe, caplog):
    def fail(question, seconds):
        raise TimeoutError

    with mock.patch.object(exhaustion, "ask", fail), caplog.at_level(logging.WARNING):
        assert message(recipe) is FULL


def test_other_errors_are_left_alone(recipe):
    other = ValueError("RESOURCE_EXHAUSTED in a caption")
    assert message(recipe, other) is other


@pytest.mark.parametrize(
    ("kind", "missing", "topology"),
    [
        ("NVIDIA A100-SXM4-80GB", [], "a100:1x1x1"),
        ("NVIDIA A100-SXM4-80GB", ["nvidia-cudnn-cu12"], None),
        ("NVIDIA L4", [], None),
    ],
)
def test_the_program_of_the_gpu_itself_is_asked_about_where_it_can_be_compiled(recipe, kind, missing, topology):
    asked = []

    def record(question, seconds):
        asked.append(question.topology)
        return answer(question)

    device = mock.Mock(device_kind=kind, memory_stats=lambda: None)
    with (
        mock.patch.object(exhaustion, "ask", record),
        mock.patch.object(jax, "local_devices", lambda: [device]),
        mock.patch.object(jax, "device_count", lambda: 1),
        mock.patch.object(exhaustion.machines, "missing", lambda: missing),
    ):
        message(recipe)
    assert asked and set(asked) == {topology}
