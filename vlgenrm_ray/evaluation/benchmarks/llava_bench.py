"""LLaVA-Bench (arXiv 2304.08485): answers rated from 1 to 10 by a language model, relative to a reference's rating.

Official rule (`summarize_gpt_review.py` of LLaVA): 100 * mean(model) / mean(reference), both means rounded to three
digits and the result to one, for each category and for all. A review whose scores cannot be read counts as (-1, -1),
which is in the means. Ours leaves such reviews out and counts them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import OFFICIAL, BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver, match_answers, read_rows, unique_ids, value_of
from vlgenrm_ray.evaluation.benchmarks.reviews import ReviewBenchmark, ReviewedQuestion, ratio_estimate

_FAILED = -1.0


class LlavaBench(ReviewBenchmark):
    """LLaVA-Bench: rating relative to the reference.

    Data: `questions.jsonl` (`question_id`, `image`, `category`). Answers: the reviews of `eval_gpt_review_visual.py`
    (`question_id`, `tuple` or `score`: [reference, model]).
    """

    def read(self, data: Path, images: ImageResolver) -> list[ReviewedQuestion]:
        """See `Benchmark.read`."""
        rows = read_rows(data)
        ids = unique_ids([str(value_of(row, ("question_id",), data)) for row in rows])
        return [
            ReviewedQuestion(
                id=id,
                group=str(row.get("category", "")).removeprefix("llava_bench_"),
                cluster=str(row["image"]) if isinstance(row.get("image"), str) else id,
            )
            for row, id in zip(rows, ids, strict=True)
        ]

    def read_answers(self, answers: Path, items: Sequence[ReviewedQuestion]) -> list[tuple[float, ...] | None]:
        """See `Benchmark.read_answers`."""
        matched = match_answers(
            read_rows(answers),
            [item.id.split("#")[0] for item in items],
            lambda row: str(value_of(row, ("question_id",), answers)),
            answers,
        )
        predictions: list[tuple[float, ...] | None] = []
        for row in matched:
            scores = None if row is None else value_of(row, ("tuple", "score", "scores"), answers)
            if scores is not None and (not isinstance(scores, list) or len(scores) != 2):
                raise InputError(f"{answers}: scores {scores!r}; expected [reference, model]")
            predictions.append(None if scores is None else tuple(map(float, scores)))
        return predictions

    def score(self, items: Sequence[ReviewedQuestion], predictions: Sequence[tuple[float, ...]]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        scores = np.array(predictions)
        is_readable = (scores != _FAILED).all(axis=1)
        clusters = [item.cluster for item in items]

        def row(name: str, is_used: np.ndarray) -> MetricRow:
            own = is_used & is_readable
            reference, model = scores[own, 0], scores[own, 1]
            return MetricRow(
                name=name,
                rules={OFFICIAL: official_score(scores[is_used])},
                ours=ratio_estimate(100 * model, reference, [c for c, flag in zip(clusters, own, strict=True) if flag]),
            )

        groups = sorted({item.group for item in items if item.group})
        return BenchmarkReport(
            metrics=(row("relative score", np.ones(len(items), dtype=bool)),),
            groups=tuple(row(name, np.array([item.group == name for item in items])) for name in groups),
            counts={"items": len(items), "unreadable": int((~is_readable).sum())},
        )


def official_score(scores: np.ndarray) -> float | None:
    """Compute the official score of reviews (N, 2), reference first; None if the reference's mean is 0."""
    reference, model = (round(float(mean), 3) for mean in scores.mean(axis=0))
    return round(model / reference * 100, 1) if reference else None
