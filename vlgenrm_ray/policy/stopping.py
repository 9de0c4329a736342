"""Rules that end a run with a reason: rewards that rise while the policy gets worse, and rewards that fail."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from vlgenrm_ray.settings import Settings


class HackingRule(Settings):
    """When a rising reward is no longer believed (over-optimisation of a learnt reward: arXiv 2210.10760)."""

    window: int = Field(default=3, ge=1)
    """Evaluations averaged on either side of the comparison."""
    min_rise: float = Field(default=0.02, ge=0.0)
    """Of the training reward, in its units, since the held-out measure was best."""
    min_fall: float = Field(default=0.03, ge=0.0)
    """Of the held-out measure, in its units, from its best; more than its noise over a window."""


class FailureRule(Settings):
    """When rewards that fail are too many."""

    window: int = Field(default=4, ge=1)
    """Steps that are looked at, the last ones."""
    max_share: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Largest share of their samples without a reward."""
    min_samples: int = Field(default=32, ge=1)
    """No share is taken of fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is known at a held-out evaluation."""

    step: int
    reward: float
    """Mean training reward since the evaluation before."""
    held_out: float
    """What the reward model never saw: higher is better."""


def reward_hacking(history: Sequence[Evaluation], rule: HackingRule) -> str | None:
    """Why to stop after these evaluations, in order; None to go on.

    The mean of the last `window` is compared with that of the `window` before them whose held-out mean is highest. It
    is hacking if the held-out measure has since fallen by more than `min_fall`, and the reward risen by more than
    `min_rise`. Where both fall it is not.
    """
    width = rule.window
    recent, earlier = history[-width:], history[:-width]
    starts = range(len(earlier) - width + 1)
    if not starts:
        return None
    best = max((earlier[start : start + width] for start in starts), key=_held_out)
    rise, fall = _reward(recent) - _reward(best), _held_out(best) - _held_out(recent)
    if rise <= rule.min_rise or fall <= rule.min_fall:
        return None
    return (
        f"reward hacking: since step {best[-1].step} the training reward rose by {rise:.3g} (limit {rule.min_rise:g}) "
        f"while the held-out measure fell by {fall:.3g} (limit {rule.min_fall:g})"
    )


def reward_failures(steps: Sequence[Mapping[str, int]], rule: FailureRule) -> str | None:
    """Why to stop, by each step's number of samples of every status (`ok`: has a reward); None to go on."""
    counts: Counter[str] = Counter()
    for step in steps[-rule.window :]:
        counts.update(step)
    total = counts.total()
    failed = Counter({status: number for status, number in counts.items() if status != "ok" and number})
    if total < rule.min_samples or failed.total() <= rule.max_share * total:
        return None
    named = ", ".join(f"{number} {status}" for status, number in failed.most_common())
    return f"{failed.total()} of the last {total} samples have no reward (limit {rule.max_share:.0%}): {named}"


def _reward(history: Sequence[Evaluation]) -> float:
    return sum(evaluation.reward for evaluation in history) / len(history)


def _held_out(history: Sequence[Evaluation]) -> float:
    return sum(evaluation.held_out for evaluation in history) / len(history)
