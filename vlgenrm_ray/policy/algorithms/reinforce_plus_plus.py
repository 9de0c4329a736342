"""REINFORCE++: REINFORCE with PPO's clip and advantages normalised over the whole step (arXiv 2501.03262).

    R_t = r - sum over the tokens from t on of coefficient x KL             r: reward of the sample
    A_t = (R_t - mean) / std                                               over all tokens of the step
    loss = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)       mean over tokens

There is neither a critic nor a group: each sample is compared with all others of the step, so one sample per question
(`rollouts.group_size: 1`) is enough. The KL to the reference is part of the reward, with the estimator k1.
"""

from typing import TYPE_CHECKING

from vlgenrm_ray.policy.advantages import Array, GroupAdvantages, GroupStatus, RewardGroups, scored_rewards
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from vlgenrm_ray.policy.config import AlgorithmConfig


def rewards_as_advantages(rewards: RewardGroups, config: "AlgorithmConfig") -> list[GroupAdvantages]:
    """Return the rewards themselves. `min_scored`, `min_std` and `scale` do not apply."""
    return [_own_rewards(tuple(group), scored_rewards(group)) for group in rewards]


def _own_rewards(rewards: tuple[float | None, ...], scored: Array) -> GroupAdvantages:
    status = GroupStatus.USED if len(scored) else GroupStatus.TOO_FEW_SCORED
    return GroupAdvantages(advantages=rewards, status=status)


REINFORCE_PLUS_PLUS = Algorithm(
    group_advantages=rewards_as_advantages,
    whiten=True,
    min_group_size=1,
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.2,
        "ratio": "token",
        "normalise": "tokens",
        "scale": "none",
        "kl": {"coefficient": 0.01, "where": "reward", "estimator": "k1"},
    },
)
