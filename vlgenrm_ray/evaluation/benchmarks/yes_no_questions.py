"""Base of the benchmarks of yes/no questions: readings of answers, and the parts of the report that all share.

A policy answers the questions. A judge is measured by the same rules: it rewards the answers "Yes." and "No.", and the
one with the greater reward counts as its answer; a tie, or a reward that is missing, counts as an empty answer.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlgenrm_ray.evaluation.benchmarks.benchmark import (
    BenchmarkReply,
    BenchmarkReport,
    BenchmarkRequest,
    BenchmarkRole,
    MetricRow,
)
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver
from vlgenrm_ray.evaluation.benchmarks.response_pairs import NO_IMAGE, ablation_suffixes
from vlgenrm_ray.evaluation.metrics import Array, Estimate, bootstrap_interval, clustered_interval, divide

_CANDIDATES = ("Yes", "No")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
"""VLMEvalKit passes a flag of `re` where a count is expected, and thereby removes at most 32 periods."""
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNoQuestion:
    """A question whose answer is yes or no."""

    id: str
    """Unique in the benchmark."""
    question: str
    """Question with the instruction of the benchmark, if it has one."""
    images: tuple[str, ...]
    is_yes: bool
    """True if the right answer is yes."""
    cluster: str
    """Image or figure that dependent questions share."""
    group: str = ""
    """Category of the benchmark."""
    keys: tuple[str, ...] = ()
    """Parts of the id, for benchmarks that count over some of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNoPrediction:
    """Answer to a yes/no question."""

    text: str
    is_tied: bool = False
    """A judge gave both answers the same reward; `text` is empty."""
    without_image: str | None = None
    """Answer of the baseline without image, if it was asked."""
    check: str = ""
    """Correctness stated by the answers file ("0" wrong, "1" right, "2" unclear); "" if it states none."""


