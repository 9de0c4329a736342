"""VLRMBench (arXiv 2503.07478), the tasks on steps: which steps of a solution are wrong (or redundant)?

Official rule (`get_sc_mc_rd_eval_res.py`, `utils.py` of JCruan519/VLRMBench): all numbers in an answer are read in
order, anything but 0 counts as 1, missing steps are 0 and further ones are cut. The steps of all samples are pooled,
and F1_w = w_neg F1_neg + w_pos F1_pos, where w_pos is the share of negatives and w_neg that of positives. Samples
without an answer are left out.

A judge rewards each step by itself, with the question and the steps before it; a step with a reward below 1/2 counts as
wrong.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import (
    OFFICIAL,
    BenchmarkReply,
    BenchmarkReport,
    BenchmarkRequest,
    BenchmarkRole,
    MetricRow,
)
from vlgenrm_ray.evaluation.benchmarks.files import (
    ImageResolver,
    match_answers,
    read_rows,
    text_of,
    unique_ids,
    value_of,
)
from vlgenrm_ray.evaluation.benchmarks.response_pairs import NO_IMAGE, ablation_suffixes
from vlgenrm_ray.evaluation.benchmarks.yes_no_questions import classification
from vlgenrm_ray.evaluation.metrics import Array, bootstrap_interval, clustered_interval, divide

_NUMBER = re.compile(r"\d+")
_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepwiseSolution:
    """A solution in steps, with the label of each."""

    id: str
    """Unique in the benchmark."""
    key: str
    """The file's own id."""
    question: str
    images: tuple[str, ...]
    steps: tuple[str, ...]
    labels: tuple[int, ...]
    """1 for a step with the error that the task asks for, else 0."""
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPrediction:
    """Predicted labels of the steps of a solution."""

    labels: tuple[int | None, ...]
    """1 or 0 for each step; None if nothing could be read for it."""
    without_image: tuple[int | None, ...] | None = None
    """Labels of the baseline without image, if it was asked."""


