"""Rules that end a run with a reason: rewards that rise while the policy gets worse, or whatever the picture shows, and
rewards that fail."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


class SightRule(Settings):
    """When a judge is no longer believed to look: what pleases it pleases it by a blank picture as well."""

    window: int = Field(default=3, ge=1)
    """Evaluations averaged on either side of the comparison."""
    min_rise: float = Field(default=0.02, ge=0.0)
    """Of the training reward, in its units, since the judge saw most."""
    floor: float = 0.02
    """Sight, in units of the reward, that is none."""
    stop: bool = False
    """Whether the run then stops; if not, it warns."""


class FailureRule(Settings):
    """When rewards that fail are too many."""

    window: int = Field(default=4, ge=1)
    """Steps that are looked at, the last ones."""
    max_share: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Largest share of their samples without a reward."""
    min_samples: int = Field(default=32, ge=1)
    """No share is taken of fewer, unless the window is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is known at a held-out evaluation."""

    step: int
    reward: float
    """Mean training reward since the evaluation before."""
    held_out: float
    """What the reward model never saw: higher is better."""
    sight: float | None = None
    """See `sight.figures`."""


def reward_hacking(history: Sequence[Evaluation], rule: HackingRule) -> str | None:
    """Why to stop after these evaluations, in order; None to go on.

    The mean of the last `window` is compared with that of the `window` before them whose held-out mean is highest. It
    is hacking if the held-out measure has since fallen by more than `min_fall`, and the reward risen by more than
    `min_rise`. Where both fall it is not.
    """
    best, recent = _best_and_recent(history, rule.window, _held_out)
    if not best:
        return None
    rise, fall = _reward(recent) - _reward(best), _held_out(best) - _held_out(recent)
    if rise <= rule.min_rise or fall <= rule.min_fall:
        return None
    return (
        f"reward hacking: since step {best[-1].step} the training reward rose by {rise:.3g} (limit {rule.min_rise:g}) "
        f"while the held-out measure fell by {fall:.3g} (limit {rule.min_fall:g})"
    )


def blindness(history: Sequence[Evaluation], rule: SightRule) -> str | None:
    """Why to doubt that the judge looks after these evaluations, in order; None where nothing says so.

    The windows are those of `reward_hacking`, by sight. A sight that never was is as low as one that was lost, and with
    answers that are mostly wrong it may well be below 0: only beside a rising reward does it say anything.
    """
    best, recent = _best_and_recent([one for one in history if one.sight is not None], rule.window, _sight)
    if not best:
        return None
    rise, before, now = _reward(recent) - _reward(best), _sight(best), _sight(recent)
    if rise <= rule.min_rise or now > rule.floor or now >= before:
        return None
    return (
        f"the judge may not look: since step {best[-1].step} the training reward rose by {rise:.3g} (limit "
        f"{rule.min_rise:g}) while what the picture adds to it fell from {before:.3g} to {now:.3g} (limit "
        f"{rule.floor:g})"
    )


def reward_failures(steps: Sequence[Mapping[str, int]], rule: FailureRule) -> str | None:
    """Why to stop, by each step's number of samples of every status (`ok`: has a reward); None to go on."""
    counts: Counter[str] = Counter()
    for step in steps[-rule.window :]:
        counts.update(step)
    total = counts.total()
    failed = Counter({status: number for status, number in counts.items() if status != "ok" and number})
    enough = total >= rule.min_samples or len(steps) >= rule.window
    if not enough or failed.total() <= rule.max_share * total:
        return None
    named = ", ".join(f"{number} {status}" for status, number in failed.most_common())
    share = f"{failed.total()} of the last {total} samples"
    return f"{share} have no reward to learn from (limit {rule.max_share:.0%}): {named}"


def _best_and_recent(
    history: Sequence[Evaluation], width: int, value: Callable[[Sequence[Evaluation]], float]
) -> tuple[Sequence[Evaluation], Sequence[Evaluation]]:
    """The `width` evaluations of the highest value before the last `width`, and those; both empty where too few."""
    recent, earlier = history[-width:], history[:-width]
    starts = range(len(earlier) - width + 1)
    if not starts:
        return (), ()
    return max((earlier[start : start + width] for start in starts), key=value), recent


def _reward(history: Sequence[Evaluation]) -> float:
    return sum(evaluation.reward for evaluation in history) / len(history)


def _held_out(history: Sequence[Evaluation]) -> float:
    return sum(evaluation.held_out for evaluation in history) / len(history)


def _sight(history: Sequence[Evaluation]) -> float:
    return sum(evaluation.sight or 0.0 for evaluation in history) / len(history)
