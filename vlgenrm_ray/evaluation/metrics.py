"""Figures of a judge on held-out pairs. Pure numpy; a reward that could not be read is NaN.

An unreadable pair (a reward missing on either side) counts one half in pairwise accuracy, like a tie: it is a
coin the judge declined to toss. Leaving it out would reward a judge for abstaining on what is hard; counting it
wrong would mix two faults. How often it happens is the verdict coverage, which stands beside every accuracy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.records import PairResult, Preference

Array = npt.NDArray[np.float64]

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval [low, high] over `num` observations; all NaN where there is none."""

    value: float
    low: float
    high: float
    num: int


def outcomes(chosen: Array, rejected: Array) -> Array:
    """Rewards (N,) of both sides -> (N,): 1 ranked right, 0 ranked wrong, 1/2 tied or unreadable."""
    difference = chosen - rejected
    return np.where(np.isnan(difference), 0.5, (np.sign(difference) + 1) / 2)


def wilson(values: Array) -> Estimate:
    """Mean of values (N,) in [0, 1] with Wilson's 95 % score interval.

    With halves among the values it is wider than need be, for their variance is smaller than a coin's; unlike a
    bootstrap's it does not shrink to a point when all values are equal.
    """
    num = len(values)
    if not num:
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), num=0)
    mean = float(np.mean(values))
    spread = _Z95**2 / num
    centre = (mean + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * float(np.sqrt(mean * (1 - mean) / num + spread / (4 * num)))
    return Estimate(value=mean, low=max(0.0, centre - half), high=min(1.0, centre + half), num=num)


def paired_gain(
    before: Mapping[str, float], after: Mapping[str, float], *, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of after - before over the pair ids both have, with a percentile bootstrap over pairs (95 %).

    Values are `outcomes` by pair id. Pairing takes the pairs' own difficulty out of the interval. A resample is
    drawn as multinomial counts of the distinct differences: the same bootstrap, without a table of N x resamples.
    """
    ids = sorted(before.keys() & after.keys())
    if not ids:
        return wilson(np.array([]))
    differences = np.array([after[i] - before[i] for i in ids])
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(ids), counts / len(ids), size=resamples)
    low, high = np.quantile(drawn @ values / len(ids), [0.025, 0.975])
    return Estimate(value=float(differences.mean()), low=float(low), high=float(high), num=len(ids))


def auroc(good: Array, bad: Array) -> float:
    """Probability that a good response's reward exceeds a bad one's, ties one half (Mann-Whitney U)."""
    good, bad = good[~np.isnan(good)], np.sort(bad[~np.isnan(bad)])
    if not len(good) or not len(bad):
        return float("nan")
    below = np.searchsorted(bad, good, side="left")
    not_above = np.searchsorted(bad, good, side="right")
    return float((below + not_above).mean() / 2 / len(bad))


def ece(probability: Array, label: Array, bins: int = 15) -> float:
    """Expected calibration error of probabilities (N,) for labels (N,) in {0, 1}, in bins of equal width.

    Sum over bins of share of points x |mean label - mean probability| (arXiv 1706.04599); NaNs are left out.
    """
    probability, label = _readable(probability, label)
    if not len(probability):
        return float("nan")
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=label - probability, minlength=bins)
    return float(np.abs(gap).sum() / len(probability))


def brier(probability: Array, label: Array) -> float:
    """Mean squared distance of probability (N,) and label (N,); NaNs are left out."""
    probability, label = _readable(probability, label)
    return float(np.mean((probability - label) ** 2)) if len(probability) else float("nan")


def _readable(probability: Array, label: Array) -> tuple[Array, Array]:
    keep = ~np.isnan(probability)
    return probability[keep], label[keep]


def rewards(results: Sequence[PairResult]) -> tuple[Array, Array]:
    """Rewards (N,) of the chosen and of the rejected responses, NaN where there is none."""
    chosen = [r.chosen.reward for r in results]
    rejected = [r.rejected.reward for r in results]
    return np.array(chosen, dtype=np.float64), np.array(rejected, dtype=np.float64)


def outcomes_by_id(results: Sequence[PairResult]) -> dict[str, float]:
    """Pair id -> outcome, as `paired_gain` takes it."""
    values = outcomes(*rewards(results))
    return {r.preference.id: float(v) for r, v in zip(results, values, strict=True)}


def summary(results: Sequence[PairResult]) -> dict[str, Any]:
    """All figures of one judge on one set of pairs, as JSON; None where a figure has no observation.

    `verdict_coverage` is the share of responses that got a reward, `pair_coverage` that of pairs with both.
    """
    chosen, rejected = rewards(results)
    won = outcomes(chosen, rejected)
    probability = np.concatenate([chosen, rejected])
    label = np.concatenate([np.ones(len(chosen)), np.zeros(len(rejected))])
    kinds = np.array([r.preference.kind for r in results])
    accuracy = plain(wilson(won))
    return {
        "pairwise_accuracy": accuracy["value"],
        "ci95": accuracy["ci95"],
        "num_pairs": accuracy["num"],
        "auroc": _number(auroc(chosen, rejected)),
        "ece": _number(ece(probability, label)),
        "brier": _number(brier(probability, label)),
        "verdict_coverage": _share(~np.isnan(probability)),
        "pair_coverage": _share(~np.isnan(chosen - rejected)),
        "by_kind": {str(kind): plain(wilson(won[kinds == kind])) for kind in np.unique(kinds)},
    }


def blind(preferences: Sequence[Preference]) -> dict[str, Any]:
    """Accuracy of two judges that see neither image nor question: the shorter text wins, the longer wins."""
    chosen = np.array([float(len(p.chosen)) for p in preferences])
    rejected = np.array([float(len(p.rejected)) for p in preferences])
    return {
        "shorter": plain(wilson(outcomes(-chosen, -rejected))),
        "longer": plain(wilson(outcomes(chosen, rejected))),
    }


def plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON."""
    return {
        "value": _number(estimate.value),
        "ci95": [_number(estimate.low), _number(estimate.high)],
        "num": estimate.num,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)


def _share(holds: npt.NDArray[np.bool_]) -> float | None:
    return _number(float(holds.mean())) if len(holds) else None
