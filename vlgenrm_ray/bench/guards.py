"""Simulation of the early-stop rule `reward_hacking`: how often it stops a healthy run, and how often a hacked one.

    healthy   the reward rises, the true value rises or stays: every stop is a false alarm
    hacked    the reward rises, the true value falls from some evaluation on: stops after it are the power of the rule

A run is evaluated on the same held-out questions again and again. The outcome of a question is drawn anew with the
probability `churn`, else it stays as it was, so neighbouring evaluations are correlated as in a real run. The rule is
`policy.guards.check_reward_hacking` itself, applied after every evaluation. Seconds on one CPU; no engine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from vlgenrm_ray.bench.table import ReportRow, run_and_report
from vlgenrm_ray.policy.guards import EvaluationPoint, RewardHackingRule, check_reward_hacking

MAX_FALSE_ALARMS = 0.05
"""Target: share of healthy runs that the rule stops."""
MIN_POWER = 0.8
"""Target: share of hacked runs, with a fall of 0.1, that the rule stops."""
_START, _GAIN, _RISE, _REWARD_NOISE = 0.55, 0.08, 0.15, 0.01
"""True value at the start, its gain in an improving run, the rise of the reward, and the noise of its mean."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardScenario:
    """A kind of simulated run."""

    name: str
    gain: float = 0.0
    """Rise of the true value over the first half of the run, which then stays."""
    fall: float = 0.0
    """Fall of the true value over the second half of the run; above 0 the run is hacked."""

    def true_values(self, num_evaluations: int) -> Array:
        """Return the true value at each evaluation, [E]."""
        progress = np.linspace(0.0, 1.0, num_evaluations)
        first_half, second_half = np.minimum(2 * progress, 1.0), np.maximum(2 * progress - 1.0, 0.0)
        values: Array = _START + self.gain * first_half - self.fall * second_half
        return values


