"""The bucket schedule: exact in every period, evenly spread, and stateless."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import DataConfig
from motionaura_jax.data.buckets import Bucket, Schedule, at_rates


def buckets(*weights: float, batch_sizes: tuple[int, ...] = ()) -> list[Bucket]:
    sizes = batch_sizes or (2,) * len(weights)
    return [
        Bucket(num_frames=1 + i, height=8, width=8, batch_size=size, weight=weight)
        for i, (weight, size) in enumerate(zip(weights, sizes, strict=True))
    ]


def test_proportions_are_exact() -> None:
    schedule = Schedule.from_buckets(buckets(40, 10, 25, 25))
    assert Counter(schedule.pattern) == {0: 8, 1: 2, 2: 5, 3: 5}
    assert Schedule.from_buckets(buckets(0.4, 0.1, 0.25, 0.25)).pattern == schedule.pattern
    assert Schedule.from_buckets(buckets(3)).pattern == (0,)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_interleaving_is_even(weights: list[int]) -> None:
    """Among the first n steps each bucket has its share to within less than the number of buckets."""
    schedule = Schedule.from_buckets(buckets(*weights))
    for index, weight in enumerate(weights):
        seen = 0
        for position, chosen in enumerate(schedule.pattern, start=1):
            seen += chosen == index
            assert abs(seen - position * weight / sum(weights)) <= max(1, len(weights) - 1)
        assert seen * sum(weights) == weight * len(schedule.pattern)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 90))
def test_first_sample_equals_the_history(shapes: list[tuple[int, int]], step: int) -> None:
    schedule = Schedule.from_buckets(
        buckets(*(weight for weight, _ in shapes), batch_sizes=tuple(size for _, size in shapes))
    )
    drawn: Counter[int] = Counter()
    for earlier in range(step):
        assert schedule.first_sample(earlier) == drawn[schedule.index(earlier)]
        drawn[schedule.index(earlier)] += schedule.bucket(earlier).batch_size
    assert schedule.first_sample(step) == drawn[schedule.index(step)]
    assert schedule.bucket(step) is schedule.buckets[schedule.index(step)]


def test_distant_steps_are_immediate() -> None:
    schedule = Schedule.from_buckets(buckets(40, 10, 25, 25))
    step = 20 * 10**15
    assert schedule.first_sample(step) == 2 * 10**15 * Counter(schedule.pattern)[schedule.index(0)]


@pytest.mark.parametrize("weights", [(0.0,), (-1.0,), (float("nan"),), (float("inf"),), (1.0, 0.123456789)])
def test_unusable_weights(weights: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="weight"):
        Schedule.from_buckets(buckets(*weights))


def test_unusable_sizes() -> None:
    with pytest.raises(UserError, match=r"Bucket\.num_frames=0: must be at least 1"):
        Bucket(num_frames=0, height=8, width=8, batch_size=1)
    with pytest.raises(UserError, match="no buckets"):
        Schedule.from_buckets([])


def test_frame_rates_share_the_weight_of_each_bucket():
    size = {"height": 32, "width": 32, "batch_size": 4}
    videos, images = Bucket(num_frames=8, weight=0.6, **size), Bucket(num_frames=1, weight=0.4, fps=1.0, **size)
    found = at_rates((videos, images), (8.0, 16.0, 24.0))
    assert [bucket.fps for bucket in found] == [8.0, 16.0, 24.0, 1.0]
    turns = Counter(found[index].num_frames for index in Schedule.from_buckets(found).pattern)
    assert turns[8] * 0.4 == pytest.approx(turns[1] * 0.6)
    assert at_rates((videos, images), ()) == (videos, images)
    data = DataConfig(manifest="clips", num_frames=8, frame_rates=(8.0, 24.0))
    assert data.rates == (8.0, 24.0) and {shape.num_frames for shape in data.shapes} == {8}
