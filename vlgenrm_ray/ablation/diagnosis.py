"""Reasons behind the numbers of an ablation.

margins   are the probabilities of verdicts informative, or all at 0 and 1? does the margin know what the evidence
          check knows? what does the check remove, and what does it leave for the margin?
swapped   does a critique depend on the image? the same pairs are judged with the image of another pair
voting    accuracy over the number K of critiques, from subsets of stored ones
"""

import difflib
import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlgenrm_ray import pipeline
from vlgenrm_ray.ablation.examples import draw
from vlgenrm_ray.ablation.plan import CellPlan, RoundPlan
from vlgenrm_ray.ablation.results import BASE, pooled
from vlgenrm_ray.ablation.trainers import SUPERVISED
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.record_index import RecordIndex
from vlgenrm_ray.data.store import StageFolder, Unit, units_from_table, write_units
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import DropReason, VlGenRMError
from vlgenrm_ray.evaluation import metrics, pairs
from vlgenrm_ray.evaluation.metrics import estimate_as_json
from vlgenrm_ray.records import Critique, JudgeCritique, Judgement, PairResult, Preference, Side
from vlgenrm_ray.reward.rejection_sampling import Strategy, combinations, is_readable, is_right, select_combinations
from vlgenrm_ray.reward.selection import SelectionConfig
from vlgenrm_ray.rewards.critique_checks import CritiqueChecker
from vlgenrm_ray.settings import digest

if TYPE_CHECKING:
    from vlgenrm_ray.ablation.run import AblationRun

FILE_NAME = "diagnosis.json"
EXTREME = 1e-6
"""Distance from 0 or 1 below which a probability says no more than the verdict itself."""
NUM_BINS = 40
MAX_LOG_ODDS = 20.0
"""Range of the histogram of log-odds: [-20, 20]; values outside count in the outermost bins."""
_RESAMPLES = 64
_log = logging.getLogger(__name__)


def run(ablation: "AblationRun", plans: Sequence[CellPlan]) -> None:
    """Diagnose the finished cells that the recipe names, and write `diagnosis.json` after each.

    A failure is logged and costs only the cell's diagnosis.
    """
    config, path = ablation.config.diagnosis, ablation.folder / FILE_NAME
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    for plan in plans:
        is_wanted = any(fnmatchcase(plan.cell.name, pattern) for pattern in config.cells)
        key = digest([plan.key, config.max_critiques, config.num_swapped])
        if not is_wanted or ablation.read_result(plan) is None or known.get(plan.cell.name, {}).get("key") == key:
            continue
        try:
            known[plan.cell.name] = {"key": key} | _diagnose_cell(ablation, plan)
        except VlGenRMError as error:
            _log.warning("diagnosis of cell '%s' failed: %s", plan.cell.name, error)
            continue
        write_json(path, known)


def _diagnose_cell(ablation: "AblationRun", plan: CellPlan) -> dict[str, Any]:
    checker = pipeline.critique_checker(plan.config)
    result: dict[str, Any] = {"margins": {}, "judges": {}}
    if plan.config.judge.mode == "cot" and plan.rounds[0].critiques:
        for stage in {stage.round: stage for stage in (plan.rounds[0], plan.rounds[-1])}.values():
            result["margins"][f"round {stage.round}"] = _measure_margins(ablation, plan, stage, checker)
    if plan.base_evaluation and plan.cell.trainer == SUPERVISED:
        models = {BASE: (plan.base_evaluation, model_folder.locate(plan.config.base))}
        last = plan.rounds[-1]
        models[f"round {last.round}"] = (last.evaluation, ablation.stage(last.training).path / "model")
        clusters = ablation.clusters(plan)
        for name, (evaluation, model) in models.items():
            result["judges"][name] = _diagnose_judge(ablation, plan, evaluation, model, clusters)
    return result


# -- margins ---------------------------------------------------------------------------------------------------------


