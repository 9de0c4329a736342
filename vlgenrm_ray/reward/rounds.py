"""The loop: critiques -> selection -> training -> evaluation, until the held-out accuracy stops improving.

Every step is resumable and a finished one returns at once, so the loop keeps no state of its own: started again
after a kill, it walks through the finished steps and goes on with the first unfinished one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.settings import Settings


class RoundsConfig(Settings):
    """How often, and from where."""

    num_rounds: int = Field(default=2, ge=0, le=100)
    """T, rounds at most; 0 only evaluates the base."""
    patience: int = Field(default=1, ge=1)
    """Rounds without a better held-out accuracy after which the loop ends."""
    start_from: Literal["latest", "base"] = "latest"
    """What a round fine-tunes: the round before's model, or the base anew (STaR)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training a round left behind."""

    model: Path
    """Exported Hugging Face folder."""
    seconds: float
    report: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The four steps of a round, bound to their configuration by the pipeline."""

    critiques: Callable[[Path, int, StageFolder], Manifest]
    """(model, round, target)"""
    selection: Callable[[int, StageFolder, StageFolder], Manifest]
    """(round, critiques, target)"""
    training: Callable[[Path, int, StageFolder, Path], Trained]
    """(model to start from, round, examples, target folder)"""
    evaluation: Callable[[Path, StageFolder], Manifest]
    """(model, target)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One finished round; round 0 is the base, only evaluated."""

    round: int
    model: Path
    parent: Path | None
    stages: dict[str, Manifest]
    training: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float]
    """Stage -> working seconds."""

    @property
    def accuracy(self) -> float:
        """Held-out pairwise accuracy."""
        return float(self.stages["evaluation"].metrics["pairwise_accuracy"])

    @property
    def kept_share(self) -> float | None:
        """Pairs selection kept, of the pairs that had critiques; None for the base."""
        selection = self.stages.get("selection")
        return None if selection is None else float(selection.metrics["kept_share"])


def run(config: RoundsConfig, run_folder: Path, *, base: Path, steps: Steps) -> Iterator[Round]:
    """Yield the base's evaluation as round 0, then each finished round.

    Raises StageError if a round selects nothing to train on: a collapse is a result to look at, not to train through.
    """
    done = [_evaluate_base(run_folder, base, steps)]
    yield done[0]
    for number in range(1, config.num_rounds + 1):
        if _stale(done) >= config.patience:
            return
        parent = base if config.start_from == "base" else done[-1].model
        done.append(_run_round(run_folder / f"round-{number}", number, done[-1].model, parent, steps))
        yield done[-1]


def best(rounds: Sequence[Round]) -> Round:
    """The round with the best held-out accuracy; the earliest of equals."""
    return max(rounds, key=lambda r: (r.accuracy, -r.round))


def _stale(done: Sequence[Round]) -> int:
    """Rounds since the best one."""
    return done[-1].round - best(done).round


def _evaluate_base(run_folder: Path, base: Path, steps: Steps) -> Round:
    evaluation = steps.evaluation(base, StageFolder(run_folder / "round-0" / "evaluation"))
    stages = {"evaluation": evaluation}
    return Round(round=0, model=base, parent=None, stages=stages, seconds={"evaluation": evaluation.seconds})


def _run_round(folder: Path, number: int, critic: Path, parent: Path, steps: Steps) -> Round:
    critiques = StageFolder(folder / "critiques")
    selection = StageFolder(folder / "selection")
    stages = {"critiques": steps.critiques(critic, number, critiques)}
    stages["selection"] = steps.selection(number, critiques, selection)
    if not stages["selection"].rows_out:
        raise StageError(
            f"round {number}: selection kept none of {stages['selection'].rows_in} pairs "
            f"({stages['selection'].dropped}); lower selection.tau, raise judge.num_critiques, "
            f"or look at the critiques in {critiques.path}"
        )
    trained = steps.training(parent, number, selection, folder / "training")
    stages["evaluation"] = steps.evaluation(trained.model, StageFolder(folder / "evaluation"))
    seconds = {name: manifest.seconds for name, manifest in stages.items()} | {"training": trained.seconds}
    return Round(
        round=number,
        model=trained.model,
        parent=parent,
        stages=stages,
        training=trained.report,
        seconds=seconds,
    )
