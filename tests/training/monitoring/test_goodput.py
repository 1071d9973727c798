"""Goodput against a fake clock, and across the restarts of a run."""

import json

import jax
import jax.numpy as jnp
import pytest

from motionaura_jax.ops.attention import attend
from motionaura_jax.training import loop
from motionaura_jax.training.monitoring import flops
from motionaura_jax.training.monitoring.goodput import Goodput
from motionaura_jax.training.monitoring.writers import read_metrics
from tests.training.test_guards import toy


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_every_second_is_booked_once(tmp_path):
    clock = Clock()
    with Goodput(tmp_path, began=95.0, now=clock) as goodput:
        clock.now += 5
        with goodput.clock("steps"):
            for kind, seconds in (("data", 5), ("checkpoint", 15), ("evaluation", 10)):
                clock.now += 15
                with goodput.clock(kind):
                    clock.now += seconds
            with goodput.clock("data", unless=lambda: True):  # the device was still busy
                clock.now += 15
        shares = goodput.shares()
    assert shares["badput_start"] == 0.1 and shares["badput_data"] == 0.05 and shares["badput_evaluation"] == 0.1
    assert shares["goodput"] == 0.6 and shares["badput_checkpoint"] == 0.15 and shares["badput_lost"] == 0
    assert sum(shares.values()) == pytest.approx(1)


def test_a_step_that_compiles_is_booked_as_such(tmp_path):
    clock = Clock()
    with Goodput(tmp_path, now=clock) as goodput, goodput.clock("steps"):
        jax.jit(lambda x: x * 3.14159 + 2)(jnp.ones(7)).block_until_ready()
        clock.now += 3
        assert goodput.compiled
        goodput.mark()
        clock.now += 1
        assert not goodput.compiled
    assert goodput.shares()["badput_compile"] == 0.75 and goodput.shares()["goodput"] == 0.25
    jax.jit(lambda x: x * 2.71828 + 2)(jnp.ones(7)).block_until_ready()
    assert not goodput.compiled


def test_work_beyond_the_checkpoint_is_lost_by_a_restart_or_a_rollback(tmp_path):
    clock = Clock()
    goodput = Goodput(tmp_path, now=clock)
    with goodput.clock("steps"):
        for step in (10, 20):
            clock.now += 50
            with goodput.clock("checkpoint"):
                goodput.saved(step)
        clock.now += 30
    goodput.write()

    clock.now += 1000  # no run is active
    again = Goodput(tmp_path, now=clock)
    again.resume(10)  # step 20 was never committed
    assert again.shares()["goodput"] == pytest.approx(50 / 130)
    assert again.shares()["badput_lost"] == pytest.approx(80 / 130)
    with again.clock("steps"):
        clock.now += 70
    again.lose(10)
    assert again.shares() == pytest.approx({**again.shares(), "goodput": 0.25, "badput_lost": 0.75})


def test_a_spoiled_file_counts_as_none(tmp_path):
    (tmp_path / "goodput.json").write_text('{"seconds": ')
    goodput = Goodput(tmp_path, now=Clock())
    goodput.resume(5)
    assert goodput.shares()["goodput"] == 0


def test_the_log_has_goodput_and_the_workdir_keeps_it(tmp_path):
    loop.fit(toy(checkpoint={"every": 2}), tmp_path)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    kinds = ("start", "compile", "data", "checkpoint", "evaluation", "lost")
    for row in rows:
        assert row["goodput"] + sum(row[f"badput_{kind}"] for kind in kinds) == pytest.approx(1)
        assert row["model_tflops"] > 0 and "mfu" not in row
    saved = json.loads((tmp_path / "goodput.json").read_text())
    assert saved["seconds"]["compile"] > 0 and saved["seconds"]["checkpoint"] > 0
    assert set(saved["steps_at_checkpoint"]) == {"2", "4", "6"}
    loop.fit(toy(checkpoint={"every": 2}, train={"steps": 8}), tmp_path, override=True)
    again = json.loads((tmp_path / "goodput.json").read_text())
    assert (
        again["seconds"]["start"] > saved["seconds"]["start"] and again["seconds"]["steps"] >= saved["seconds"]["steps"]
    )


# ---------------------------------------------------------------- Model FLOPs


def count(function, flags, *shapes):
    traced = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return flops.step_flops(traced.jaxpr, flags)


def test_products_count_three_times_where_a_gradient_flows():
    product = lambda a, b: (a @ b).sum()  # noqa: E731
    assert count(product, [True, False], (3, 4), (4, 5)) == 3 * 2 * 3 * 4 * 5
    assert count(product, [False, False], (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    chain = lambda w, x, y: (x @ y @ w).sum()  # noqa: E731, the first product needs no gradient
    assert count(chain, [True, False, False], (5, 6), (3, 4), (4, 5)) == 2 * 3 * 4 * 5 + 3 * 2 * 3 * 5 * 6


def test_loops_calls_and_remat_count_what_they_compute():
    def scanned(w, x):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, length=7)[0].sum()

    layer = 3 * 2 * 3 * 4 * 4
    assert count(scanned, [True, False], (4, 4), (3, 4)) == 7 * layer
    assert count(jax.checkpoint(lambda w, x: (x @ w).sum()), [True, False], (4, 4), (3, 4)) == layer
    assert count(jax.jit(lambda w, x: (x @ w).sum()), [True, False], (4, 4), (3, 4)) == layer


def test_convolutions_and_transforms():
    def convolution(w, x):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()

    assert count(convolution, [True, False], (3, 3, 5, 7), (2, 8, 8, 5)) == 3 * 2 * (2 * 8 * 8 * 7) * (3 * 3 * 5)
    fft = lambda x: jnp.abs(jnp.fft.fft(x)).sum()  # noqa: E731
    assert count(fft, [False], (4, 16)) == 5 * 64 * 4
    rfft = lambda x: jnp.abs(jnp.fft.rfft(x)).sum()  # noqa: E731
    assert count(rfft, [False], (4, 16)) == 2.5 * 64 * 4


def test_attention_counts_the_same_in_the_kernel_of_cudnn(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 90800)
    query, key = (jax.ShapeDtypeStruct((2, length, 3, 16), jnp.bfloat16) for length in (40, 24))
    counts = {}
    for impl in ("whole", "cudnn"):
        traced = jax.make_jaxpr(lambda *xs, impl=impl: jax.checkpoint(lambda *xs: attend(*xs, impl=impl))(*xs))
        counts[impl] = flops.step_flops(traced(query, key, key).jaxpr, [True] * 3)
    assert counts["cudnn"] == counts["whole"] == 3 * 2 * 2 * (2 * 3 * 40 * 24 * 16)


def test_the_peak_of_a_device_goes_by_the_longest_name():
    assert flops.peak("NVIDIA H100 80GB HBM3") == 989e12 and flops.peak("NVIDIA H100 PCIe") == 756e12
    assert flops.peak("TPU v5 lite") == 197e12 and flops.peak("TPU v5p") == flops.peak("TPU v5") == 459e12
    assert flops.peak("cpu") is None
