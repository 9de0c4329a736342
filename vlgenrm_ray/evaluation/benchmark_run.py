"""Measuring of models on benchmarks: all benchmarks of a run are asked together, with one engine per actor.

`score_answers` scores stored answers and starts nothing. `measure_model` asks a model on Ray, `measure_service` a
served reward or an object with `BenchmarkModel`'s method in this process. Both commit replies to a stage folder, so an
interrupted run continues, and return one result per benchmark:

    <folder>/judgements/       see data/store.py: one BenchmarkReply per request
    <folder>/<benchmark>.json  the report of a benchmark, as it is printed
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation import benchmarks
from vlgenrm_ray.evaluation.benchmarks.benchmark import (
    BenchmarkReport,
)
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkTask:
    """One benchmark with its files."""

    name: str
    """Key of `BENCHMARKS`, or an import path."""
    data: Path
    """File or folder of the benchmark's questions."""
    images: str = ""
    """Folder or URI of its images; "": the folder of `data`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """Report of one benchmark, with the model and its costs."""

    label: str
    """Name of the result's file: the benchmark, with the name of its data if it was run on several."""
    report: BenchmarkReport
    details: Mapping[str, Any]
    """Benchmark, data, model, role, and what the model cost."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return dict(self.details) | self.report.as_json()


def score_answers(task: BenchmarkTask, answers: Path, *, allow_missing: bool = False) -> BenchmarkResult:
    """Score stored answers.

    Args:
        task: The benchmark.
        answers: Answers or judgements of one model, in a form that the benchmark's class describes.
        allow_missing: Score the items that are answered if others are not.

    Raises:
        InputError: The name is unknown, a file cannot be read, or answers are missing.
        ConfigError: The import path cannot be imported.
    """
    benchmark = benchmarks.load(task.name)
    items = list(benchmark.read(task.data, _resolver(task, None)))
    predictions = list(benchmark.read_answers(answers, items))
    answered = [(item, p) for item, p in zip(items, predictions, strict=True) if p is not None]
    if not answered:
        raise InputError(f"{answers}: answers none of the {len(items)} questions of {task.data}; check their ids")
    if len(answered) < len(items) and not allow_missing:
        missing = next(item for item, p in zip(items, predictions, strict=True) if p is None)
        raise InputError(
            f"{answers}: {len(items) - len(answered)} of {len(items)} questions have no answer, the first is "
            f"{missing.id}; answer all of them, since leaving some out changes the score, or give --allow-missing"
        )
    report = benchmark.score([item for item, _ in answered], [p for _, p in answered])
    details: dict[str, Any] = {"benchmark": task.name, "data": str(task.data), "answers": str(answers)}
    if len(answered) < len(items):
        details["not_answered"] = len(items) - len(answered)
    return BenchmarkResult(label=_labels([task])[0], report=report, details=details)


def _resolver(task: BenchmarkTask, store: Path | None) -> ImageResolver:
    folder = task.data if task.data.is_dir() else task.data.parent
    return ImageResolver(root=task.images or str(folder.absolute()), store=store)


def _labels(tasks: Sequence[BenchmarkTask]) -> list[str]:
    """Return a unique file name for each task: the benchmark's, with the name of its data if it occurs twice."""
    names = [task.name.replace(":", ".") for task in tasks]
    counts = Counter(names)
    labels = [n if counts[n] == 1 else f"{n}-{task.data.stem}" for n, task in zip(names, tasks, strict=True)]
    if len(set(labels)) < len(labels):
        repeated = next(label for label, count in Counter(labels).items() if count > 1)
        raise InputError(f"{repeated} is named twice; give each benchmark and data file once")
    return labels
