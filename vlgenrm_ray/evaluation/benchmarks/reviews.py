"""Base of the benchmarks whose answers are rated by a language model: they score its stored reviews."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReply, BenchmarkReport, BenchmarkRequest, BenchmarkRole
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver
from vlgenrm_ray.evaluation.metrics import Array, Estimate, bootstrap_interval, divide


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedQuestion:
    """A question whose answer was rated."""

    id: str
    """Unique in the benchmark."""
    group: str
    """Category of the benchmark."""
    cluster: str
    """Image that dependent questions share."""


class ReviewBenchmark(ABC):
    """A benchmark that asks a model nothing itself."""

    roles: ClassVar[tuple[BenchmarkRole, ...]] = ()

    @abstractmethod
    def read(self, data: Path, images: ImageResolver) -> list[ReviewedQuestion]:
        """See `Benchmark.read`."""

    @abstractmethod
    def read_answers(self, answers: Path, items: Sequence[ReviewedQuestion]) -> list[tuple[float, ...] | None]:
        """See `Benchmark.read_answers`: the ratings of each review, empty if it cannot be read."""

    @abstractmethod
    def score(self, items: Sequence[ReviewedQuestion], predictions: Sequence[tuple[float, ...]]) -> BenchmarkReport:
        """See `Benchmark.score`."""

    def requests(
        self, items: Sequence[ReviewedQuestion], role: BenchmarkRole, no_image_share: float
    ) -> list[BenchmarkRequest]:
        """See `Benchmark.requests`: there are none."""
        return []

    def predictions(
        self, items: Sequence[ReviewedQuestion], role: BenchmarkRole, replies: Mapping[str, BenchmarkReply]
    ) -> list[tuple[float, ...]]:
        """See `Benchmark.predictions`: there are none."""
        return []


def mean_estimate(values: Array, clusters: Sequence[str]) -> Estimate:
    """Estimate the mean of values (N,) of any range, with a bootstrap interval over clusters."""
    return ratio_estimate(values, np.ones(len(values)), clusters)


def ratio_estimate(numerators: Array, denominators: Array, clusters: Sequence[str]) -> Estimate:
    """Estimate sum(numerators) / sum(denominators) of paired values (N,), with a bootstrap interval over clusters."""
    return bootstrap_interval(lambda weights: divide(weights @ numerators, weights @ denominators), clusters)
