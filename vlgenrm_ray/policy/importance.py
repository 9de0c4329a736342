"""Weights for tokens that were sampled by other probabilities than the trainer's.

An inference engine and a trainer compute slightly different probabilities from the same weights, so what is called
on-policy is not. F. Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training
(https://fengyao.notion.site/off-policy-rl, 2025), weigh each token's loss by min(p_trainer / p_engine, C): truncated
importance sampling. Setting weights outside a range to 0 instead is masked importance sampling.
"""

from typing import TYPE_CHECKING, NamedTuple

from vlgenrm_ray.policy.config import ImportanceConfig

if TYPE_CHECKING:
    import torch


class ImportanceWeights(NamedTuple):
    """Both [B, T], without gradient."""

    weights: "torch.Tensor"
    outside: "torch.Tensor"
    """Whether the weight was outside the range, before it was truncated or masked."""


def importance_weights(log_ratio: "torch.Tensor", config: ImportanceConfig) -> ImportanceWeights:
    """Weights from log_ratio = log p_trainer - log p_engine, [B, T], which is 0 where masked.

    A weight that is masked leaves the token in the loss's denominator: fewer tokens push less, not the others more.
    """
    log_ratio = log_ratio.detach()
    if config.level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    outside = (ratio < config.low) | (ratio > config.high)
    if config.outside == "mask":
        return ImportanceWeights(ratio.masked_fill(outside, 0.0), outside)
    return ImportanceWeights(ratio.clamp(config.low, config.high), outside)
