"""Advantage estimators: group-relative (GRPO and variants) and GAE (PPO), and the shaping of rewards before them.

A group is all samples of one question. Group-relative estimators give one advantage per sample, GAE one per token.
The formula of each algorithm is in its file in `policy/algorithms/`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.policy.losses import estimate_kl

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.policy.config import AlgorithmConfig, KlConfig, OverlongConfig

RewardGroups = Sequence[Sequence[float | None]]
"""Rewards of a step's samples by group; None for a sample without a reward."""
Array = npt.NDArray[np.float64]


class GroupStatus(StrEnum):
    """Status of a group in a training step: used, or the reason why not. Counted in the metrics `groups_<status>`."""

    USED = "used"
    ZERO_STD = "zero_std"
    """The rewards differ too little (`algorithm.min_std`): all advantages are 0."""
    TOO_FEW_SCORED = "too_few_scored"
    """Fewer than `algorithm.min_scored` samples have a reward: no sample is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdvantages:
    """Advantages of the samples of one question."""

    advantages: tuple[float | None, ...]
    """One per sample; None for a sample that must not enter the loss."""
    status: GroupStatus


def group_relative_advantages(rewards: RewardGroups, config: "AlgorithmConfig") -> list[GroupAdvantages]:
    """Compute A_i = (r_i - mean(r)) / s within each group.

    s is the standard deviation (divisor n - 1) of the group's rewards (`scale: group`; GRPO, arXiv 2402.03300, 4.1.2),
    of all rewards of the step (`scale: batch`; arXiv 2508.08221), or 1 (`scale: none`; Dr. GRPO, arXiv 2503.20783).
    Only scored samples count in mean and s, and for `batch` only groups with at least `min_scored` of them.

    Args:
        rewards: Rewards by group; None for a sample without a reward.
        config: Settings `scale`, `min_scored` and `min_std`.

    Returns:
        One entry per group, in order.

    Raises:
        ValueError: A reward is not finite.
    """
    groups = [scored_rewards(group) for group in rewards]
    counted = [group for group in groups if len(group) >= config.min_scored]
    batch_std = float(np.std(np.concatenate(counted), ddof=1)) if counted else 0.0

    def standardise(group: Array) -> Array:
        divisor = {"group": float(np.std(group, ddof=1)), "batch": batch_std, "none": 1.0}[config.scale]
        scaled: Array = (group - np.mean(group)) / divisor
        return scaled

    return advantages_by_group(rewards, config, standardise)


def advantages_by_group(
    rewards: RewardGroups, config: "AlgorithmConfig", estimate: Callable[[Array], Array]
) -> list[GroupAdvantages]:
    """Apply an estimator to every group that has enough scored samples and rewards that differ.

    Args:
        rewards: Rewards by group; None for a sample without a reward.
        config: Settings `min_scored` and `min_std`.
        estimate: Function from the rewards [n] of a group's scored samples to their advantages [n].

    Returns:
        One entry per group, in order.

    Raises:
        ValueError: A reward is not finite.
    """
    return [_group_advantages(group, config, estimate) for group in rewards]


def _group_advantages(
    rewards: Sequence[float | None], config: "AlgorithmConfig", estimate: Callable[[Array], Array]
) -> GroupAdvantages:
    scored = scored_rewards(rewards)
    if len(scored) < config.min_scored:
        return GroupAdvantages(advantages=(None,) * len(rewards), status=GroupStatus.TOO_FEW_SCORED)
    if float(np.std(scored, ddof=1)) <= config.min_std:
        zeros = tuple(None if reward is None else 0.0 for reward in rewards)
        return GroupAdvantages(advantages=zeros, status=GroupStatus.ZERO_STD)
    values = iter(estimate(scored))
    advantages = tuple(None if reward is None else float(next(values)) for reward in rewards)
    return GroupAdvantages(advantages=advantages, status=GroupStatus.USED)


def scored_rewards(rewards: Sequence[float | None]) -> Array:
    """Return the rewards of the scored samples, [n]. Raises ValueError for a reward that is not finite."""
    if not all(reward is None or np.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite, or None for a sample without one: {list(rewards)}")
    return np.array([reward for reward in rewards if reward is not None], dtype=np.float64)


# -- advantages of tokens, with a critic -----------------------------------------------------------------------


def gae(
    rewards: "torch.Tensor", values: "torch.Tensor", mask: "torch.Tensor", *, gamma: float, gae_lambda: float
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Compute generalized advantage estimates (arXiv 1506.02438, eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1};  return_t = A_t + V_t

    t + 1 is the next unmasked token; V and A are 0 after the last. Masked tokens are skipped and get 0.

    Args:
        rewards: Rewards of tokens, [B, T].
        values: Values of the critic, [B, T].
        mask: True for tokens of responses, [B, T].
        gamma: Discount factor.
        gae_lambda: Trade-off between variance (1) and bias (0).

    Returns:
        Advantages and returns, [B, T] each.
    """
    import torch

    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        unmasked, value = mask[:, t], values[:, t]
        advantage = rewards[:, t] + gamma * next_value - value + gamma * gae_lambda * next_advantage
        next_value = torch.where(unmasked, value, next_value)
        next_advantage = torch.where(unmasked, advantage, next_advantage)
        advantages[:, t] = advantage.where(unmasked, 0.0)
    return advantages, (advantages + values).where(mask, 0.0)


