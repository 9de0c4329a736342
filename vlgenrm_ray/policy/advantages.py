"""How much better than expected: relative to a group's rewards (GRPO), or by a critic's values (PPO)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.policy.config import AlgorithmConfig

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGroup:
    """What the rewards of one question's samples teach."""

    advantages: tuple[float | None, ...]
    """Of each sample; None for one that must not count in the loss."""
    fate: Literal["learnt", "flat", "left_out"]
    """`flat`: rewards too alike, all advantages 0. `left_out`: too few scored, all None."""


def group_advantages(rewards: Sequence[Sequence[float | None]], config: AlgorithmConfig) -> list[JudgedGroup]:
    """Advantages within each group (one question's samples) of a step: A_i = (r_i - mean(r)) / s.

    Mean and s are over scored samples only; None is a sample without reward, and gets None. s is the standard deviation
    (n - 1 in the divisor) of the group (GRPO, arXiv 2402.03300, 4.1.2), of the rewards of all groups that are not left
    out (arXiv 2508.08221), or 1 (Dr. GRPO, arXiv 2503.20783). Raises ValueError for a reward that is not finite.
    """
    groups = [_array(group) for group in rewards]
    counted = [group for group in groups if _num_scored(group) >= config.min_scored]
    step = float(np.nanstd(np.concatenate(counted), ddof=1)) if counted else 0.0
    return [_judged(group, step, config) for group in groups]


def _judged(group: Array, step: float, config: AlgorithmConfig) -> JudgedGroup:
    """Of rewards (N,), NaN where there is none; `step` is the standard deviation of the whole step's."""
    if _num_scored(group) < config.min_scored:
        return JudgedGroup(advantages=(None,) * len(group), fate="left_out")
    spread = float(np.nanstd(group, ddof=1))
    if spread <= config.min_spread:
        return JudgedGroup(advantages=tuple(None if np.isnan(r) else 0.0 for r in group), fate="flat")
    scaled = (group - np.nanmean(group)) / {"group": spread, "batch": step, "none": 1.0}[config.scale]
    return JudgedGroup(advantages=tuple(None if np.isnan(a) else float(a) for a in scaled), fate="learnt")


def _num_scored(group: Array) -> int:
    return int(np.isfinite(group).sum())


def _array(rewards: Sequence[float | None]) -> Array:
    """Rewards with NaN where there is none."""
    if not all(reward is None or np.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite, or None where there is none: {list(rewards)}")
    return np.array(rewards, dtype=np.float64)


def gae(
    rewards: "torch.Tensor", values: "torch.Tensor", mask: "torch.Tensor", *, gamma: float, gae_lambda: float
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Advantages and returns of tokens, all [B, T], by generalized advantage estimation (arXiv 1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1};  return_t = A_t + V_t

    t + 1 is the next token with a true mask; V and A are 0 after the last. What is masked is passed over and gets 0.
    """
    import torch

    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        here, value = mask[:, t], values[:, t]
        advantage = rewards[:, t] + gamma * next_value - value + gamma * gae_lambda * next_advantage
        next_value = torch.where(here, value, next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = advantage.where(here, 0.0)
    return advantages, (advantages + values).where(mask, 0.0)


def moments(values: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """Number, sum and sum of squares of the unmasked values, [3] in float64. Those of parts add up to the whole's."""
    import torch

    kept = values[mask].double()
    return torch.stack([torch.full_like(kept.sum(), len(kept)), kept.sum(), kept.square().sum()])


def whitened(advantages: "torch.Tensor", mask: "torch.Tensor", whole: "torch.Tensor") -> "torch.Tensor":
    """Advantages [B, T] shifted and scaled so that the step they belong to has mean 0 and variance 1; 0 where masked.

    `whole` are the `moments` of all of the step, [3], summed over micro-batches and workers.
    """
    number, total, squares = whole.unbind()
    mean = total / number.clamp(min=1.0)
    variance = (squares / number.clamp(min=1.0) - mean.square()).clamp(min=0.0)
    return ((advantages - mean) / (variance.sqrt() + 1e-8)).to(advantages.dtype).where(mask, 0.0)
