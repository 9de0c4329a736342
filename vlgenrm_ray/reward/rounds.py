"""Loop over rounds: critiques -> selection -> training -> evaluation, until held-out accuracy stops improving.

Every stage is resumable and returns at once when it is finished, so the loop keeps no state of its own: restarted
after an interruption, it passes through the finished stages and continues with the first unfinished one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.reward.training import TrainingResult
from vlgenrm_ray.settings import Settings


class StopRule(Settings):
    """Stops the rounds when a benchmark no longer improves."""

    metric: str = Field(min_length=1)
    """Benchmark of the recipe's `benchmarks` whose main metric (ours) is watched. If it is listed with several files,
    `<name>-<name of the file without its ending>`."""
    patience: int = Field(default=1, ge=1)
    """Rounds without a better value after which the loop ends."""


class RoundsConfig(Settings):
    """Number of rounds, and the model that each one starts from."""

    operational: ClassVar = frozenset({"num_rounds", "patience", "stop"})

    num_rounds: int = Field(default=2, ge=0, le=100)
    """Largest number of rounds T; 0 only evaluates the base model."""
    patience: int = Field(default=1, ge=1)
    """Rounds without a better held-out accuracy after which the loop ends."""
    stop: StopRule | None = None
    """Further rule that ends the loop, by a benchmark. The best round is that of the held-out accuracy all the same:
    chosen by a benchmark, its score there would be too good."""
    start_from: Literal["latest", "base"] = "latest"
    """Model that a round fine-tunes: the previous round's, or the base model again (STaR)."""
    cold_start: bool = False
    """Pairwise judges: in round 1 the base model judges each response by itself, and the selected critiques of both
    sides are composed into critiques of the pair. For a base that cannot compare two responses yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStages:
    """The stages of a round, bound to their configuration by the pipeline."""

    critiques: Callable[[Path, int, StageFolder], Manifest] | None
    """(model, round, target). None: the training reads the preferences, without critiques and selection."""
    selection: Callable[[int, StageFolder, StageFolder], Manifest]
    """(round, critiques, target)"""
    training: Callable[[Path, int, StageFolder, Path], TrainingResult]
    """(model to start from, round, selected examples, target folder)"""
    evaluation: Callable[[Path, StageFolder], Manifest]
    """(model, target)"""
    benchmarks: Callable[[Path, Path], Mapping[str, float]] = lambda model, folder: {}
    """(model, folder) -> benchmark -> its main metric"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One finished round; round 0 is the base model, which is only evaluated."""

    round: int
    model: Path
    """Model folder that the round trained."""
    parent: Path | None
    """Model folder that training started from; None for the base model."""
    stages: dict[str, Manifest]
    training: dict[str, Any] = field(default_factory=dict)
    """Metrics of the training stage."""
    seconds: dict[str, float]
    """Stage name -> working seconds."""
    benchmarks: Mapping[str, float] = field(default_factory=dict)
    """Benchmark -> its main metric."""

    @property
    def accuracy(self) -> float:
        """Held-out pairwise accuracy."""
        return float(self.stages["evaluation"].metrics["pairwise_accuracy"])

    @property
    def kept_share(self) -> float | None:
        """Share of the pairs with critiques that selection kept; None for the base model and without a selection."""
        selection = self.stages.get("selection")
        return None if selection is None else float(selection.metrics["kept_share"])


def run(config: RoundsConfig, run_folder: Path, *, base: Path, stages: RoundStages) -> Iterator[RoundResult]:
    """Yield the base model's evaluation as round 0, then each round when it is finished.

    Args:
        config: Settings of the loop.
        run_folder: Folder that receives `round-<t>/<stage>/`.
        base: Model folder to start from.
        stages: The stages to run.

    Raises:
        StageError: A round selects no examples; the collapse should be inspected instead of trained through.
    """
    results = [_evaluate_base(run_folder, base, stages)]
    yield results[0]
    for round in range(1, config.num_rounds + 1):
        if results[-1].round - best_round(results).round >= config.patience:
            return
        if config.stop is not None and has_stopped(config.stop, results):
            return
        parent = base if config.start_from == "base" else results[-1].model
        results.append(_run_round(run_folder / f"round-{round}", round, results[-1].model, parent, stages))
        yield results[-1]


def has_stopped(rule: StopRule, rounds: Sequence[RoundResult]) -> bool:
    """Return True if the benchmark of the rule has not improved for `patience` rounds."""
    values = [r.benchmarks[rule.metric] for r in rounds]
    # NaN, of a benchmark without a readable verdict, is no improvement.
    best = max(range(len(values)), key=lambda i: (values[i] if values[i] == values[i] else -math.inf, -i))
    return len(values) - 1 - best >= rule.patience


def best_round(rounds: Sequence[RoundResult]) -> RoundResult:
    """Return the round with the best held-out accuracy; the earliest on a tie."""
    return max(rounds, key=lambda r: (r.accuracy, -r.round))


def _evaluate_base(run_folder: Path, base: Path, stages: RoundStages) -> RoundResult:
    folder = run_folder / "round-0"
    evaluation = stages.evaluation(base, StageFolder(folder / "evaluation"))
    return RoundResult(
        round=0,
        model=base,
        parent=None,
        stages={"evaluation": evaluation},
        seconds={"evaluation": evaluation.seconds},
        benchmarks=stages.benchmarks(base, folder / "benchmarks"),
    )


def _run_round(folder: Path, round: int, critic: Path, parent: Path, stages: RoundStages) -> RoundResult:
    selection = StageFolder(folder / "selection")
    manifests: dict[str, Manifest] = {}
    if stages.critiques is not None:
        critiques = StageFolder(folder / "critiques")
        manifests["critiques"] = stages.critiques(critic, round, critiques)
        manifests["selection"] = stages.selection(round, critiques, selection)
        if not manifests["selection"].rows_out:
            raise StageError(
                f"round {round}: selection kept none of {manifests['selection'].rows_in} pairs "
                f"({manifests['selection'].dropped}); lower selection.tau, raise judge.num_critiques, "
                f"or look at the critiques in {critiques.path}"
            )
    trained = stages.training(parent, round, selection, folder / "training")
    manifests["evaluation"] = stages.evaluation(trained.model, StageFolder(folder / "evaluation"))
    seconds = {name: manifest.seconds for name, manifest in manifests.items()} | {"training": trained.seconds}
    return RoundResult(
        round=round,
        model=trained.model,
        parent=parent,
        stages=manifests,
        training=trained.metrics,
        seconds=seconds,
        benchmarks=stages.benchmarks(trained.model, folder / "benchmarks"),
    )
