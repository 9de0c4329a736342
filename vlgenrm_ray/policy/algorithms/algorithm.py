"""The type of a training algorithm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.policy.advantages import GroupAdvantages, RewardGroups
from vlgenrm_ray.policy.losses import Loss, ResponseTokens, policy_loss

if TYPE_CHECKING:
    from vlgenrm_ray.policy.config import AlgorithmConfig

GroupAdvantageFunction = Callable[[RewardGroups, "AlgorithmConfig"], list[GroupAdvantages]]
PolicyLossFunction = Callable[[ResponseTokens, "AlgorithmConfig", float], Loss]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """A training algorithm: its advantages, its loss, and the defaults it sets.

    Example:
        MINE = Algorithm(group_advantages=group_relative_advantages, defaults={"scale": "none", "clip_high": 0.3})
    """

    group_advantages: GroupAdvantageFunction | None
    """Advantages of the samples of a step, by group. None: a critic is trained, and `advantages.gae` gives advantages
    of tokens."""
    policy_loss: PolicyLossFunction = policy_loss
    """Loss of one micro-batch, given the denominator of the whole step."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of `AlgorithmConfig`, nested as in a recipe, for settings that the recipe leaves out."""

    @property
    def uses_critic(self) -> bool:
        """True if advantages come from a critic."""
        return self.group_advantages is None
