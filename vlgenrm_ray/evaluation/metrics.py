"""Metrics of a judge on held-out pairs. A reward that could not be read is NaN.

An unreadable pair (a reward missing on either side) counts one half in pairwise accuracy, like a tie. Leaving it out
would favour a judge that abstains on hard pairs; counting it wrong would mix two faults. The verdict coverage,
reported with every accuracy, shows how often this happens.

AUROC and the Brier score are scikit-learn's. The Wilson interval is computed here because values may be halves, which
`scipy.stats.binomtest` refuses; the paired bootstrap because its draw is part of the reported figures and needs no
table of N x resamples.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.judge.verdict import TIE
from vlgenrm_ray.records import PairResult, Preference

Array = npt.NDArray[np.float64]

_Z95 = 1.959963984540054
"""Standard normal quantile at 0.975."""
_MAX_WEIGHTS = 4_000_000
"""Weights of bootstrap resamples held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval [low, high] over `num` observations; all NaN if there is none."""

    value: float
    low: float
    high: float
    num: int


def outcomes(chosen: Array, rejected: Array) -> Array:
    """Compare the rewards (N,) of both sides: 1 ranked right, 0 ranked wrong, 1/2 tied or unreadable."""
    difference = chosen - rejected
    return np.where(np.isnan(difference), 0.5, (np.sign(difference) + 1) / 2)


def wilson_interval(values: Array) -> Estimate:
    """Compute the mean of values (N,) in [0, 1] with Wilson's 95 % score interval.

    If some values are halves the interval is wider than necessary, because their variance is smaller than that of
    zeros and ones. Unlike a bootstrap interval it does not shrink to a point when all values are equal.
    """
    return _wilson(values, float(len(values)))


def clustered_interval(values: Array, clusters: Sequence[Hashable]) -> Estimate:
    """Compute the mean of values (N,) in [0, 1] with a 95 % interval that respects clusters of dependent values.

    Values of one cluster, such as questions about one image, tell less than as many independent ones. The interval is
    Wilson's for N / d observations, where the design effect d (Kish 1965) is the variance of the mean between clusters
    over that of independent values, at least 1. If all values are equal, each cluster counts as one observation.

    Args:
        values: Values (N,) in [0, 1].
        clusters: Cluster of each value.
    """
    index = cluster_index(clusters)
    num_clusters = int(index.max()) + 1 if len(index) else 0
    if num_clusters == len(values):
        return wilson_interval(values)
    residuals = values - values.mean()
    independent = float(np.sum(residuals**2))
    if not independent:
        return _wilson(values, float(num_clusters))
    between = float(np.sum(np.bincount(index, weights=residuals) ** 2)) * num_clusters / max(1, num_clusters - 1)
    effective = len(values) / max(1.0, between / independent)
    return _wilson(values, effective if num_clusters > 1 else 1.0)


def cluster_index(clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Number the clusters from 0 in the order of their first value; return the number (N,) of each value's cluster."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def bootstrap_interval(
    statistic: Callable[[Array], Array], clusters: Sequence[Hashable], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Compute a statistic with its percentile bootstrap interval over clusters (95 %), for those without a formula.

    Args:
        statistic: Computes the statistic (R,) of R resamples from the weights (R, N) of the values: the number of times
            that each was drawn. NaN where it is undefined; such resamples are left out of the interval.
        clusters: Cluster of each of the N values; a resample draws clusters. With one cluster there is no interval.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    index = cluster_index(clusters)
    if not len(index):
        return wilson_interval(np.array([]))
    num_clusters = int(index.max()) + 1
    (value,) = statistic(np.ones((1, len(index))))
    low, high = float("nan"), float("nan")
    if num_clusters > 1:
        share = np.full(num_clusters, 1 / num_clusters)
        generator = np.random.default_rng(seed)
        block = max(1, min(resamples, _MAX_WEIGHTS // len(index)))
        blocks = [
            statistic(generator.multinomial(num_clusters, share, size=size)[:, index].astype(np.float64))
            for start in range(0, resamples, block)
            if (size := min(block, resamples - start))
        ]
        resampled = np.concatenate(blocks)
        resampled = resampled[~np.isnan(resampled)]
        if len(resampled):
            low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value=float(value), low=float(low), high=float(high), num=len(index))


def divide(numerator: Array, denominator: Array, *, default: float = float("nan")) -> Array:
    """Divide arrays element by element; `default` where the denominator is 0."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), default)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def _wilson(values: Array, effective: float) -> Estimate:
    """Compute Wilson's interval of the mean of values as if they were `effective` independent ones."""
    num = len(values)
    if not num:
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), num=0)
    mean = float(np.mean(values))
    spread = _Z95**2 / effective
    centre = (mean + spread / 2) / (1 + spread)
    half_width = _Z95 / (1 + spread) * float(np.sqrt(mean * (1 - mean) / effective + spread / (4 * effective)))
    return Estimate(value=mean, low=max(0.0, centre - half_width), high=min(1.0, centre + half_width), num=num)


