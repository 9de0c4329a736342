"""Benchmarks: official scoring rules applied to stored answers. No engine is started.

To add one, write a class with `score(data, answers)` (see `Benchmark`) and a line in `BENCHMARKS`, or name it on the
command line by an import path: `vlgenrm benchmark package.module:Name --data ... --answers ...`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vlgenrm_ray import plugins
from vlgenrm_ray.errors import InputError

BENCHMARKS = {
    "heldout_pairs": "vlgenrm_ray.evaluation.benchmarks.heldout_pairs:HeldoutPairs",
    "pope": "vlgenrm_ray.evaluation.benchmarks.pope:Pope",
}
"""Benchmark -> import path of its class."""


class Benchmark(Protocol):
    """A benchmark with its official metrics. The class is created without arguments."""

    def score(self, data: Path, answers: Path) -> Mapping[str, Any]:
        """Score stored answers.

        Args:
            data: Questions with labels, in the benchmark's own format.
            answers: Answers or judgements of one model.

        Returns:
            Metric -> value, JSON-able; the main metric first. Estimates are `{"value", "ci95", "num"}`.

        Raises:
            InputError: A file cannot be read, or answers are missing.
        """
        ...


def score(name: str, data: Path, answers: Path) -> dict[str, Any]:
    """Score stored answers with the benchmark `name`, a key of `BENCHMARKS` or an import path.

    Raises:
        InputError: The name is unknown, a file cannot be read, or answers are missing.
        ConfigError: The import path cannot be imported.
    """
    try:
        plugins.check_name(name, BENCHMARKS)
    except ValueError as error:
        raise InputError(f"benchmark {error}") from None
    benchmark: Benchmark = plugins.load(name, BENCHMARKS, "benchmark")()
    return dict(benchmark.score(data, answers))