def token_moments(values: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """Return count, sum and sum of squares of the unmasked values, [3] in float64. Moments of parts add up."""
    import torch

    unmasked = values[mask].double()
    return torch.stack([torch.full_like(unmasked.sum(), len(unmasked)), unmasked.sum(), unmasked.square().sum()])


def whiten(advantages: "torch.Tensor", mask: "torch.Tensor", moments: "torch.Tensor") -> "torch.Tensor":
    """Shift and scale advantages so that the step they belong to has mean 0 and variance 1.

    Args:
        advantages: Advantages of one micro-batch, [B, T].
        mask: True for tokens of responses, [B, T].
        moments: `token_moments` of the whole step, summed over micro-batches and workers, [3].

    Returns:
        Whitened advantages, [B, T]; 0 where masked.
    """
    count, total, squares = moments.unbind()
    mean = total / count.clamp(min=1.0)
    variance = (squares / count.clamp(min=1.0) - mean.square()).clamp(min=0.0)
    return ((advantages - mean) / (variance.sqrt() + 1e-8)).to(advantages.dtype).where(mask, 0.0)


# -- reward shaping --------------------------------------------------------------------------------------------


def shape_reward(
    reward: float | None, *, num_tokens: int, truncated: bool, max_tokens: int, config: "OverlongConfig"
) -> float | None:
    """Apply the handling of overlong responses to a reward (DAPO, arXiv 2503.14476, 3.4).

    `mask` removes the reward of a truncated response, which was judged on half a text (overlong filtering). `penalty`
    subtracts a penalty that grows linearly over the last `buffer` tokens (eq. 13, soft overlong punishment).

    Args:
        reward: Reward of the response; None if it has none.
        num_tokens: Length of the response.
        truncated: The response was stopped by the limit.
        max_tokens: Longest response allowed.
        config: Settings of the handling.

    Returns:
        The shaped reward; None if the response has none, or must not be used.
    """
    if reward is None or (config.handling == "mask" and truncated):
        return None
    if config.handling != "penalty":
        return reward
    excess = num_tokens - (max_tokens - config.buffer)
    return reward - config.penalty * min(max(excess / config.buffer, 0.0), 1.0)


def token_rewards(
    rewards: "torch.Tensor",
    old: "torch.Tensor",
    reference: "torch.Tensor | None",
    mask: "torch.Tensor",
    config: "KlConfig",
) -> "torch.Tensor":
    """Distribute the rewards of responses over their tokens, as input for `gae`.

    The last unmasked token gets the response's reward; rewards of tokens stay where they are. With `kl.where: reward`,
    each token pays coefficient x KL estimate between old and reference policy (arXiv 1909.08593, eq. 2).

    Args:
        rewards: Rewards of responses [B], or of tokens [B, T].
        old: Log-probabilities by the policy at the start of the step, [B, T].
        reference: Log-probabilities by the reference policy, [B, T]; needed for a KL penalty in the reward.
        mask: True for tokens of responses, [B, T].
        config: Settings of the KL penalty.

    Returns:
        Rewards of tokens, [B, T]; 0 where masked.

    Raises:
        ValueError: The KL penalty needs reference log-probabilities, and they are missing.
    """
    import torch

    tokens = torch.zeros_like(old)
    if config.coefficient and config.where == "reward":
        if reference is None:
            raise ValueError("a KL penalty needs the reference policy's log-probabilities")
        tokens = -config.coefficient * estimate_kl((old - reference).where(mask, 0.0), config.estimator)
    if rewards.dim() == 2:
        return (tokens + rewards).where(mask, 0.0)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * positions).amax(-1, keepdim=True)
    return torch.where((positions == last) & mask, tokens + rewards[:, None], tokens)