def paired_gain(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    clusters: Mapping[str, Hashable] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Compute the mean of after - before with a percentile bootstrap interval over pairs (95 %).

    Pairing removes the difficulty of the pairs from the interval. A resample is drawn as multinomial counts of the
    distinct differences: the same distribution as resampling pairs, without a table of N x resamples.

    Args:
        before: Pair id -> outcome of the first judge.
        after: Pair id -> outcome of the second judge; ids that only one of both has are ignored.
        clusters: Pair id -> its cluster, such as its image; a resample then draws clusters. None: pairs.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    ids = sorted(before.keys() & after.keys())
    if not ids:
        return wilson_interval(np.array([]))
    differences = np.array([after[i] - before[i] for i in ids])
    index = cluster_index([clusters[i] for i in ids] if clusters is not None else ids)
    sums = np.stack([np.bincount(index, weights=differences), np.bincount(index)], axis=1)
    totals, counts = np.unique(sums, axis=0, return_counts=True)
    resampled = np.random.default_rng(seed).multinomial(len(sums), counts / len(sums), size=resamples) @ totals
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975])
    return Estimate(value=float(differences.mean()), low=float(low), high=float(high), num=len(ids))


def crossed_interval(values: Array, clusters: Sequence[Hashable]) -> Estimate:
    """Compute the mean over seeds and items with a 95 % interval that covers both: other items, and other seeds.

    Two-way clustered variance (Cameron, Gelbach and Miller 2011): V = V_items + V_seeds - V_items_and_seeds, at least
    the larger of the first two. The quantile is Student's, with Satterthwaite's degrees of freedom of the two parts, so
    that few seeds give a wide interval where seeds differ and cost nothing where they agree. With one seed the interval
    covers items only.

    Args:
        values: Values (S, N) of each seed on the same items, such as outcomes or differences of outcomes.
        clusters: Cluster of each of the N items.
    """
    num_seeds, num_items = values.shape
    if not values.size:
        return wilson_interval(np.array([]))
    mean = float(values.mean())
    index = cluster_index(clusters)
    num_clusters = int(index.max()) + 1
    if num_clusters < 2:
        return Estimate(value=mean, low=float("nan"), high=float("nan"), num=num_items)
    residuals = values - mean
    of_both = np.stack([np.bincount(index, weights=row, minlength=num_clusters) for row in residuals])
    scale = 1 / (num_seeds * num_items) ** 2
    of_items = float(np.sum(of_both.sum(axis=0) ** 2)) * scale * num_clusters / (num_clusters - 1)
    if num_seeds == 1:
        return _student(mean, of_items, num_clusters - 1, num_items)
    of_seeds = float(np.sum(of_both.sum(axis=1) ** 2)) * scale * num_seeds / (num_seeds - 1)
    num_cells = num_seeds * num_clusters
    variance = of_items + of_seeds - float(np.sum(of_both**2)) * scale * num_cells / (num_cells - 1)
    variance = max(variance, of_items, of_seeds)
    parts = of_items**2 / (num_clusters - 1) + of_seeds**2 / (num_seeds - 1)
    return _student(mean, variance, (of_items + of_seeds) ** 2 / parts if parts else 1.0, num_items)


def _student(mean: float, variance: float, degrees: float, num: int) -> Estimate:
    from scipy.stats import t

    half_width = float(t.ppf(0.975, degrees)) * variance**0.5
    return Estimate(value=mean, low=mean - half_width, high=mean + half_width, num=num)


def auroc(good: Array, bad: Array) -> float:
    """Compute the probability that a good response's reward exceeds a bad one's, ties one half; NaNs are left out."""
    from sklearn.metrics import roc_auc_score

    good, bad = good[~np.isnan(good)], bad[~np.isnan(bad)]
    if not len(good) or not len(bad):
        return float("nan")
    label = np.concatenate([np.ones(len(good)), np.zeros(len(bad))])
    return float(roc_auc_score(label, np.concatenate([good, bad])))


def ece(probability: Array, label: Array, bins: int = 15) -> float:
    """Compute the expected calibration error of probabilities (N,) for labels (N,) in {0, 1}.

    Sum over bins of equal width of share of points x |mean label - mean probability| (arXiv 1706.04599); NaNs are left
    out.
    """
    probability, label = _drop_nan(probability, label)
    if not len(probability):
        return float("nan")
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=label - probability, minlength=bins)
    return float(np.abs(gap).sum() / len(probability))


def brier(probability: Array, label: Array) -> float:
    """Compute the mean squared difference of probability (N,) and label (N,) in {0, 1}; NaNs are left out."""
    from sklearn.metrics import brier_score_loss

    probability, label = _drop_nan(probability, label)
    return float(brier_score_loss(label, probability, pos_label=1.0)) if len(probability) else float("nan")


def _drop_nan(probability: Array, label: Array) -> tuple[Array, Array]:
    is_readable = ~np.isnan(probability)
    return probability[is_readable], label[is_readable]


def reward_arrays(results: Sequence[PairResult]) -> tuple[Array, Array]:
    """Return the rewards (N,) of the chosen and of the rejected responses, NaN if there is none."""
    chosen = [r.chosen.reward for r in results]
    rejected = [r.rejected.reward for r in results]
    return np.array(chosen, dtype=np.float64), np.array(rejected, dtype=np.float64)


