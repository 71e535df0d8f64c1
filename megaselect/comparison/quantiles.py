"""How measurements are summed up. Needs nothing but Python."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Quantiles(NamedTuple):
    """Of a list of measurements, in their unit."""

    low: float
    median: float
    high: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """The 20 % quantile, the median and the 80 % quantile; of a single value, that value thrice."""
    if len(values) == 1:
        return Quantiles(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Quantiles(fifths[0], statistics.median(values), fifths[3])