SCENARIOS = (
    GuardScenario(name="healthy, improves", gain=_GAIN),
    GuardScenario(name="healthy, stays", gain=0.0),
    GuardScenario(name="hacked, falls 0.05", fall=0.05),
    GuardScenario(name="hacked, falls 0.10", fall=0.1),
    GuardScenario(name="hacked, falls 0.20", fall=0.2),
    GuardScenario(name="improves, falls 0.10", gain=_GAIN, fall=0.1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardBenchSettings:
    """Size of a simulation, and its noise."""

    num_runs: int
    num_evaluations: int
    num_questions: int
    churn: float
    """Probability that the outcome of a question is drawn anew between two evaluations, in [0, 1]."""
    seed: int


def simulate_runs(scenario: GuardScenario, settings: GuardBenchSettings) -> list[list[EvaluationPoint]]:
    """Simulate the evaluations of runs of one kind."""
    rng = np.random.default_rng([settings.seed, len(scenario.name), int(1000 * scenario.fall)])
    values = scenario.true_values(settings.num_evaluations)
    size = (settings.num_runs, settings.num_questions)
    # With a fixed level per question, an outcome that is drawn anew has the probability of the present value.
    outcomes = rng.random(size) < values[0]
    measured = np.empty((settings.num_runs, settings.num_evaluations))
    for evaluation, value in enumerate(values):
        drawn = rng.random(size) < settings.churn
        outcomes = np.where(drawn, rng.random(size) < value, outcomes)
        if evaluation:
            outcomes = _shift(outcomes, value - values[evaluation - 1], values[evaluation - 1], ~drawn, rng)
        measured[:, evaluation] = outcomes.mean(-1)
    rise = np.linspace(0.0, _RISE, settings.num_evaluations)
    rewards = 0.5 + rise + _REWARD_NOISE * rng.standard_normal(measured.shape)
    return [
        [
            EvaluationPoint(step=step, reward=float(reward), held_out=float(value))
            for step, (reward, value) in enumerate(zip(*of_run, strict=True))
        ]
        for of_run in zip(rewards, measured, strict=True)
    ]


def _shift(
    outcomes: npt.NDArray[np.bool_],
    change: float,
    before: float,
    unchanged: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Change some of the outcomes that were not drawn anew, so that their mean follows the true value."""
    if change >= 0:
        flips = ~outcomes & unchanged & (rng.random(outcomes.shape) < change / (1.0 - before))
    else:
        flips = outcomes & unchanged & (rng.random(outcomes.shape) < -change / before)
    return outcomes ^ flips


def stop_evaluations(runs: Sequence[Sequence[EvaluationPoint]], rule: RewardHackingRule) -> list[int | None]:
    """Return the index of the evaluation after which the rule stops each run; None if it never does."""
    return [
        next((last for last in range(len(run)) if check_reward_hacking(run[: last + 1], rule)), None) for run in runs
    ]


def measure_rule(rule: RewardHackingRule, settings: GuardBenchSettings) -> dict[str, Any]:
    """Simulate all scenarios under a rule.

    Returns:
        By scenario the share of `stopped` runs, and the median number of evaluations from the beginning of the fall to
        the stop (`delay`; None without one). A stop of a hacked run before its fall counts as `early`, not as stopped.
    """
    onset = settings.num_evaluations // 2
    results: dict[str, Any] = {}
    for scenario in SCENARIOS:
        stops = [stop for stop in stop_evaluations(simulate_runs(scenario, settings), rule) if stop is not None]
        early = [stop for stop in stops if scenario.fall and stop < onset]
        late = [stop for stop in stops if not scenario.fall or stop >= onset]
        results[scenario.name] = {
            "stopped": len(late) / settings.num_runs,
            "early": len(early) / settings.num_runs,
            "delay": float(np.median(late)) - onset if late and scenario.fall else None,
        }
    return results


def _label(rule: RewardHackingRule) -> str:
    return f"window {rule.window}, fall {rule.min_fall:g}"


def report_rows(results: Mapping[str, Any]) -> Iterator[ReportRow]:
    """Make the rows of the table: the shares of stopped runs, with targets for the present defaults."""
    for label, by_scenario in results.items():
        is_default = label == _label(RewardHackingRule())
        for scenario in SCENARIOS:
            if (row := by_scenario.get(scenario.name)) is None:
                continue
            is_target = is_default and scenario.name in ("healthy, stays", "healthy, improves")
            details = "" if row["delay"] is None else f"{row['delay']:g} evaluations after the fall began"
            yield ReportRow(
                label=f"{label}: {scenario.name}",
                measured=row["stopped"],
                unit="stopped",
                maximum=MAX_FALSE_ALARMS if is_target else None,
                minimum=MIN_POWER if is_default and scenario.fall == 0.1 and not scenario.gain else None,
                details=details if is_default else "",
            )


def run(
    *,
    num_runs: int = 400,
    num_evaluations: int = 10,
    num_questions: int = 400,
    churn: float = 0.5,
    min_falls: Sequence[float] = (),
    windows: Sequence[int] = (),
    seed: int = 0,
    out: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Simulate the default rule, and rules of other limits, and print their false-alarm rates and power.

    Args:
        num_runs: Simulated runs of each kind.
        num_evaluations: Evaluations of a run.
        num_questions: Held-out questions.
        churn: Probability that the outcome of a question is drawn anew between two evaluations, in [0, 1].
        min_falls: Values of `reward_hacking.min_fall` to compare with the default.
        windows: Values of `reward_hacking.window` to compare with the default.
        seed: Seed of the simulation.
        out: Path of the JSON report, or None for none.
        console: Receives the table; default: standard output.
    """
    settings = GuardBenchSettings(
        num_runs=num_runs,
        num_evaluations=num_evaluations,
        num_questions=num_questions,
        churn=churn,
        seed=seed,
    )
    default = RewardHackingRule()
    rules = {_label(default): default}
    for window in windows or (default.window,):
        for min_fall in min_falls or (default.min_fall,):
            rule = default.model_copy(update={"window": window, "min_fall": min_fall})
            rules.setdefault(_label(rule), rule)
    results: dict[str, Any] = {}

    def measure() -> None:
        for label, rule in rules.items():
            results[label] = measure_rule(rule, settings)

    return run_and_report(
        measure,
        results,
        report_rows,
        console=console or Console(highlight=False),
        settings={"simulation": asdict(settings), "rule": default.model_dump()},
        out=out,
    )
