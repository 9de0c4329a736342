"""How a training has gone so far, as far as its rules ask: what a checkpoint keeps beside the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from vlgenrm_ray.policy.guards import (
    Evaluation,
    FailureRule,
    HackingRule,
    SightRule,
    blindness,
    reward_failures,
    reward_hacking,
)


@dataclass(slots=True)
class Course:
    """Evaluations in order, and what the steps since brought."""

    evaluations: list[Evaluation] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """Mean rewards of the steps since the last evaluation."""
    statuses: list[Mapping[str, int]] = field(default_factory=list)
    """Samples of each status, of each step."""

    @property
    def training_reward(self) -> float | None:
        """Mean over the steps since the last evaluation; None where none of them had a reward."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    def step(self, reward: float | None, statuses: Mapping[str, int]) -> None:
        """Note a step: the mean of its rewards, and its samples of each status."""
        if reward is not None:
            self.rewards.append(reward)
        self.statuses.append(statuses)

    def evaluation(self, step: int, *, held_out: float, reward: float | None, sight: float | None) -> None:
        """Note an evaluation. `reward`: the held-out one; it stands in where no step since the last had any."""
        training = self.training_reward
        known = reward if training is None else training
        known = held_out if known is None else known
        self.evaluations.append(Evaluation(step=step, reward=known, held_out=held_out, sight=sight))
        self.rewards = []

    def failing(self, rule: FailureRule) -> str | None:
        """Why to stop for rewards that fail; None to go on."""
        return reward_failures(self.statuses, rule)

    def hacking(self, rule: HackingRule) -> str | None:
        """Why to stop for rewards that are hacked; None to go on."""
        return reward_hacking(self.evaluations, rule)

    def blind(self, rule: SightRule) -> str | None:
        """Why to doubt that the judge looks; None where nothing says so."""
        return blindness(self.evaluations, rule)

    def kept(self, window: int) -> dict[str, Any]:
        """As JSON, for `of`; of the statuses those of the last `window` steps."""
        return {
            "evaluations": [asdict(one) for one in self.evaluations],
            "rewards": self.rewards,
            "statuses": [dict(one) for one in self.statuses[-window:]],
        }

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """What was `kept`."""
        return cls([Evaluation(**one) for one in kept["evaluations"]], list(kept["rewards"]), list(kept["statuses"]))
