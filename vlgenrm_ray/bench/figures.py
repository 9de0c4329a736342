"""What is made of measured times and sizes. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank). Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    rank = math.ceil(share * len(values))
    return sorted(values)[max(rank, 1) - 1]


def middle(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure, the median of the turns."""
    return {name: round(median(turn[name] for turn in turns), 3) for name in turns[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """A straight line's rise, by least squares."""

    value: float
    low: float
    high: float
    """95 % interval, for errors that are independent and normal. Those of a process' memory are neither quite: read it
    as a lower bound of the doubt."""


def slope(times: Sequence[float], values: Sequence[float]) -> Slope:
    """Rise of `values` per unit of `times`. Raises ValueError for fewer than three, or all at one time."""
    count = len(times)
    if count < 3 or len(values) != count:
        raise ValueError(f"{count} times and {len(values)} values; a slope needs three of each")
    middle, mean = math.fsum(times) / count, math.fsum(values) / count
    spread = math.fsum((t - middle) ** 2 for t in times)
    if not spread:
        raise ValueError("all at one time")
    rise = math.fsum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True)) / spread
    left = math.fsum((v - mean - rise * (t - middle)) ** 2 for t, v in zip(times, values, strict=True))
    margin = NormalDist().inv_cdf(0.975) * math.sqrt(left / (count - 2) / spread)
    return Slope(value=rise, low=rise - margin, high=rise + margin)
