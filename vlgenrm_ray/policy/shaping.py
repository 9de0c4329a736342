"""What is added to a reward before advantages are taken of it."""

from typing import TYPE_CHECKING

from vlgenrm_ray.policy.config import KlConfig, OverlongConfig
from vlgenrm_ray.policy.kl import divergence

if TYPE_CHECKING:
    import torch


def shaped(
    reward: float | None, *, num_tokens: int, cut: bool, max_tokens: int, config: OverlongConfig
) -> float | None:
    """The reward of a response of `num_tokens`, of at most `max_tokens`; None where it has none, or is to have none.

    `cut`: it was stopped at the limit, not by itself. `mask` takes its reward away, which was given to half a response;
    neither its loss nor its group's mean then sees it (DAPO, arXiv 2503.14476, 3.4, overlong filtering). `penalty`
    subtracts what grows linearly over the last `buffer` tokens (there, eq. 13, soft overlong punishment).
    """
    if reward is None or (config.handling == "mask" and cut):
        return None
    if config.handling != "penalty":
        return reward
    over = num_tokens - (max_tokens - config.buffer)
    return reward - config.penalty * min(max(over / config.buffer, 0.0), 1.0)


def token_rewards(
    rewards: "torch.Tensor",
    old: "torch.Tensor",
    reference: "torch.Tensor | None",
    mask: "torch.Tensor",
    config: KlConfig,
) -> "torch.Tensor":
    """Rewards [B] of responses -> rewards [B, T] of their tokens, for `gae`; 0 where masked.

    The last unmasked token gets the response's reward; with `config.where` reward, each token pays coefficient x KL
    estimate between old and reference log-probabilities [B, T] (arXiv 1909.08593, eq. 2).
    """
    import torch

    tokens = torch.zeros_like(old)
    if config.coefficient and config.where == "reward":
        if reference is None:
            raise ValueError("a KL penalty needs the reference policy's log-probabilities")
        tokens = -config.coefficient * divergence((old - reference).where(mask, 0.0), config.estimator)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * positions).amax(-1, keepdim=True)
    return torch.where((positions == last) & mask, tokens + rewards[:, None], tokens)