class YesNoBenchmark(ABC):
    """Requests and replies of yes/no questions."""

    roles: ClassVar[tuple[BenchmarkRole, ...]] = (BenchmarkRole.POLICY, BenchmarkRole.JUDGE)
    candidates: ClassVar[tuple[str, str]] = _CANDIDATES

    @abstractmethod
    def read(self, data: Path, images: ImageResolver) -> list[YesNoQuestion]:
        """See `Benchmark.read`."""

    @abstractmethod
    def read_answers(self, answers: Path, items: Sequence[YesNoQuestion]) -> list[YesNoPrediction | None]:
        """See `Benchmark.read_answers`."""

    @abstractmethod
    def score(self, items: Sequence[YesNoQuestion], predictions: Sequence[YesNoPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""

    def requests(
        self, items: Sequence[YesNoQuestion], role: BenchmarkRole, no_image_share: float
    ) -> list[BenchmarkRequest]:
        """See `Benchmark.requests`."""
        responses = ((None, ""),) if role is BenchmarkRole.POLICY else tuple((c, f"/{c}") for c in self.candidates)
        return [
            BenchmarkRequest(
                id=f"{item.id}{name}{suffix}",
                images=item.images,
                question=item.question,
                response=response,
                is_blank=bool(suffix),
            )
            for item in items
            for suffix in ablation_suffixes(item.id, item.images, no_image_share)
            for response, name in responses
        ]

    def predictions(
        self, items: Sequence[YesNoQuestion], role: BenchmarkRole, replies: Mapping[str, BenchmarkReply]
    ) -> list[YesNoPrediction]:
        """See `Benchmark.predictions`."""

        def answer(item: YesNoQuestion, suffix: str) -> tuple[str, bool] | None:
            if role is BenchmarkRole.POLICY:
                reply = replies.get(f"{item.id}{suffix}")
                return None if reply is None else (reply.text, False)
            yes, no = (replies.get(f"{item.id}/{candidate}{suffix}") for candidate in self.candidates)
            if yes is None or no is None:
                return None
            if yes.reward is None or no.reward is None or yes.reward == no.reward:
                return "", yes.reward is not None and no.reward is not None
            return self.candidates[0 if yes.reward > no.reward else 1], False

        predictions = []
        for item in items:
            text, is_tied = answer(item, "") or ("", False)
            blind = answer(item, NO_IMAGE)
            predictions.append(
                YesNoPrediction(text=text, is_tied=is_tied, without_image=None if blind is None else blind[0])
            )
        return predictions


# -- readings of an answer: True yes, False no, None unreadable ------------------------------------------------------


def read_plainly(text: str) -> bool | None:
    """Read an answer by our rule: a first word "yes" or "no" decides, else the only one of both in the text."""
    words = _WORD.findall(text.lower())
    if words and words[0] in ("yes", "no"):
        return bool(words[0] == "yes")
    return None if ("yes" in words) == ("no" in words) else "yes" in words


def read_like_vlmevalkit(text: str) -> bool | None:
    """Read an answer by the rule of VLMEvalKit (`YOrN_Extraction`): one of "yes" and "no" is among the words."""
    text = text.lower()
    has_comma_in_number = _DIGITS_WITH_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        is_removed = has_comma_in_number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if is_removed else " ")
    words = _PERIOD.sub("", cleaned, count=_MAX_PERIODS).split()
    return None if ("yes" in words) == ("no" in words) else "yes" in words


# -- metrics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """Accuracy, precision, recall and F1 of one class, as shares (R,) of R resamples; 0 where undefined."""

    accuracy: Array
    precision: Array
    recall: Array
    f1: Array


def classification(labels: Array, answers: Array, weights: Array | None = None) -> Classification:
    """Compute the metrics of class 1 from labels (N,) in {0, 1} and answers (N,), where anything else is no answer.

    Args:
        labels: 1 for the positive class, 0 for the other.
        answers: 1 or 0; NaN for an answer that is neither.
        weights: Weights (R, N) of the observations in R resamples; None: one resample of weights 1.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    true_positive = weights @ ((labels == 1) & (answers == 1))
    num_predicted, num_positive = weights @ (answers == 1), weights @ (labels == 1)
    precision = divide(true_positive, num_predicted, default=0.0)
    recall = divide(true_positive, num_positive, default=0.0)
    return Classification(
        accuracy=divide(weights @ (labels == answers), weights.sum(axis=1), default=0.0),
        precision=precision,
        recall=recall,
        f1=divide(2 * precision * recall, precision + recall, default=0.0),
    )


def as_numbers(readings: Sequence[bool | None]) -> Array:
    """Return readings (N,) as 1 yes, 0 no, NaN unreadable."""
    return np.array([np.nan if reading is None else float(reading) for reading in readings])


def credits(items: Sequence[YesNoQuestion], texts: Sequence[str]) -> Array:
    """Return our value (N,) of each answer: 1 right, 0 wrong, 1/2 if it cannot be read."""
    readings = [read_plainly(text) for text in texts]
    return np.array(
        [
            0.5 if reading is None else float(reading == item.is_yes)
            for item, reading in zip(items, readings, strict=True)
        ]
    )


def f1_estimate(labels: Array, answers: Array, clusters: Sequence[str]) -> Estimate:
    """Estimate F1 of class 1 with a bootstrap interval over clusters; arguments as for `classification`."""
    return bootstrap_interval(lambda weights: classification(labels, answers, weights).f1, clusters)


def yes_no_baselines(items: Sequence[YesNoQuestion], predictions: Sequence[YesNoPrediction]) -> tuple[MetricRow, ...]:
    """Return the accuracy of answering always yes, always no, and without the image."""
    clusters = [item.cluster for item in items]
    labels = np.array([float(item.is_yes) for item in items])
    rows = [
        MetricRow(name="always yes", ours=clustered_interval(labels, clusters)),
        MetricRow(name="always no", ours=clustered_interval(1 - labels, clusters)),
    ]
    blind = [(i, text) for i, p in enumerate(predictions) if (text := p.without_image) is not None]
    if blind:
        own = [items[i] for i, _ in blind]
        values = credits(own, [text for _, text in blind])
        rows.append(MetricRow(name="no image", ours=clustered_interval(values, [item.cluster for item in own])))
    return tuple(rows)


def yes_no_counts(predictions: Sequence[YesNoPrediction]) -> dict[str, int]:
    """Count items, ties of a judge, and answers that our reading cannot read."""
    num_ties = sum(p.is_tied for p in predictions)
    num_unread = sum(read_plainly(p.text) is None for p in predictions)
    return {"items": len(predictions), "ties": num_ties, "unreadable": num_unread - num_ties}
