"""The Wilson interval against published numbers and the equation that defines it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.metrics.statistics import wilson


def test_known_intervals():
    # Newcombe 1998, table I, method 3 (without continuity correction).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.1, 4))
def test_bounds_solve_the_score_equation(case, z):
    successes, n = case
    low, high = wilson(successes, n, z)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1
    for bound in (low, high):
        assert abs(successes / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_mirrored_counts_have_mirrored_intervals():
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "n", "z"), [(0, 0, 1.96), (-1, 5, 1.96), (6, 5, 1.96), (1, 5, -1.0)])
def test_bad_counts_are_value_errors(successes, n, z):
    with pytest.raises(ValueError, match="no success rate"):
        wilson(successes, n, z)
