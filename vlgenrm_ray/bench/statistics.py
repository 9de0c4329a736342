"""Statistics of measured times and sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from scipy import stats


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values do not exceed (nearest rank).

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("no values")
    rank = math.ceil(share * len(values))
    return sorted(values)[max(rank, 1) - 1]


def median_metrics(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median over the turns of each metric, rounded to 3 digits."""
    return {name: round(median(turn[name] for turn in turns), 3) for name in turns[0]}


def ratio_per_turn(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide two sides turn by turn, rounded to 3 digits."""
    return [round(a / b, 3) for a, b in zip(numerators, denominators, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Slope of a straight line fitted by least squares."""

    value: float
    low: float
    high: float
    """Bounds of the 95 % interval for independent, normal errors. The memory of a process has neither: the true
    uncertainty is larger."""


def fit_slope(times: Sequence[float], values: Sequence[float]) -> Slope:
    """Fit the rise of `values` per unit of `times`.

    Raises:
        ValueError: Fewer than three points, or all at the same time.
    """
    if len(times) < 3 or len(values) != len(times):
        raise ValueError(f"{len(times)} times and {len(values)} values; a slope needs three of each")
    if len(set(times)) == 1:
        raise ValueError("all values have the same time; a slope needs at least two times")
    line = stats.linregress(times, values)
    margin = NormalDist().inv_cdf(0.975) * float(line.stderr)
    return Slope(value=float(line.slope), low=float(line.slope) - margin, high=float(line.slope) + margin)
