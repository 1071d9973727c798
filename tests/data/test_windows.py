"""Skipped windows against a plain list of the remaining data steps."""

from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.data.windows import SkippedWindows

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda r: (r[0], r[0] + r[1])), max_size=5)


def left(windows: SkippedWindows) -> list[int]:
    skipped = {step for first, end in windows.ranges for step in range(first, end)}
    return [step for step in range(120) if step not in skipped]


@given(RANGES, st.integers(0, 25), st.integers(0, 25))
def test_optimizer_steps_read_what_is_left_in_order(ranges, first, count):
    windows = SkippedWindows.of(ranges)
    assert [windows.data_step(step) for step in range(50)] == left(windows)[:50]
    read = [step for begin, end in windows.segments(first, first + count) for step in range(begin, end)]
    assert read == left(windows)[first : first + count]


@given(RANGES, st.integers(0, 25), st.integers(1, 5))
def test_a_new_window_changes_nothing_before_it_and_takes_exactly_the_steps_named(ranges, step, count):
    windows = SkippedWindows.of(ranges)
    first, end = windows.data_step(step), windows.data_step(step + count - 1) + 1
    after = windows.with_window(first, end)
    assert [after.data_step(n) for n in range(step)] == [windows.data_step(n) for n in range(step)]
    assert [after.data_step(step + n) for n in range(20)] == [windows.data_step(step + count + n) for n in range(20)]
    assert SkippedWindows.of(after.ranges) == after
