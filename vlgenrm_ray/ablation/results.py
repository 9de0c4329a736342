"""Results of cells, and their statistics over test pairs and seeds.

Test pairs about one image form a cluster. With one seed an interval covers other images; with several it covers other
images and other seeds (`metrics.crossed_interval`). Differences are paired: on the same pairs with the same seed.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from vlgenrm_ray.evaluation import metrics
from vlgenrm_ray.evaluation.metrics import Array, Estimate, estimate_as_json
from vlgenrm_ray.evaluation.pairs import NO_IMAGE
from vlgenrm_ray.records import PairResult

BASE = "base"
"""Name of the untrained model among the rows of the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """Rewards of both responses of some test pairs; None where the judge gave none."""

    ids: tuple[str, ...]
    """Ids of the pairs."""
    chosen: tuple[float | None, ...]
    rejected: tuple[float | None, ...]

    @classmethod
    def of(cls, results: Iterable[PairResult]) -> "PairScores":
        """Collect the rewards of pairs, ordered by the ids of the pairs."""
        ordered = sorted(results, key=lambda r: r.preference_id)
        return cls(
            ids=tuple(r.preference_id for r in ordered),
            chosen=tuple(r.chosen.reward for r in ordered),
            rejected=tuple(r.rejected.reward for r in ordered),
        )

    def arrays(self) -> tuple[Array, Array]:
        """Return the rewards (N,) of the chosen and the rejected responses, NaN where there is none."""
        return np.array(self.chosen, dtype=np.float64), np.array(self.rejected, dtype=np.float64)

    def outcomes(self) -> dict[str, float]:
        """Map each pair id to 1 (ranked right), 0, or one half (tied or unreadable)."""
        return dict(zip(self.ids, metrics.outcomes(*self.arrays()).tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundMeasurement:
    """Measurement of the judge that one round made; round 0 is the base model."""

    round: int
    scores: PairScores
    """Test pairs."""
    blind: PairScores
    """Part of the test pairs, judged without their image."""
    tokens_per_response: float
    """Tokens that the judge generates for one response of a test pair."""
    num_pairs: int = 0
    """Labelled pairs that examples may come from."""
    num_available: int = 0
    """Examples that the selection yielded."""
    num_examples: int = 0
    """Examples trained on."""
    num_steps: int = 0
    num_generated: int = 0
    """Tokens generated for data and critiques, up to and including this round."""
    num_trained: int = 0
    """Tokens trained on, prompts and images included, up to and including this round."""
    seconds: float = 0.0
    """Working seconds up to and including this round, as if no stage were shared, without the evaluation."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Comparison of the labels with the truth, see `labels.measure_labels`; empty if the truth is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """Measurements of one cell with one seed."""

    cell: str
    variants: Mapping[str, str]
    seed: int
    key: str
    """Key of the cell's plan."""
    rounds: tuple[RoundMeasurement, ...]
    """The base model first, if it can be measured in the cell's way of judging."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON object, the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "CellResult":
        """Build the result from the JSON object that `as_json` returned."""
        rounds = tuple(
            RoundMeasurement(**{**r, "scores": _scores(r["scores"]), "blind": _scores(r["blind"])})
            for r in values["rounds"]
        )
        return cls(**{**values, "rounds": rounds})

    def measurement(self, round: int) -> RoundMeasurement | None:
        """Return the measurement of a round, None if there is none."""
        return next((m for m in self.rounds if m.round == round), None)


def _scores(values: Mapping[str, Sequence[Any]]) -> PairScores:
    return PairScores(**{name: tuple(items) for name, items in values.items()})


def split_results(results: Iterable[PairResult]) -> tuple[PairScores, PairScores]:
    """Split the results of an evaluation into those with and those without an image."""
    with_image: list[PairResult] = []
    blind: list[PairResult] = []
    for result in results:
        (blind if result.id.endswith(NO_IMAGE) else with_image).append(result)
    return PairScores.of(with_image), PairScores.of(blind)


# -- statistics ------------------------------------------------------------------------------------------------------


def pooled(outcomes: Sequence[Mapping[str, float]], clusters: Mapping[str, Hashable]) -> Estimate:
    """Compute the mean outcome over pairs and seeds with its 95 % interval.

    Args:
        outcomes: Pair id -> outcome in [0, 1], of each seed; pairs that a seed lacks are left out.
        clusters: Pair id -> cluster.
    """
    ids, values = _aligned(outcomes)
    if len(outcomes) == 1:
        return metrics.clustered_interval(values[0], [clusters[i] for i in ids])
    estimate = metrics.crossed_interval(values, [clusters[i] for i in ids])
    return replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))


def pooled_difference(
    before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]], clusters: Mapping[str, Hashable]
) -> Estimate:
    """Compute the mean of after - before over pairs and seeds, paired on both, with its 95 % interval."""
    if len(before) == 1:
        return metrics.paired_gain(before[0], after[0], clusters=clusters)
    differences = [{i: b[i] - a[i] for i in a.keys() & b.keys()} for a, b in zip(before, after, strict=True)]
    ids, values = _aligned(differences)
    return metrics.crossed_interval(values, [clusters[i] for i in ids])


def _aligned(of_seeds: Sequence[Mapping[str, float]]) -> tuple[list[str], Array]:
    ids = sorted(set.intersection(*(set(of_seed) for of_seed in of_seeds))) if of_seeds else []
    return ids, np.array([[of_seed[i] for i in ids] for of_seed in of_seeds], dtype=np.float64)


def prior_agreement(measurement: RoundMeasurement) -> float | None:
    """Return the share of pairs that the judge ranks alike with and without the image; None without blind pairs.

    A judge that answers from the words alone agrees with its blind self in every pair.
    """
    seen, blind = measurement.scores.outcomes(), measurement.blind.outcomes()
    common = [i for i in blind if i in seen]
    return sum(seen[i] == blind[i] for i in common) / len(common) if common else None


def yes_bias(measurement: RoundMeasurement) -> float | None:
    """Return the mean reward over both responses minus one half: positive if the judge says Yes too often."""
    values = np.concatenate(measurement.scores.arrays())
    return None if np.isnan(values).all() else float(np.nanmean(values) - 0.5)


def summarise(
    results: Sequence[CellResult], clusters: Mapping[str, Hashable], *, reference: str
) -> list[dict[str, Any]]:
    """Build one row per cell and round, over its seeds, in the order of the results.

    Args:
        results: Results of finished cells, of any seeds.
        clusters: Test pair id -> cluster.
        reference: Name of the reference cell.

    Returns:
        Rows as JSON. The base model has a row (cell `base`, round 0) for each way of judging.
    """
    by_cell: dict[str, dict[int, CellResult]] = {}
    for result in results:
        by_cell.setdefault(result.cell, {})[result.seed] = result
    references = by_cell.get(reference, {})
    rows: list[dict[str, Any]] = []
    for cell, of_seeds in by_cell.items():
        for number in sorted({m.round for result in of_seeds.values() for m in result.rounds if m.round}):
            measured = {s: m for s, result in of_seeds.items() if (m := result.measurement(number)) is not None}
            bases = {s: base for s in measured if (base := _base_of(of_seeds[s], references.get(s))) is not None}
            row = _row(cell, next(iter(of_seeds.values())).variants, number, measured, clusters)
            row["vs_reference"] = _versus(measured, references, number, clusters) if cell != reference else None
            row["vs_base"] = _difference(bases, measured, clusters)
            rows.append(row)
    return _base_rows(results, clusters) + rows


def _base_rows(results: Sequence[CellResult], clusters: Mapping[str, Hashable]) -> list[dict[str, Any]]:
    """Build a row of the base model for each way of judging, named after the first cell that judges so."""
    distinct: dict[PairScores, tuple[str, int, RoundMeasurement]] = {}
    for result in results:
        if (base := result.measurement(0)) is not None:
            distinct.setdefault(base.scores, (result.cell, result.seed, base))
    return [
        _row(BASE if index == 0 else f"{BASE} ({cell})", {}, 0, {seed: base}, clusters)
        for index, (cell, seed, base) in enumerate(distinct.values())
    ]


def _base_of(result: CellResult, reference: CellResult | None) -> RoundMeasurement | None:
    """Return the base model in the cell's own way of judging, else in that of the reference."""
    return result.measurement(0) or (reference.measurement(0) if reference is not None else None)


def _versus(
    measured: Mapping[int, RoundMeasurement],
    references: Mapping[int, CellResult],
    number: int,
    clusters: Mapping[str, Hashable],
) -> dict[str, Any] | None:
    """Compare with the reference in the same round, or in its last one before."""
    of_reference = {}
    for seed in measured:
        rounds = references[seed].rounds if seed in references else ()
        if earlier := [m for m in rounds if 0 < m.round <= number]:
            of_reference[seed] = earlier[-1]
    return _difference(of_reference, measured, clusters)


def _difference(
    before: Mapping[int, RoundMeasurement], after: Mapping[int, RoundMeasurement], clusters: Mapping[str, Hashable]
) -> dict[str, Any] | None:
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return None
    pairs = [(before[s].scores.outcomes(), after[s].scores.outcomes()) for s in seeds]
    estimate = pooled_difference([a for a, _ in pairs], [b for _, b in pairs], clusters)
    return estimate_as_json(estimate) | {"num_seeds": len(seeds)}


def _row(
    name: str,
    variants: Mapping[str, str],
    number: int,
    measured: Mapping[int, RoundMeasurement],
    clusters: Mapping[str, Hashable],
) -> dict[str, Any]:
    values = list(measured.values())
    blind = [m.blind.outcomes() for m in values]
    wrong = [m.labels["wrong_share"] for m in values if m.labels.get("wrong_share") is not None]
    return {
        "cell": name,
        "variants": dict(variants),
        "round": number,
        "seeds": sorted(measured),
        "covers": "items and seeds" if len(measured) > 1 else "items",
        "accuracy": estimate_as_json(pooled([m.scores.outcomes() for m in values], clusters)),
        "by_seed": {
            str(seed): estimate_as_json(pooled([m.scores.outcomes()], clusters)) for seed, m in sorted(measured.items())
        },
        "vs_reference": None,
        "vs_base": None,
        "auroc": _mean(metrics.auroc(*m.scores.arrays()) for m in values),
        "ece": _mean(_ece(m.scores) for m in values),
        "blind_accuracy": estimate_as_json(pooled(blind, clusters)) if all(blind) else None,
        "prior_agreement": _mean(prior_agreement(m) for m in values),
        "yes_bias": _mean(yes_bias(m) for m in values),
        "wrong_label_share": _mean(wrong),
        "num_pairs": _mean(float(m.num_pairs) for m in values),
        "num_examples": [m.num_examples for m in values],
        "num_available": [m.num_available for m in values],
        "num_steps": values[0].num_steps,
        "num_generated": _mean(float(m.num_generated) for m in values),
        "num_trained": _mean(float(m.num_trained) for m in values),
        "seconds": _mean(m.seconds for m in values),
        "tokens_per_response": _mean(m.tokens_per_response for m in values),
    }


def _ece(scores: PairScores) -> float:
    chosen, rejected = scores.arrays()
    label = np.concatenate([np.ones(len(chosen)), np.zeros(len(rejected))])
    return metrics.ece(np.concatenate([chosen, rejected]), label)


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known, rounded to six digits; None if none is."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return round(float(np.mean(known)), 6) if known else None
