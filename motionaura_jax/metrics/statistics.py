"""Intervals of success rates.  Wilson 1927, "Probable inference, the law of succession, and statistical inference"."""

import math


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a success probability; z = 1.96 gives 95 % coverage.

    The bounds are the probabilities p with |successes / n - p| = z sqrt(p (1 - p) / n), so that 0 of n and n of n have
    sensible intervals too.

    Returns:
      Lower and upper bound in [0, 1].

    Raises:
      ValueError: `n` is not positive, `successes` not in [0, n], or `z` negative.
    """
    if n < 1 or not 0 <= successes <= n or z < 0:
        raise ValueError(f"no success rate: {successes} of {n} with z = {z}")
    rate = successes / n
    shrink = 1 + z * z / n
    center = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)
