"""POPE (arXiv 2305.10355): is there a certain object in the image?

Official rule (`evaluate.py` of RUCAIBox/POPE): of an answer only the first sentence counts, up to the first period;
commas are dropped, and the answer is no if "No", "not" or "no" is among its words, else yes. Accuracy, precision,
recall, F1 (yes is positive) and the share of yes answers.

lmms-eval asks for a single word and compares the whole answer, in lower case, with the label; other answers are wrong,
and its `yes_ratio` is that of the labels. VLMEvalKit reads one of "yes" and "no" among the words.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, VLMEVALKIT, BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import (
    ImageResolver,
    Row,
    binary_labels,
    match_answers,
    read_rows,
    text_of,
    unique_ids,
    value_of,
)
from vlgenrm_ray.evaluation.benchmarks.yes_no_questions import (
    YesNoBenchmark,
    YesNoPrediction,
    YesNoQuestion,
    as_numbers,
    classification,
    credits,
    f1_estimate,
    read_like_vlmevalkit,
    read_plainly,
    yes_no_baselines,
    yes_no_counts,
)
from vlgenrm_ray.evaluation.metrics import clustered_interval

_NEGATIONS = {"No", "not", "no"}
_IDS = ("question_id", "index")
_LABELS = {"1": "yes", "true": "yes", "0": "no", "false": "no"}
"""Labels of copies that do not spell yes and no."""
_MAX_NAME = 1024


def read_verdict(answer: str) -> str:
    """Read "yes" or "no" from an answer by the official rule."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIONS & set(words) else "yes"


class Pope(YesNoBenchmark):
    """POPE by the rules of its own script, lmms-eval and VLMEvalKit.

    Data: `question_id` (or `index`), `image`, `text` (or `question`), `label` (or `answer`: yes and no, 1 and 0, or
    booleans), and `category` for several splits in one file. Answers: `question_id` and `text` (or `answer`,
    `prediction`). Rows without an id, as the official script reads them, answer the questions in order.
    """

    def read(self, data: Path, images: ImageResolver) -> list[YesNoQuestion]:
        """See `Benchmark.read`."""
        rows = read_rows(data)
        labels = [str(value_of(row, ("label", "answer"), data)).strip().lower() for row in rows]
        labels = [_LABELS.get(label, label) for label in labels]
        ids = unique_ids([str(value_of(row, _IDS, data)) for row in rows])
        return [
            YesNoQuestion(
                id=id,
                question=text_of(row, ("text", "question"), data),
                images=images.resolve(row.get("image")),
                is_yes=is_yes,
                cluster=_cluster(row, id),
                group=str(row.get("category", "")),
            )
            for row, id, is_yes in zip(rows, ids, binary_labels(labels, "yes", "no", data), strict=True)
        ]

    def read_answers(self, answers: Path, items: Sequence[YesNoQuestion]) -> list[YesNoPrediction | None]:
        """See `Benchmark.read_answers`."""
        rows = read_rows(answers)
        matched: Sequence[Row | None] = rows
        if any(name in rows[0] for name in _IDS):
            keys = [item.id.split("#")[0] for item in items]
            matched = match_answers(rows, keys, lambda row: str(value_of(row, _IDS, answers)), answers)
        elif len(rows) != len(items):
            raise InputError(
                f"{answers}: {len(rows)} answers without `question_id` to {len(items)} questions; they are matched by "
                "their order, so there must be one for each"
            )
        return [
            None if row is None else YesNoPrediction(text=str(value_of(row, ("text", "answer", "prediction"), answers)))
            for row in matched
        ]

    def score(self, items: Sequence[YesNoQuestion], predictions: Sequence[YesNoPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        texts = [p.text for p in predictions]
        labels, clusters = as_numbers([item.is_yes for item in items]), [item.cluster for item in items]
        readings = {
            OFFICIAL: as_numbers([read_verdict(text) == "yes" for text in texts]),
            LMMS_EVAL: as_numbers([{"yes": True, "no": False}.get(text.lower().strip()) for text in texts]),
            VLMEVALKIT: as_numbers([read_like_vlmevalkit(text) for text in texts]),
        }
        scores = {rule: classification(labels, answers) for rule, answers in readings.items()}
        is_exact_positive = (labels == 1) & ~np.isnan(readings[LMMS_EVAL])
        recall = float((readings[LMMS_EVAL][is_exact_positive] == 1).mean()) if is_exact_positive.any() else 0.0
        precision = float(scores[LMMS_EVAL].precision[0])
        ours, plain = credits(items, texts), as_numbers([read_plainly(text) for text in texts])

        def rules(metric: str) -> dict[str, float | None]:
            return {rule: float(getattr(score, metric)[0]) for rule, score in scores.items()}

        # lmms-eval counts only exact yes and no answers in its recall, hence also in its F1.
        lmms_f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        metrics = (
            MetricRow(name="accuracy", rules=rules("accuracy"), ours=clustered_interval(ours, clusters)),
            MetricRow(name="F1", rules=rules("f1") | {LMMS_EVAL: lmms_f1}, ours=f1_estimate(labels, plain, clusters)),
            MetricRow(name="precision", rules=rules("precision")),
            MetricRow(name="recall", rules=rules("recall") | {LMMS_EVAL: recall}),
            MetricRow(
                name="yes ratio",
                rules={OFFICIAL: float(readings[OFFICIAL].mean()), LMMS_EVAL: float(labels.mean())},
                ours=clustered_interval(np.where(np.isnan(plain), 0.5, plain), clusters),
            ),
        )
        groups = sorted({item.group for item in items if item.group})
        return BenchmarkReport(
            metrics=metrics,
            groups=tuple(
                MetricRow(
                    name=group,
                    rules={OFFICIAL: float((readings[OFFICIAL] == labels)[own].mean())},
                    ours=clustered_interval(ours[own], [c for c, flag in zip(clusters, own, strict=True) if flag]),
                )
                for group in groups
                if (own := np.array([item.group == group for item in items])).any()
            ),
            baselines=yes_no_baselines(items, predictions),
            counts=yes_no_counts(predictions),
        )


def _cluster(row: Row, id: str) -> str:
    """Return the name of a row's image. Images held as bytes are named by `image_source` or `image_path`."""
    image = row.get("image_source") or row.get("image_path") or row.get("image")
    # Base64 is long; a name is not.
    return str(image) if isinstance(image, str) and len(image) < _MAX_NAME else id
