"""The `Benchmark` protocol, and the types that pass between a benchmark, the model it measures and its report.

    data file -> items -> `BenchmarkRequest`s -> a judge or a policy -> `BenchmarkReply`s -> predictions -> report
                   `--------------------------------- answers file --------------------------^

A benchmark reads its files, states what a model is asked, and scores predictions. It starts no engine: that is done by
`evaluation/benchmark_run.py` for all benchmarks of a run together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver
from vlgenrm_ray.evaluation.metrics import Estimate, estimate_as_json

OFFICIAL = "official"
"""Name of the rule of a benchmark's own script."""
LMMS_EVAL = "lmms-eval"
VLMEVALKIT = "VLMEvalKit"

Item = TypeVar("Item")
Prediction = TypeVar("Prediction")


class BenchmarkRole(StrEnum):
    """Task of the model that a benchmark measures."""

    JUDGE = "judge"
    """It rewards single responses."""
    PAIRWISE_JUDGE = "pairwise_judge"
    """It sees two responses at once and says which is better."""
    POLICY = "policy"
    """It answers questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRequest:
    """One call of a judge or a policy."""

    id: str
    """Unique in the run."""
    images: tuple[str, ...]
    """Paths or URIs in order; empty if the question is about no image."""
    question: str
    response: str | None
    """Response to reward; None: the question is to be answered."""
    other: str | None = None
    """Second response, for a pairwise judge, which is shown `response` first. None for the other roles."""
    is_blank: bool = False
    """Show a grey image of the same size in place of each image, for the baseline `no image`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReply:
    """Result of a request."""

    id: str
    status: str
    """`ok`, or the reason why there is no reward or answer."""
    reward: float | None = None
    """Reward of the response; for a pairwise judge the probability that the first response is the better one, 0.5 for a
    tie. None if the request was to answer, and without a readable verdict."""
    text: str = ""
    """The answer; empty if the request was to reward."""
    num_tokens: int = 0
    """Generated tokens; 0 if the service does not count them."""
    seconds: float = 0.0
    """The request's share of the time of its batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One line of a report: a metric by the rules of several programs, and by ours."""

    name: str
    rules: Mapping[str, float | None] = field(default_factory=dict)
    """Rule (`official`, `lmms-eval`, ...) -> its value; None where the rule gives none."""
    ours: Estimate | None = None
    """Our estimate with its 95 % interval; None for a metric of the rules alone."""

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {
            "rules": dict(self.rules),
            "ours": None if self.ours is None else estimate_as_json(self.ours),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReport:
    """Scores of one model on one benchmark."""

    metrics: tuple[MetricRow, ...]
    """Main metric first."""
    groups: tuple[MetricRow, ...] = ()
    """Main metric of each group of items."""
    orders: tuple[MetricRow, ...] = ()
    """Pairwise judges: accuracy by the position of the better response, and the consistency of both orders."""
    baselines: tuple[MetricRow, ...] = ()
    """Accuracy of rules that look at no image, or at no content."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Numbers of items, and of ties, unreadable and missing predictions."""
    notes: tuple[str, ...] = ()
    """Deviations from the official procedure that a reader must know."""

    @property
    def main(self) -> float:
        """Our value of the main metric, by which runs are compared."""
        estimate = self.metrics[0].ours
        assert estimate is not None, "a benchmark's main metric has an estimate"
        return estimate.value

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON; NaN as None."""
        sections = {name: getattr(self, name) for name in ("metrics", "groups", "orders", "baselines")}
        return {
            "main": self.metrics[0].name,
            **{name: {row.name: row.as_json() for row in rows} for name, rows in sections.items() if rows},
            "counts": dict(self.counts),
            "notes": list(self.notes),
        }


class Benchmark(Protocol, Generic[Item, Prediction]):
    """A benchmark with its official rules. The class is created without arguments."""

    roles: tuple[BenchmarkRole, ...]
    """Roles in which a model can be measured, the usual one first; empty if only stored answers can be scored."""

    def read(self, data: Path, images: ImageResolver) -> Sequence[Item]:
        """Read the items of the benchmark from its own files.

        Args:
            data: File or folder in the benchmark's own format.
            images: Resolves the images that rows name or hold.

        Raises:
            InputError: The file cannot be read, or is not of this benchmark.
        """
        ...

    def requests(self, items: Sequence[Item], role: BenchmarkRole, no_image_share: float) -> list[BenchmarkRequest]:
        """Return the requests to a model in `role`, with unique ids.

        Args:
            items: Items to ask about.
            role: One of `roles`.
            no_image_share: Share of the items that are asked about without the image as well, in [0, 1].
        """
        ...

    def predictions(
        self, items: Sequence[Item], role: BenchmarkRole, replies: Mapping[str, BenchmarkReply]
    ) -> Sequence[Prediction]:
        """Return the prediction for each item from the replies, by the ids of its requests."""
        ...

    def read_answers(self, answers: Path, items: Sequence[Item]) -> Sequence[Prediction | None]:
        """Read stored predictions, in the order of `items`; None where the file has none.

        Raises:
            InputError: The file cannot be read, or answers an item twice.
        """
        ...

    def score(self, items: Sequence[Item], predictions: Sequence[Prediction]) -> BenchmarkReport:
        """Score one prediction per item. Order of the items matters only where the official rule says so."""
        ...
