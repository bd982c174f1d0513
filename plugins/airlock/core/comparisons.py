"""Comparing groups: the difference of two shares, and many tests at once.

Sources:
    Newcombe (1998), Interval estimation for the difference between independent proportions, method 10.
    Benjamini, Hochberg (1995), Controlling the false discovery rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from airlock.core.sequential import Interval
from airlock.core.stats import wilson


def difference_of_shares(first: tuple[int, int], second: tuple[int, int], confidence: float) -> Interval:
    """Newcombe's interval of one share minus another, of independent rows; each share is (hits, n).

    Raises:
        TooFew: an ``n`` is 0.
    """
    one, two = wilson(*first, confidence), wilson(*second, confidence)
    difference = one.estimate - two.estimate
    low = math.hypot(one.estimate - one.low, two.high - two.estimate)
    high = math.hypot(one.high - one.estimate, two.estimate - two.low)
    return Interval(difference, difference - low, difference + high)


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values, in the order given: to reject those of at most q keeps the false discovery rate at q.

    Proven for independent tests, and for some kinds of positive dependence.

    Raises:
        ValueError: what is given is no p-value.
    """
    if not all(0 <= p_value <= 1 for p_value in p_values):
        raise ValueError(f"p-values lie between 0 and 1, got {list(p_values)}")
    count, smallest = len(p_values), 1.0
    adjusted = [1.0] * count
    for rank, place in reversed(list(enumerate(sorted(range(count), key=lambda index: p_values[index]), start=1))):
        smallest = min(smallest, p_values[place] * count / rank)
        adjusted[place] = smallest
    return tuple(adjusted)