def _measure_margins(
    ablation: "AblationRun", plan: CellPlan, stage: RoundPlan, checker: CritiqueChecker
) -> dict[str, Any]:
    index = RecordIndex.build(ablation.stage(stage.labels))
    folder = ablation.stage(stage.labelled_critiques)
    items: list[tuple[Preference, tuple[Critique, ...]]] = []
    for shard in folder.shards():
        units = units_from_table(Critique, folder.read_units(shard))
        preferences = index.read(Preference, [unit.id for unit in units])
        items += [(preferences[unit.id], unit.records) for unit in units if unit.records]
    return margin_metrics(items, plan.config.selection, checker)


def margin_metrics(
    items: Sequence[tuple[Preference, tuple[Critique, ...]]], config: SelectionConfig, checker: CritiqueChecker
) -> dict[str, Any]:
    """Measure how much the margins of critiques tell, before and after the evidence check.

    Args:
        items: Labelled pairs with their critiques.
        config: Settings of the selection; strategy and check are varied here.
        checker: Checks the critiques against the experts' evidence.

    Returns:
        `num_critiques`, `num_readable`; `num_low` and `num_high`: probabilities of Yes below 1e-6 and above 1 - 1e-6;
        `log_odds`: histogram; `contradicted_share` of the critiques with the right verdict; `margin_auroc`: how well
        the probability of the right verdict separates those of them that the evidence contradicts from the others
        (0.5: it knows nothing of it); `selection`: critiques selected and dropped by reason, without and with the
        check; `usable_pairs`: pairs with a combination before the margin counts; `median_spread`: median over these of
        largest minus smallest margin; `tied_share`: those whose largest and smallest margin differ by less than 1e-6.
    """
    critiques = [critique for _, of_pair in items for critique in of_pair]
    p_yes = np.array([c.p_yes for c in critiques if c.p_yes is not None], dtype=np.float64)
    bounded = np.clip(p_yes, 1e-12, 1 - 1e-12)
    log_odds = np.clip(np.log(bounded / (1 - bounded)), -MAX_LOG_ODDS, MAX_LOG_ODDS)
    histogram, _ = np.histogram(log_odds, bins=NUM_BINS, range=(-MAX_LOG_ODDS, MAX_LOG_ODDS))
    faults = _contradictions(items, checker)
    right = [
        (c, score) for _, of_pair in items for c in of_pair if (score := _right_score(c, config.min_mass)) is not None
    ]
    supported = np.array([score for c, score in right if c.id not in faults])
    contradicted = np.array([score for c, score in right if c.id in faults])
    faults_of = {"without check": {}, "with check": faults}
    spreads = {name: _spreads(items, config, of) for name, of in faults_of.items()}
    return {
        "num_critiques": len(critiques),
        "num_readable": len(p_yes),
        "num_low": int(np.sum(p_yes < EXTREME)),
        "num_high": int(np.sum(p_yes > 1 - EXTREME)),
        "log_odds": histogram.tolist(),
        "contradicted_share": len(contradicted) / len(right) if right else None,
        "margin_auroc": _known(metrics.auroc(supported, contradicted)),
        "selection": {name: _count_decisions(items, config, of) for name, of in faults_of.items()},
        "spread": {
            name: {
                "usable_pairs": len(values),
                "median_spread": float(np.median(values)) if values else None,
                "tied_share": float(np.mean(np.array(values) < EXTREME)) if values else None,
            }
            for name, values in spreads.items()
        },
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _contradictions(
    items: Iterable[tuple[Preference, tuple[Critique, ...]]], checker: CritiqueChecker
) -> dict[str, DropReason]:
    """Map the ids of critiques that the evidence contradicts to that fault. Each text of a pair is checked once."""
    faults: dict[str, DropReason] = {}
    for preference, critiques in items:
        texts = {(critique.side, critique.text): critique for critique in critiques}
        contradicted = {text for text, critique in texts.items() if checker.is_contradicted(critique, preference)}
        faults |= {c.id: DropReason.CONTRADICTED_CRITIQUE for c in critiques if (c.side, c.text) in contradicted}
    return faults


def _right_score(critique: Critique, min_mass: float) -> float | None:
    """Return the probability of the right verdict of a critique that gives it; None for others."""
    if critique.p_yes is None or not is_readable(critique, min_mass) or not is_right(critique):
        return None
    return critique.p_yes if critique.side is Side.CHOSEN else 1 - critique.p_yes


def _count_decisions(
    items: Iterable[tuple[Preference, tuple[Critique, ...]]],
    config: SelectionConfig,
    faults: Mapping[str, DropReason],
) -> dict[str, int]:
    """Count the critiques that margin-based rejection sampling selects, and those it drops by reason."""
    counts: Counter[str] = Counter()
    for _, critiques in items:
        selection = select_combinations(
            critiques,
            faults,
            strategy=Strategy.MRS,
            scale=config.margin,
            tau=config.tau,
            top_n=config.top_n,
            min_mass=config.min_mass,
            seed=config.seed,
        )
        counts["selected"] += len(critiques) - len(selection.dropped)
        counts.update(dropped.reason.value for dropped in selection.dropped)
    return dict(counts.most_common())


def _spreads(
    items: Iterable[tuple[Preference, tuple[Critique, ...]]],
    config: SelectionConfig,
    faults: Mapping[str, DropReason],
) -> list[float]:
    """Return largest minus smallest margin of each pair, over the combinations of its usable right critiques."""
    spreads: list[float] = []
    for _, critiques in items:
        usable = [c for c in critiques if c.id not in faults and _right_score(c, config.min_mass) is not None]
        if margins := [combination.margin for combination in combinations(usable, config.margin)]:
            spreads.append(max(margins) - min(margins))
    return spreads


# -- judges on the test pairs ----------------------------------------------------------------------------------------


def _diagnose_judge(
    ablation: "AblationRun", plan: CellPlan, evaluation: str, model: Path, clusters: Mapping[str, Hashable]
) -> dict[str, Any]:
    config, judge = ablation.config.diagnosis, plan.evaluation_judge
    settings = plan.config.evaluation.model_copy(update={"no_image_share": 0.0})
    results: dict[str, Any] = {}
    if config.num_swapped:
        swapped_test = ablation.stage(f"swapped-test-{digest([plan.test, config.num_swapped])[:10]}")
        write_swapped_pairs(ablation.stage(plan.test), swapped_test, config.num_swapped)
        target = ablation.stage(f"swapped-{digest([evaluation, config.num_swapped])[:10]}")
        if target.manifest() is None:
            pairs.run(settings, judge=judge, model=model, source=swapped_test, target=target)
        results["swapped"] = swapped_metrics(
            list(ablation.stage(evaluation).records(PairResult)), list(target.records(PairResult)), clusters
        )
    if config.max_critiques and judge.mode == "cot":
        target = ablation.stage(f"voting-{digest([evaluation, config.max_critiques])[:10]}")
        if target.manifest() is None:
            many = judge.model_copy(update={"num_critiques": config.max_critiques})
            pairs.run(settings, judge=many, model=model, source=ablation.stage(plan.test), target=target)
        results["voting"] = voting_curve(list(target.records(PairResult)), clusters)
    return results


def write_swapped_pairs(source: StageFolder, target: StageFolder, count: int) -> None:
    """Write `count` pairs of `source`, each with the image of the next pair whose image is another one."""
    if target.manifest() is not None:
        return
    target.begin(digest(count), {"test": source.data_hash()})
    everything = sorted(source.records(Preference), key=lambda pair: pair.id)
    drawn = draw((pair.id for pair in everything), count, seed=0)
    write_units(target, Preference, [Unit(id=p.id, records=(p,)) for p in swap_images(everything) if p.id in drawn])
    target.finish(seconds=0.0)


def swap_images(everything: Sequence[Preference]) -> list[Preference]:
    """Give each pair the image of the next pair, in a circle, that has another one; leave out pairs without any."""
    swapped: list[Preference] = []
    for index, pair in enumerate(everything):
        for other in (*everything[index + 1 :], *everything[:index]):
            image = other.question.image
            if image.sha256 != pair.question.image.sha256:
                swapped.append(replace(pair, question=replace(pair.question, image=image)))
                break
    return swapped


def swapped_metrics(
    own: Sequence[PairResult], swapped: Sequence[PairResult], clusters: Mapping[str, Hashable]
) -> dict[str, Any]:
    """Compare the judgements of pairs with those of the same pairs and seeds with another pair's image.

    Returns:
        `num_pairs`; `accuracy` with the own and `swapped_accuracy` with the other image; `same_text`: share of
        critiques with the same text; `same_verdict`: share with the same verdict; `similarity`: mean share of words in
        common (ratio of `difflib`) of critiques of both images, and `resampled_similarity` that of two samples with
        the own image. A critique that ignores the image is as similar to one as to the other.
    """
    by_id = {result.id: result for result in own}
    compared = [(by_id[result.id], result) for result in swapped if result.id in by_id]
    judgements = [(getattr(a, s.value), getattr(b, s.value)) for a, b in compared for s in Side]
    critiques = [(x, y) for a, b in judgements for x, y in zip(a.critiques, b.critiques, strict=False)]
    resampled = [pair for a, _ in judgements for pair in pairwise(a.critiques)]

    def accuracy(results: Iterable[PairResult]) -> dict[str, Any]:
        outcomes = metrics.outcomes_by_id(list(results))
        return estimate_as_json(pooled([outcomes], clusters))

    return {
        "num_pairs": len(compared),
        "accuracy": accuracy(a for a, _ in compared),
        "swapped_accuracy": accuracy(b for _, b in compared),
        "same_text": _mean(x.text == y.text for x, y in critiques),
        "same_verdict": _mean(x.verdict == y.verdict for x, y in critiques),
        "similarity": _mean(_similarity(x, y) for x, y in critiques),
        "resampled_similarity": _mean(_similarity(x, y) for x, y in resampled),
    }


def _similarity(one: JudgeCritique, other: JudgeCritique) -> float:
    return difflib.SequenceMatcher(None, one.text.split(), other.text.split(), autojunk=False).ratio()


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(sum(values) / len(values), 6) if values else None


def voting_curve(results: Sequence[PairResult], clusters: Mapping[str, Hashable]) -> list[dict[str, Any]]:
    """Compute the accuracy over the number K of critiques, K = 1, 2, 4, ... and the largest stored one.

    The outcome of a pair at K is its mean over random subsets of K of its stored critiques, drawn for each side; the
    interval covers the pairs.
    """
    largest = max((len(j.critiques) for r in results for j in (r.chosen, r.rejected)), default=0)
    sizes = sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < largest} | ({largest} if largest else set()))
    rng = np.random.default_rng(0)
    curve = []
    for k in sizes:
        outcomes = {r.preference_id: _expected_outcome(r, k, rng) for r in results}
        curve.append({"k": k, "accuracy": estimate_as_json(pooled([outcomes], clusters))})
    return curve


def _expected_outcome(result: PairResult, k: int, rng: np.random.Generator) -> float:
    chosen, rejected = (_subset_rewards(judgement, k, rng) for judgement in (result.chosen, result.rejected))
    return float(metrics.outcomes(chosen, rejected).mean())


def _subset_rewards(judgement: Judgement, k: int, rng: np.random.Generator) -> metrics.Array:
    """Return the rewards of random subsets of k critiques, NaN where none of a subset is readable."""
    scores = np.array([np.nan if c.p_yes is None else c.p_yes for c in judgement.critiques], dtype=np.float64)
    if not len(scores):
        return np.full(_RESAMPLES, np.nan)
    order = rng.permuted(np.tile(np.arange(len(scores)), (_RESAMPLES, 1)), axis=1)[:, :k]
    subsets = scores[order]
    readable = np.sum(~np.isnan(subsets), axis=1)
    return metrics.divide(np.nansum(subsets, axis=1), readable.astype(np.float64))
