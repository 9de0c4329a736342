"""AMBER (arXiv 2311.07397), the discriminative task: yes/no questions about existence, attributes and relations.

Official rule (`inference.py` of junyangwang0410/AMBER): an answer is right if it is exactly "Yes" or "No" and agrees
with the annotation. Precision, recall and F1 are those of the answer "No". Values are percentages, rounded to one digit
as the script does: numbers of questions begin at 0.001, and F1 is computed from the rounded precision and recall with
0.0001 in the denominator (0.001 for existence).

VLMEvalKit reads one of "yes" and "no" among the words and reports the mean accuracy of the three kinds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import OFFICIAL, VLMEVALKIT, BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver, Row, match_answers, read_rows, value_of
from vlgenrm_ray.evaluation.benchmarks.yes_no_questions import (
    YesNoBenchmark,
    YesNoPrediction,
    YesNoQuestion,
    as_numbers,
    credits,
    f1_estimate,
    read_like_vlmevalkit,
    read_plainly,
    yes_no_baselines,
    yes_no_counts,
)
from vlgenrm_ray.evaluation.metrics import Array, clustered_interval

_KIND_OF_TYPE = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute state",
    "discriminative-attribute-number": "attribute number",
    "discriminative-attribute-action": "attribute action",
}
_GROUPS = ("existence", "attribute", "attribute state", "attribute number", "attribute action", "relation")
_START = 0.001
"""Number of questions that the script begins to count from, to avoid divisions by 0."""


class Amber(YesNoBenchmark):
    """AMBER's discriminative task.

    Data: the repository's `data` folder, or `annotations.json` alone for stored answers. Answers: rows with `id` and
    `response`. Questions of the generative task are ignored, and questions without an answer are not counted.
    """

    def read(self, data: Path, images: ImageResolver) -> list[YesNoQuestion]:
        """See `Benchmark.read`."""
        annotations = data / "annotations.json" if data.is_dir() else data
        rows = [row for row in read_rows(annotations) if value_of(row, ("type",), annotations) != "generative"]
        if not rows:
            raise InputError(f"{annotations}: has no question of the discriminative task")
        queries: dict[str, Row] = {}
        if data.is_dir():
            files = (data / "query" / "query_discriminative.json", data / "query" / "query_all.json")
            path = next((path for path in files if path.exists()), files[0])
            queries = {str(row["id"]): row for row in read_rows(path)}
        return [_read_item(row, queries, images, annotations) for row in rows]

    def read_answers(self, answers: Path, items: Sequence[YesNoQuestion]) -> list[YesNoPrediction | None]:
        """See `Benchmark.read_answers`."""
        matched = match_answers(
            read_rows(answers), [item.id for item in items], lambda row: str(value_of(row, ("id",), answers)), answers
        )
        return [
            None if row is None else YesNoPrediction(text=str(value_of(row, ("response",), answers))) for row in matched
        ]

    def score(self, items: Sequence[YesNoQuestion], predictions: Sequence[YesNoPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        texts = [p.text for p in predictions]
        labels = as_numbers([item.is_yes for item in items])
        exact = as_numbers([{"Yes": True, "No": False}.get(text) for text in texts])
        vlmevalkit = as_numbers([read_like_vlmevalkit(text) for text in texts])
        plain = as_numbers([read_plainly(text) for text in texts])
        ours, clusters = credits(items, texts), [item.cluster for item in items]
        groups = np.array([item.group for item in items])

        def rows(suffix: str, is_used: np.ndarray, epsilon: float) -> tuple[MetricRow, ...]:
            own = [cluster for cluster, flag in zip(clusters, is_used, strict=True) if flag]
            accuracy, precision, recall, f1 = official_scores(labels[is_used], exact[is_used], epsilon)
            accuracy_kit = float((labels == vlmevalkit)[is_used].mean()) * 100
            f1_ours = f1_estimate(1 - labels[is_used], 1 - plain[is_used], own)
            return (
                MetricRow(
                    name=f"accuracy{suffix}",
                    rules={OFFICIAL: accuracy} | ({VLMEVALKIT: accuracy_kit} if suffix else {}),
                    ours=clustered_interval(ours[is_used], own),
                ),
                MetricRow(name=f"F1{suffix}", rules={OFFICIAL: f1}, ours=f1_ours),
                MetricRow(name=f"precision{suffix}", rules={OFFICIAL: precision}),
                MetricRow(name=f"recall{suffix}", rules={OFFICIAL: recall}),
            )

        members = {name: np.array([group.startswith(name) for group in groups]) for name in _GROUPS}
        present = [name for name in _GROUPS if members[name].any()]
        kinds = [members[name] for name in ("existence", "attribute", "relation") if members[name].any()]
        mean_kit = float(np.mean([(labels == vlmevalkit)[own].mean() * 100 for own in kinds]))
        mean = MetricRow(name="mean accuracy of the kinds", rules={VLMEVALKIT: mean_kit})
        return BenchmarkReport(
            metrics=(*rows("", np.ones(len(items), dtype=bool), 0.0001), mean),
            groups=tuple(
                row
                for name in present
                for row in rows(f" {name}", members[name], 0.001 if name == "existence" else 0.0001)
            ),
            baselines=yes_no_baselines(items, predictions),
            counts=yes_no_counts(predictions),
        )


def official_scores(labels: Array, answers: Array, epsilon: float) -> tuple[float, float, float, float]:
    """Compute accuracy, precision, recall and F1 in percent, rounded as the official script rounds them.

    Args:
        labels: 1 for yes, 0 for no (N,).
        answers: 1 for "Yes", 0 for "No", NaN for any other answer (N,).
        epsilon: Constant in the denominator of F1.
    """
    num_right_no = float(((labels == 0) & (answers == 0)).sum())
    accuracy = round(float((labels == answers).sum()) / (_START + len(labels)) * 100, 1)
    precision = round(num_right_no / (_START + float((answers == 0).sum())) * 100, 1)
    recall = round(num_right_no / (_START + float((labels == 0).sum())) * 100, 1)
    f1 = round(2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + epsilon) * 100, 1)
    return accuracy, precision, recall, f1


def _read_item(row: Row, queries: dict[str, Row], images: ImageResolver, path: Path) -> YesNoQuestion:
    id = str(value_of(row, ("id",), path))
    query = queries.get(id, {})
    truth = str(value_of(row, ("truth",), path))
    if truth not in ("yes", "no"):
        raise InputError(f"{path}: truth {truth!r} of question {id}; expected yes or no")
    return YesNoQuestion(
        id=id,
        question=str(query.get("query", "")),
        images=images.resolve(query.get("image")),
        is_yes=truth == "yes",
        cluster=str(query.get("image", id)),
        group=_KIND_OF_TYPE.get(str(row["type"]), "relation"),
    )