def outcomes_by_id(results: Sequence[PairResult]) -> dict[str, float]:
    """Map each pair id to its outcome, the input of `paired_gain`."""
    values = outcomes(*reward_arrays(results))
    return {r.preference_id: float(v) for r, v in zip(results, values, strict=True)}


def judge_metrics(results: Sequence[PairResult]) -> dict[str, Any]:
    """Compute all metrics of one judge on one set of pairs, as JSON; None if a metric has no observation.

    `verdict_coverage` is the share of responses with a reward, `pair_coverage` that of pairs with both.
    """
    chosen, rejected = reward_arrays(results)
    won = outcomes(chosen, rejected)
    probability = np.concatenate([chosen, rejected])
    label = np.concatenate([np.ones(len(chosen)), np.zeros(len(rejected))])
    kinds = np.array([r.kind for r in results])
    accuracy = estimate_as_json(wilson_interval(won))
    return {
        "pairwise_accuracy": accuracy["value"],
        "ci95": accuracy["ci95"],
        "num_pairs": accuracy["num"],
        "auroc": _rounded(auroc(chosen, rejected)),
        "ece": _rounded(ece(probability, label)),
        "brier": _rounded(brier(probability, label)),
        "verdict_coverage": _share(~np.isnan(probability)),
        "pair_coverage": _share(~np.isnan(chosen - rejected)),
        "by_kind": {str(kind): estimate_as_json(wilson_interval(won[kinds == kind])) for kind in np.unique(kinds)},
    }


def order_metrics(results: Sequence[PairResult]) -> dict[str, Any]:
    """Compute how much a pairwise judge depends on the order of the responses, as JSON.

    Returns:
        `position_bias`: mean probability that the response shown first is better, minus 1/2; each pair counts in both
        orders, so a judge without a bias has 0. `both_right`, `both_wrong`, `first_position` and `second_position`:
        shares of the pairs with two readable judgements that are decided right, or wrong, in both orders, or for the
        same position in both. `ties`: share of critiques with the verdict tie among the readable ones.
    """
    chosen, rejected = reward_arrays(results)
    readable = ~np.isnan(chosen - rejected)
    chosen, rejected = chosen[readable], rejected[readable]
    verdicts = [c.verdict for r in results for side in (r.chosen, r.rejected) for c in side.critiques if c.verdict]
    first_right, second_right = chosen > 0.5, rejected < 0.5
    return {
        "position_bias": _rounded(float(np.mean([chosen.mean(), rejected.mean()]) - 0.5)) if len(chosen) else None,
        "both_right": _share(first_right & second_right),
        "both_wrong": _share(~first_right & ~second_right),
        "first_position": _share(first_right & ~second_right),
        "second_position": _share(~first_right & second_right),
        "ties": _rounded(verdicts.count(TIE) / len(verdicts)) if verdicts else None,
    }


ABSTENTION_COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the pairs, the surest first, at which the abstention curve is computed."""


def abstention_curve(chosen: Array, rejected: Array) -> list[dict[str, Any]]:
    """Compute the accuracy of a judge that decides only the pairs it is surest of, as JSON, for growing coverage.

    A pair is the surer, the larger the absolute difference of both rewards; unreadable pairs are the least sure.
    Each entry has the `coverage`, the `accuracy` with interval, and the least `margin` that is decided.

    Args:
        chosen: Rewards (N,) of the chosen responses, NaN without one.
        rejected: Rewards (N,) of the rejected responses.
    """
    margins = np.nan_to_num(np.abs(chosen - rejected), nan=-1.0)
    order = np.argsort(-margins, kind="stable")
    won = outcomes(chosen, rejected)[order]
    curve = []
    for coverage in ABSTENTION_COVERAGES if len(won) else ():
        num = max(1, round(coverage * len(won)))
        estimate = estimate_as_json(wilson_interval(won[:num]))
        margin = max(0.0, float(margins[order[num - 1]]))
        curve.append({"coverage": coverage, "accuracy": estimate, "margin": round(margin, 6)})
    return curve


def length_baselines(preferences: Sequence[Preference]) -> dict[str, Any]:
    """Compute the accuracy of two judges that see only the texts' lengths: `shorter` wins, and `longer` wins."""
    chosen = np.array([float(len(p.chosen)) for p in preferences])
    rejected = np.array([float(len(p.rejected)) for p in preferences])
    return {
        "shorter": estimate_as_json(wilson_interval(outcomes(-chosen, -rejected))),
        "longer": estimate_as_json(wilson_interval(outcomes(chosen, rejected))),
    }


def estimate_as_json(estimate: Estimate) -> dict[str, Any]:
    """Convert an estimate to JSON, rounded to six digits, NaN as None."""
    return {
        "value": _rounded(estimate.value),
        "ci95": [_rounded(estimate.low), _rounded(estimate.high)],
        "num": estimate.num,
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)


def _share(flags: npt.NDArray[np.bool_]) -> float | None:
    return _rounded(float(flags.mean())) if len(flags) else None
