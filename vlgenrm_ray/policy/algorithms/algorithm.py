"""The type of a training algorithm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.policy.advantages import GroupAdvantages, RewardGroups
from vlgenrm_ray.policy.losses import Loss, PairLogRatios, ResponseTokens, policy_loss
from vlgenrm_ray.policy.segments import SegmentAdvantages, SegmentGroups

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.policy.config import AlgorithmConfig

GroupAdvantageFunction = Callable[[RewardGroups, "AlgorithmConfig"], list[GroupAdvantages]]
SegmentAdvantageFunction = Callable[[SegmentGroups, "AlgorithmConfig"], list[SegmentAdvantages]]
PolicyLossFunction = Callable[[ResponseTokens, "AlgorithmConfig", float], Loss]
PairLossFunction = Callable[[PairLogRatios, "AlgorithmConfig"], "torch.Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """A training algorithm: its advantages, its loss, and the defaults it sets.

    It has exactly one source of its gradient: `group_advantages`, `uses_critic` or `pair_loss`.

    Example:
        MINE = Algorithm(group_advantages=group_relative_advantages, defaults={"scale": "none", "clip_high": 0.3})
    """

    group_advantages: GroupAdvantageFunction | None = None
    """Advantages of the samples of a step, by group."""
    segment_advantages: SegmentAdvantageFunction | None = None
    """Advantages of the segments of a step's samples, for `granularity: claim` of a reward. None: not supported."""
    uses_critic: bool = False
    """A critic is trained, and `advantages.gae` gives advantages of tokens, which are whitened."""
    pair_loss: PairLossFunction | None = None
    """Loss [P] of preference pairs: the algorithm is offline, it learns from the pairs of the pool without rollouts."""
    needs_other_image: bool = False
    """Offline: the loss needs the chosen response's log-ratio with another image as well."""
    whiten: bool = False
    """Shift and scale the group advantages so that those of all tokens of a step have mean 0 and variance 1."""
    min_group_size: int = 2
    """Fewest samples of a question that the advantages can be computed from."""
    policy_loss: PolicyLossFunction = policy_loss
    """Loss of one micro-batch, given the denominator of the whole step."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of `AlgorithmConfig`, nested as in a recipe, for settings that the recipe leaves out."""

    def __post_init__(self) -> None:
        sources = (self.group_advantages is not None, self.uses_critic, self.pair_loss is not None)
        if sum(sources) != 1:
            raise ValueError("an Algorithm needs exactly one of group_advantages, uses_critic=True and pair_loss")

    @property
    def supports_segments(self) -> bool:
        """True if segments of a response may have rewards of their own."""
        return self.uses_critic or self.segment_advantages is not None

    @property
    def is_offline(self) -> bool:
        """True if it learns from preference pairs instead of rollouts."""
        return self.pair_loss is not None