class VlrmBench:
    """VLRMBench's tasks on steps: weighted F1.

    Answers: the rows of the benchmark with `model_answer` ("[0, 1, 0]"), or rows with `id` and `model_answer`.
    """

    roles: ClassVar[tuple[BenchmarkRole, ...]] = (BenchmarkRole.JUDGE,)

    def read(self, data: Path, images: ImageResolver) -> list[StepwiseSolution]:
        """See `Benchmark.read`."""
        rows = read_rows(data)
        keys = [str(value_of(row, ("id",), data)) for row in rows]
        items = []
        for row, id, key in zip(rows, unique_ids(keys), keys, strict=True):
            steps, labels = value_of(row, ("step_list",), data), value_of(row, ("task_gt",), data)
            if not isinstance(labels, list) or len(steps) != len(labels) or not set(labels) <= {0, 1}:
                raise InputError(
                    f"{data}: {key} has {len(steps)} steps and labels {labels!r}; expected 0 or 1 for each"
                )
            items.append(
                StepwiseSolution(
                    id=id,
                    key=key,
                    question=text_of(row, ("question",), data),
                    images=images.resolve(row.get("image")),
                    steps=tuple(map(str, steps)),
                    labels=tuple(labels),
                    group=str(row.get("category", data.stem)),
                )
            )
        return items

    def requests(
        self, items: Sequence[StepwiseSolution], role: BenchmarkRole, no_image_share: float
    ) -> list[BenchmarkRequest]:
        """See `Benchmark.requests`."""
        return [
            BenchmarkRequest(
                id=f"{item.id}/{index}{suffix}",
                images=item.images,
                question=_question(item, index),
                response=step,
                is_blank=bool(suffix),
            )
            for item in items
            for suffix in ablation_suffixes(item.id, item.images, no_image_share)
            for index, step in enumerate(item.steps)
        ]

    def predictions(
        self, items: Sequence[StepwiseSolution], role: BenchmarkRole, replies: Mapping[str, BenchmarkReply]
    ) -> list[StepPrediction]:
        """See `Benchmark.predictions`."""

        def labels(item: StepwiseSolution, suffix: str) -> tuple[int | None, ...] | None:
            own = [replies.get(f"{item.id}/{index}{suffix}") for index in range(len(item.steps))]
            rewards = [None if reply is None else reply.reward for reply in own]
            if any(reply is None for reply in own):
                return None
            return tuple(None if reward is None else int(reward < _THRESHOLD) for reward in rewards)

        return [
            StepPrediction(labels=labels(item, "") or (None,) * len(item.steps), without_image=labels(item, NO_IMAGE))
            for item in items
        ]

    def read_answers(self, answers: Path, items: Sequence[StepwiseSolution]) -> list[StepPrediction | None]:
        """See `Benchmark.read_answers`."""
        matched = match_answers(
            read_rows(answers), [item.key for item in items], lambda row: str(value_of(row, ("id",), answers)), answers
        )
        return [
            None
            if row is None or row.get("model_answer") is None
            else StepPrediction(labels=read_labels(row["model_answer"], len(item.labels)))
            for item, row in zip(items, matched, strict=True)
        ]

    def score(self, items: Sequence[StepwiseSolution], predictions: Sequence[StepPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        labels = np.array([label for item in items for label in item.labels], dtype=np.float64)
        clusters = [item.id for item in items for _ in item.labels]
        groups = np.array([item.group for item in items for _ in item.labels])
        answers = _pool([p.labels for p in predictions])
        # The official script has no unreadable steps: what is missing counts as 0.
        official = np.nan_to_num(answers, nan=0.0)

        def weighted_f1_row(name: str, predicted: Array, is_used: np.ndarray, rules: bool = True) -> MetricRow:
            own = [cluster for cluster, flag in zip(clusters, is_used, strict=True) if flag]
            own_labels, own_predicted = labels[is_used], predicted[is_used]
            return MetricRow(
                name=name,
                rules={OFFICIAL: float(weighted_f1(own_labels, own_predicted)[0])} if rules else {},
                ours=bootstrap_interval(lambda weights: weighted_f1(own_labels, own_predicted, weights), own),
            )

        everything = np.ones(len(labels), dtype=bool)
        credit = np.where(np.isnan(answers), 0.5, (answers == labels).astype(np.float64))
        metrics = (
            weighted_f1_row("weighted F1", official, everything),
            MetricRow(name="F1 of wrong steps", rules={OFFICIAL: float(classification(labels, official).f1[0])}),
            MetricRow(
                name="F1 of right steps", rules={OFFICIAL: float(classification(1 - labels, 1 - official).f1[0])}
            ),
            MetricRow(name="accuracy of steps", ours=clustered_interval(credit, clusters)),
        )
        baselines = [
            weighted_f1_row("no step wrong", np.zeros(len(labels)), everything, rules=False),
            weighted_f1_row("every step wrong", np.ones(len(labels)), everything, rules=False),
        ]
        blind = [p.without_image or (None,) * len(item.labels) for item, p in zip(items, predictions, strict=True)]
        is_blind = np.array([p.without_image is not None for p in predictions for _ in p.labels], dtype=bool)
        if is_blind.any():
            without_image = np.nan_to_num(_pool(blind), nan=0.0)
            baselines.append(weighted_f1_row("no image", without_image, is_blind, rules=False))
        names = sorted(set(groups.tolist()))
        return BenchmarkReport(
            metrics=metrics,
            groups=tuple(weighted_f1_row(name, official, groups == name) for name in names) if len(names) > 1 else (),
            baselines=tuple(baselines),
            counts={"items": len(items), "steps": len(labels), "unreadable": int(np.isnan(answers).sum())},
        )


def _question(item: StepwiseSolution, index: int) -> str:
    if not index:
        return item.question
    previous = "\n".join(step.strip() for step in item.steps[:index])
    return f"{item.question}\nSteps so far:\n{previous}"


def read_labels(answer: Any, num_steps: int) -> tuple[int, ...]:
    """Read the labels of `num_steps` steps from an answer by the official rule."""
    text = answer if isinstance(answer, str) else str(list(answer))
    labels = [int(int(number) != 0) for number in _NUMBER.findall(text)]
    return tuple((labels + [0] * num_steps)[:num_steps])


def weighted_f1(labels: Array, answers: Array, weights: Array | None = None) -> Array:
    """Compute the official weighted F1 (R,) of labels and answers (N,) in {0, 1}. The rarer class weighs more.

    Args:
        labels: 1 for a wrong step.
        answers: 1 for a step predicted to be wrong.
        weights: Weights (R, N) of the steps in R resamples; None: one resample of weights 1.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    share_positive = divide(weights @ labels, weights.sum(axis=1))
    f1_positive = classification(labels, answers, weights).f1
    f1_negative = classification(1 - labels, 1 - answers, weights).f1
    return share_positive * f1_negative + (1 - share_positive) * f1_positive


def _pool(labels: Sequence[Sequence[int | None]]) -> Array:
    return np.array([np.nan if label is None else float(label) for own in labels for label in own])
