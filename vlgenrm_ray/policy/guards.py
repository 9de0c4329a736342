"""Guards that stop a run with a reason: reward hacking, a reward that ignores the image, and failing rewards.

`TrainingHistory` collects what the guards look at, and is saved in every checkpoint. Each rule is a settings section
with a pure function that returns the reason to stop, or None.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from pydantic import Field

from vlgenrm_ray.settings import RemovedSetting, Settings

MIN_SAMPLES = 32
"""Samples below which `check_reward_failures` waits for more, unless its window is full."""


class RewardHackingRule(Settings):
    """Limit beyond which a rising reward counts as hacked (over-optimisation of a learned reward: arXiv 2210.10760)."""

    window: int = Field(default=3, ge=1)
    """Evaluations averaged on either side of the comparison."""
    min_rise: float = Field(default=0.02, ge=0.0)
    """Rise of the training reward, in its units, since the held-out measure was best."""
    min_fall: float = Field(default=0.06, ge=0.0)
    """Fall of the held-out measure, in its units, from its best. The default suits a measure of 0 or 1 on 400 held-out
    questions (`vlgenrm bench guards`); its noise grows with 1 / sqrt(questions)."""


class ImageAblationRule(Settings):
    """Limit beyond which a judge is suspected to ignore the image: its reward rises with a blank image as well."""

    window: int = Field(default=3, ge=1)
    """Evaluations averaged on either side of the comparison."""
    min_rise: float = Field(default=0.02, ge=0.0)
    """Rise of the training reward, in its units, since the image contributed most to it."""
    floor: float = 0.02
    """Contribution of the image to the reward, in its units, up to which the image counts as ignored."""
    stop: bool = False
    """True: stop the run. False: log a warning and go on."""


class RewardFailureRule(Settings):
    """Limit on the share of samples without a reward."""

    removed: ClassVar = {"min_samples": RemovedSetting(32, "set window or max_share")}

    window: int = Field(default=4, ge=1)
    """Number of most recent steps to look at."""
    max_share: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Largest share of their samples without a reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPoint:
    """Result of one held-out evaluation, as far as the guards need it."""

    step: int
    reward: float
    """Mean training reward since the previous evaluation."""
    held_out: float
    """Value of a measure that the reward model never saw; higher is better."""
    image_reward_gain: float | None = None
    """Reward that answers lose if their image is replaced by a blank one; None if not measured."""


@dataclass(slots=True)
class TrainingHistory:
    """Evaluations so far, and rewards and failures of recent steps."""

    evaluations: list[EvaluationPoint] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """Mean rewards of the steps since the last evaluation."""
    statuses: list[Mapping[str, int]] = field(default_factory=list)
    """Number of samples by status, per step."""

    @property
    def training_reward(self) -> float | None:
        """Mean reward of the steps since the last evaluation; None if none of them had a reward."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    def add_step(self, reward: float | None, statuses: Mapping[str, int]) -> None:
        """Record a step: the mean of its rewards, and its number of samples by status."""
        if reward is not None:
            self.rewards.append(reward)
        self.statuses.append(statuses)

    def add_evaluation(
        self, step: int, *, held_out: float, reward: float | None, image_reward_gain: float | None
    ) -> None:
        """Record an evaluation. `reward`: mean held-out reward, used if no step since the last evaluation had one."""
        training_reward = self.training_reward
        if training_reward is None:
            training_reward = held_out if reward is None else reward
        self.evaluations.append(
            EvaluationPoint(step=step, reward=training_reward, held_out=held_out, image_reward_gain=image_reward_gain)
        )
        self.rewards = []

    def check_reward_failures(self, rule: RewardFailureRule) -> str | None:
        """See `check_reward_failures`."""
        return check_reward_failures(self.statuses, rule)

    def check_reward_hacking(self, rule: RewardHackingRule) -> str | None:
        """See `check_reward_hacking`."""
        return check_reward_hacking(self.evaluations, rule)

    def check_image_ablation(self, rule: ImageAblationRule) -> str | None:
        """See `check_image_ablation`."""
        return check_image_ablation(self.evaluations, rule)

    def state_dict(self, window: int) -> dict[str, Any]:
        """Return the history as JSON values for `from_state_dict`, with the statuses of the last `window` steps."""
        return {
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "rewards": self.rewards,
            "statuses": [dict(step) for step in self.statuses[-window:]],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Restore a history from `state_dict`."""
        evaluations = [EvaluationPoint(**evaluation) for evaluation in state["evaluations"]]
        return cls(evaluations, list(state["rewards"]), list(state["statuses"]))


def check_reward_hacking(history: Sequence[EvaluationPoint], rule: RewardHackingRule) -> str | None:
    """Return the reason to stop for reward hacking, or None.

    Compares the mean of the last `window` evaluations with that of the earlier window whose held-out mean is highest.
    The reward is hacked if the held-out measure has since fallen by more than `min_fall` while the reward has risen by
    more than `min_rise`. If both fall, it is not.
    """
    best, recent = _best_and_recent(history, rule.window, _mean_held_out)
    if not best:
        return None
    rise, fall = _mean_reward(recent) - _mean_reward(best), _mean_held_out(best) - _mean_held_out(recent)
    if rise <= rule.min_rise or fall <= rule.min_fall:
        return None
    return (
        f"reward hacking: since step {best[-1].step} the training reward rose by {rise:.3g} (limit {rule.min_rise:g}) "
        f"while the held-out measure fell by {fall:.3g} (limit {rule.min_fall:g})"
    )


def check_image_ablation(history: Sequence[EvaluationPoint], rule: ImageAblationRule) -> str | None:
    """Return the reason to suspect that the judge ignores the image, or None.

    Compares the same windows as `check_reward_hacking`, chosen by the image's contribution to the reward. A low
    contribution alone proves nothing (with answers that are mostly wrong it may be below 0): the reward must have risen
    while the contribution fell to `floor` or below.
    """
    measured = [evaluation for evaluation in history if evaluation.image_reward_gain is not None]
    best, recent = _best_and_recent(measured, rule.window, _mean_image_gain)
    if not best:
        return None
    rise, before, now = _mean_reward(recent) - _mean_reward(best), _mean_image_gain(best), _mean_image_gain(recent)
    if rise <= rule.min_rise or now > rule.floor or now >= before:
        return None
    return (
        f"the judge may ignore the image: since step {best[-1].step} the training reward rose by {rise:.3g} (limit "
        f"{rule.min_rise:g}) while the image's contribution to it fell from {before:.3g} to {now:.3g} (limit "
        f"{rule.floor:g})"
    )


def check_reward_failures(steps: Sequence[Mapping[str, int]], rule: RewardFailureRule) -> str | None:
    """Return the reason to stop for missing rewards, or None.

    Args:
        steps: Number of samples by status, per step; samples of status `ok` have a reward.
        rule: Limits.
    """
    counts: Counter[str] = Counter()
    for step in steps[-rule.window :]:
        counts.update(step)
    num_samples = counts.total()
    failed = Counter({status: count for status, count in counts.items() if status != "ok" and count})
    enough = num_samples >= MIN_SAMPLES or len(steps) >= rule.window
    if not enough or failed.total() <= rule.max_share * num_samples:
        return None
    statuses = ", ".join(f"{count} {status}" for status, count in failed.most_common())
    return (
        f"{failed.total()} of the last {num_samples} samples have no usable reward (limit {rule.max_share:.0%}): "
        f"{statuses}"
    )


def _best_and_recent(
    history: Sequence[EvaluationPoint], window: int, value: Callable[[Sequence[EvaluationPoint]], float]
) -> tuple[Sequence[EvaluationPoint], Sequence[EvaluationPoint]]:
    """Return the earlier window of the highest value, and the most recent window; both empty if there are too few."""
    recent, earlier = history[-window:], history[:-window]
    starts = range(len(earlier) - window + 1)
    if not starts:
        return (), ()
    return max((earlier[start : start + window] for start in starts), key=value), recent


def _mean_reward(history: Sequence[EvaluationPoint]) -> float:
    return sum(evaluation.reward for evaluation in history) / len(history)


def _mean_held_out(history: Sequence[EvaluationPoint]) -> float:
    return sum(evaluation.held_out for evaluation in history) / len(history)


def _mean_image_gain(history: Sequence[EvaluationPoint]) -> float:
    return sum(evaluation.image_reward_gain or 0.0 for evaluation in history) / len(history)
