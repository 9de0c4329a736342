"""Held-out pairs of a run as a benchmark: pairwise accuracy of a judge, with its baselines.

`data` is the run's `heldout` folder; stored answers are an `evaluation` folder of the run (`round-1/evaluation`, ...).
There is no official rule. The calibration of the judge is in the metrics of the evaluation stage.
"""

from collections.abc import Sequence
from pathlib import Path

from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver
from vlgenrm_ray.evaluation.benchmarks.response_pairs import (
    PairBenchmark,
    PairPrediction,
    ResponsePair,
    Vote,
    order_rows,
    outcome_of_rewards,
    pair_baselines,
    pair_counts,
    values,
)
from vlgenrm_ray.evaluation.metrics import clustered_interval
from vlgenrm_ray.evaluation.pairs import NO_IMAGE
from vlgenrm_ray.records import PairResult, Preference


class HeldoutPairs(PairBenchmark):
    """Pairwise accuracy on the held-out pairs of a run."""

    def read(self, data: Path, images: ImageResolver) -> list[ResponsePair]:
        """See `Benchmark.read`."""
        return [
            ResponsePair(
                id=pair.id,
                key=pair.id,
                question=pair.question.text,
                images=tuple(ref.uri for ref in pair.question.images),
                responses=(pair.chosen, pair.rejected),
                better=0,
                group=pair.kind,
                cluster=pair.question.image.sha256,
            )
            for pair in _stage(data, "heldout").records(Preference)
        ]

    def read_answers(self, answers: Path, items: Sequence[ResponsePair]) -> list[PairPrediction | None]:
        """See `Benchmark.read_answers`."""
        results = {result.id: result for result in _stage(answers, "evaluation").records(PairResult)}

        def votes(item: ResponsePair, suffix: str) -> tuple[Vote, ...]:
            result = results.get(f"{item.id}{suffix}")
            if result is None:
                return ()
            return (Vote(outcome=outcome_of_rewards(item, (result.chosen.reward, result.rejected.reward))),)

        return [
            PairPrediction(votes=own, without_image=votes(item, NO_IMAGE)) if (own := votes(item, "")) else None
            for item in items
        ]

    def score(self, items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        ours, clusters = values(predictions), [item.cluster for item in items]

        def row(name: str, indices: list[int]) -> MetricRow:
            return MetricRow(name=name, ours=clustered_interval(ours[indices], [clusters[i] for i in indices]))

        groups = sorted({item.group for item in items})
        return BenchmarkReport(
            metrics=(row("pairwise accuracy", list(range(len(items)))),),
            groups=tuple(row(name, [i for i, item in enumerate(items) if item.group == name]) for name in groups),
            orders=order_rows(items, predictions),
            baselines=pair_baselines(items, predictions),
            counts=pair_counts(predictions),
        )


def _stage(path: Path, stage: str) -> StageFolder:
    folder = StageFolder(path)
    if not folder.shards():
        raise InputError(f"{path}: no shards; give the folder of a finished {stage} stage")
    return folder
