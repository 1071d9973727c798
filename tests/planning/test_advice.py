"""The search for the cheapest change, on a memory model simple enough to solve by hand."""

import math

from motionaura_jax.core.recipe import TrainConfig
from motionaura_jax.parallel.config import AXES
from motionaura_jax.planning.advice import advise
from motionaura_jax.planning.estimate import Estimate, Question
from motionaura_jax.planning.machines import GIB

FULL = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}


def ask(question):
    """Answer with 2 GiB of parameters and, per clip, 4 GiB of activations (dots: half, full: an eighth) and 3 GiB of logits."""
    values, mesh = question.values, question.mesh
    split = mesh["fsdp"]
    means = {"float32": 2.0, "bfloat16": 1.0}[values["optimizer"]["mu_dtype"]]
    squares = 0.0 if values["optimizer"]["name"] == "adafactor" else 2.0
    held = {"parameters": int(2 * GIB / split), "optimizer": int((means + squares) * GIB / split)}
    clips = values["data"]["batch_size"] // mesh["data"] // mesh["fsdp"]
    count = TrainConfig(**values["train"]).microbatches(clips)
    clips /= count
    activations = {"none": 4.0, "dots": 2.0, "full": 0.5, "branch": 0.25}[
        values.get("model", {}).get("remat", "none")
    ] * clips
    logits = 3.0 * clips if values.get("model", {}).get("loss_chunk", 1024) == 0 else 0.0
    gradients = 2 * GIB / split * (1 if count == 1 else 2)
    temporary = int(gradients + (activations + logits) * GIB)
    return Estimate(devices=math.prod(mesh.values()), parameters=GIB // 2, held=held, temporary=temporary)


def question(batch_size=4, accumulation=1, mesh=FULL, **model):
    values = {
        "system": "text_to_video",
        "data": {"batch_size": batch_size, "buckets": []},
        "train": {"accumulation": accumulation, "microbatch": 0},
        "optimizer": {"name": "adamw", "mu_dtype": "float32"},
        "model": model,
    }
    return Question(values=values, mesh={**FULL, **mesh})


def advice(asked, gib):
    return advise(asked, ask(asked), gib * GIB, ask)


def test_what_costs_nothing_comes_first():
    found = advice(
        question(remat="none", loss_chunk=0), 25
    )  # 6 of state, 2 of gradients, 16 of activations, 12 of logits
    assert found.changes == ("--config.model.loss_chunk=1024",) and found.fits
    assert str(found) == "--config.model.loss_chunk=1024 takes 24 GiB on each device"


def test_recomputation_grows_only_as_far_as_it_has_to():
    asked = question(remat="none", loss_chunk=1024)
    assert advice(asked, 17).changes == ("--config.model.remat=dots",)
    assert advice(asked, 11).changes == ("--config.model.remat=full",)


def test_a_limit_of_the_clips_of_a_device_is_lowered():
    asked = question(batch_size=16, remat="full", loss_chunk=1024)
    asked.values["train"]["microbatch"] = 8
    # 6 of state, 4 of gradients and their sums leave 3 for 0.5 a clip.
    assert advice(asked, 13).changes == ("--config.train.microbatch=4",) and advice(asked, 13).fits


def test_branches_of_a_tokenizer_are_recomputed_where_microbatches_do_not_suffice():
    asked = question(batch_size=1, remat="full")
    asked.values["system"] = "mbq_vae"
    assert advice(asked, 8.3).changes == ("--config.model.remat=branch",)
    asked.values["system"] = "text_to_video"
    assert "--config.model.remat=branch" not in advice(asked, 8.3).changes


def test_microbatches_are_as_large_as_they_can_be():
    found = advice(question(batch_size=12, remat="full", loss_chunk=1024), 13)
    # 6 of state, 4 of gradients and their sums leave 3 for 6 of activations.
    assert found.changes == ("--config.train.accumulation=2",) and found.fits


def test_microbatches_divide_over_the_devices_of_every_bucket():
    asked = question(batch_size=8, remat="full", mesh={"fsdp": 2})
    asked.values["data"]["buckets"] = [{"batch_size": 8}, {"batch_size": 4}]
    found = advice(asked, 3)
    assert {change for change in found.changes if "accumulation" in change} <= {"--config.train.accumulation=2"}


def test_a_state_that_does_not_fit_is_split_before_anything_else():
    found = advice(question(remat="dots", loss_chunk=1024, mesh={"data": 4}), 5.7)
    assert found.changes == ("--config.mesh.data=1", "--config.mesh.fsdp=4") and found.fits


def test_smaller_optimizer_states_are_the_last_resort():
    asked = question(batch_size=1, remat="full", loss_chunk=1024)
    assert advice(asked, 7.6).changes == ("--config.optimizer.mu_dtype=bfloat16",)
    assert advice(asked, 5.6).changes == ("--config.optimizer.mu_dtype=bfloat16", "--config.optimizer.name=adafactor")


def test_hopeless_runs_are_told_so():
    found = advice(question(batch_size=1, remat="full"), 2)
    assert not found.fits and str(found).startswith("even --config.optimizer.mu_dtype=bfloat16")
    assert "use more devices" in str(found)


def test_settings_that_a_recipe_does_not_have_are_left_alone():
    asked = question(batch_size=4)
    assert advice(asked, 17).changes == ("--config.train.accumulation=4",)
    del asked.values["model"]  # a recipe without such a section
    assert advice(asked, 17).changes == ("--config.train.accumulation=4",)


def test_every_mesh_axis_is_known_to_the_search():
    assert set(FULL) == set(AXES)
