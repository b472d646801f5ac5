"""How sure a number is."""

from __future__ import annotations

import math


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95% interval of a rate."""
    if not count:
        return 0.0, 1.0
    z, rate = 1.96, successes / count
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)
