"""The training step, compiled in a separate process for simulated devices."""

import dataclasses
import json

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel.config import parse
from motionaura_jax.planning import estimate, machines, measure, questions
from tests.systems import tiny

MODEL = {**tiny.DENOISER, "vocab_size": 16, "width": 64, "blocks": 2, "text_dim": 32}


def text_to_video(**sections):
    values = tiny.text_to_video("", **{**sections, "model": {**MODEL, **sections.get("model", {})}})
    del values["text"]["vocabulary"]
    return {**values, "text": {**values["text"], "max_words": 16}}


def asked(values, mesh):
    return questions.question(values, parse(mesh))


@pytest.fixture(scope="module")
def split():
    return estimate.ask(asked(text_to_video(), "fsdp:4"))


def test_the_state_is_that_of_adam_and_an_average_split_over_the_devices(split):
    assert split.devices == 4
    part = split.held["parameters"]
    assert part == pytest.approx(4 * split.parameters / 4, rel=0.02)
    assert split.held["optimizer"] == pytest.approx(2 * part, rel=0.01)
    assert split.held["average"] == part and split.held["frozen"] == 0
    assert split.peak > split.state + part  # gradients at least


def test_exchanges_are_those_of_split_parameters(split):
    assert 0 < split.collectives["all-gather"] <= 2.2 * 4 * split.parameters
    assert split.collectives["all-reduce"] + split.collectives["reduce-scatter"] > 0


def test_arithmetic_does_not_depend_on_the_mesh_and_grows_with_the_batch(split):
    alone = estimate.ask(asked(text_to_video(), "data:1"))
    assert alone.model_flops == split.model_flops > 0
    assert alone.held["parameters"] == 4 * alone.parameters and sum(alone.collectives.values()) == 0


def test_without_compilation_only_the_state_is_known(tmp_path):
    tokenizer = tiny.save_tokenizer(tmp_path / "tokenizer")
    values = {**text_to_video(), "tokenizer": str(tokenizer)}
    known = measure.measure(dataclasses.replace(asked(values, "data:1"), compiled=False))
    assert known.temporary == 0 and known.held["frozen"] > 1000  # the whole named tokenizer


def test_the_tokenizer_can_be_planned_too():
    values = {"system": "mbq_vae", "data": tiny.SIZE, "model": tiny.TOKENIZER, "train": {"ema_decay": 0.0}}
    found = estimate.ask(dataclasses.replace(asked(values, "fsdp:2"), compiled=False))
    assert found.held["optimizer"] == pytest.approx(4 * found.parameters, rel=0.05) and found.held["average"] == 0


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_text_encoder_that_runs_in_the_step_counts(compiled, tmp_path):
    """The settings alone suffice, including the width of the features."""
    tower = {"vocab_size": 32, "d_model": 24, "d_kv": 4, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "feed_forward_proj": "gated-gelu", **tower}))
    values = {**text_to_video(), "text": {"tower": str(tmp_path)}}
    found = measure.measure(dataclasses.replace(asked(values, "data:1"), compiled=compiled))
    layer = 4 * 24 * 16 + 3 * 24 * 40 + 2 * 24  # attention, products and norms
    assert found.held["frozen"] == 2 * (32 * 24 + 2 * layer + 32 * 4 + 24)  # words, layers, distances, the last norm
    assert (found.temporary > 0) == compiled and found.uncounted == ""


def test_a_published_text_encoder_that_is_not_here_is_left_out_and_named():
    values = {**text_to_video(), "text": {"tower": "nobody/has-this"}}
    known = measure.measure(dataclasses.replace(asked(values, "data:1"), compiled=False))
    features = 2 * MODEL["text_dim"] * tiny.DENOISER["text_len"] * tiny.SIZE["batch_size"]
    assert known.held["batch"] > features and known.held["frozen"] == 0
    assert known.uncounted == "the text encoder nobody/has-this, which is no folder here"


@pytest.mark.parametrize(
    ("values", "mesh", "message"),
    [
        ({"data": {"batch_size": 3}}, "data:2", "batch_size=3: does not divide"),
        ({"model": {"remat": "ful"}}, "data:1", "config.model.remat=ful: expected one of none, dots, full, offload"),
    ],
)
def test_what_would_not_train_is_not_estimated(values, mesh, message):
    with pytest.raises(UserError, match=message):
        estimate.ask(asked(text_to_video(**values), mesh))


def test_of_several_buckets_the_largest_counts():
    sizes = [{**tiny.SIZE, "batch_size": 4}, {**tiny.SIZE, "height": 32, "batch_size": 4}]
    question = asked(text_to_video(data={"buckets": sizes}), "data:1")
    assert [bucket["height"] for bucket in question.values["data"]["buckets"]] == [32, 16]


@pytest.mark.slow
@pytest.mark.skipif(bool(machines.missing()), reason="needs the extra gpu-estimate")
def test_a_program_for_a_gpu_scatters_gradients_and_runs_flash_attention():
    """What the program for a CPU does not: it has no reduce-scatter, and holds the scores."""
    values = text_to_video(model={"dtype": "bfloat16"})
    found = estimate.ask(questions.question(values, parse("fsdp:2"), "a100:1x1x2"))
    other = estimate.ask(asked(values, "fsdp:2"))
    assert found.held == other.held and found.model_flops == pytest.approx(other.model_flops, rel=0.02)
    assert found.collectives["reduce-scatter"] > 0 == other.collectives["reduce-scatter"]
    assert 0 < found.ffts < found.launches and other.launches is None
