"""Losses of GRPO, its variants and PPO on the tokens of sampled responses.

A loss is a sum over tokens divided by a denominator that the caller gives, the same for all parts of a step: so the
losses of micro-batches, and of workers, add up to that of the step, and their gradients likewise, however it is split
between sequences. (Where gradients are averaged over workers, each multiplies its loss by their number.)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.importance import importance_weights
from vlgenrm_ray.policy.kl import divergence
from vlgenrm_ray.policy.tally import Tally

if TYPE_CHECKING:
    import torch

Normalise = Literal["tokens", "sequences", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTokens:
    """Sampled responses, padded to one length. Log-probabilities of the sampled tokens and all else are [B, T].

    Where the mask is false nothing is looked at: it may hold anything, NaN too.
    """

    mask: "torch.Tensor"
    """Boolean: the token belongs to a response that counts."""
    new: "torch.Tensor"
    """By the policy that learns; the loss's gradient goes through it."""
    old: "torch.Tensor"
    """By the trainer, with the weights that the step began with."""
    advantages: "torch.Tensor"
    """[B], or [B, T]."""
    sampled: "torch.Tensor | None" = None
    """By the engine, when it sampled them."""
    reference: "torch.Tensor | None" = None
    """By the reference policy."""
    entropy: "torch.Tensor | None" = None
    """Of the learning policy's distribution of the token, nats; with gradient where it has a coefficient."""


class Loss(NamedTuple):
    """A part of a step's loss."""

    value: "torch.Tensor"
    """[], with gradient."""
    tally: Tally


def denominator(normalise: Normalise, *, num_tokens: int, num_sequences: int, max_tokens: int) -> float:
    """What the loss of a whole step is divided by, from the unmasked tokens and the sequences that have any.

    `max_tokens` is the longest response allowed.
    """
    return max(1, {"tokens": num_tokens, "sequences": num_sequences, "constant": num_sequences * max_tokens}[normalise])


def token_weights(mask: "torch.Tensor", normalise: Normalise) -> "torch.Tensor":
    """Weight of each token [B, T] before division by the denominator: 0 where masked."""
    weights = mask.float()
    return weights / weights.sum(-1, keepdim=True).clamp(min=1.0) if normalise == "sequences" else weights


def policy_loss(tokens: ResponseTokens, config: AlgorithmConfig, denominator: float) -> Loss:
    """The clipped loss of a policy: the sum over tokens of weight x loss, divided by `denominator`.

        loss = -w min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + coefficient x KL - coefficient x entropy

    ratio = exp(new - old), or for all of a sequence exp(mean(new - old)); w is the importance weight, 1 without a
    correction. Raises ValueError where the configuration asks for log-probabilities or entropies that are not given.

    Sources: the clip, PPO (arXiv 1707.06347, eq. 7); the KL in the loss and the mean over sequences, GRPO (2402.03300,
    eq. 3 and 4); clip_high and the mean over tokens, DAPO (2503.14476); the constant, Dr. GRPO (2503.20783); a
    sequence's ratio, GSPO (2507.18071).

    The tally has, as means over tokens: `ratio`; `clip_low` and `clip_high`, shares whose gradient the clip stopped;
    `step_kl`, of old and new policy (k3); and where given `reference_kl`, `entropy`, `mismatch` (|old - sampled|),
    `importance_weight`, `importance_outside`; as maxima `ratio_max`, `mismatch_max`.
    """
    mask = tokens.mask
    log_ratio = (tokens.new - tokens.old).where(mask, 0.0)
    token_ratio = log_ratio.exp()
    ratio = token_ratio if config.ratio == "token" else _mean(log_ratio, mask).exp().expand_as(log_ratio)
    advantages = tokens.advantages if tokens.advantages.dim() == 2 else tokens.advantages[:, None]
    advantages = advantages.expand_as(ratio).where(mask, 0.0)
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    losses = -(ratio * advantages).minimum(clipped * advantages)
    means = {
        "ratio": ratio,
        "clip_low": (ratio < 1.0 - config.clip_low) & (advantages < 0),
        "clip_high": (ratio > 1.0 + config.clip_high) & (advantages > 0),
        "step_kl": divergence(-log_ratio, "k3"),
    }
    maxima = {"ratio_max": ratio}

    if tokens.sampled is not None:
        mismatch = (tokens.old - tokens.sampled).where(mask, 0.0)
        means["mismatch"] = maxima["mismatch_max"] = mismatch.abs()
        if config.importance is not None:
            weights, outside = importance_weights(mismatch, config.importance)
            losses = losses * weights
            means |= {"importance_weight": weights, "importance_outside": outside}
    elif config.importance is not None:
        raise ValueError("an importance correction needs the engine's log-probabilities")

    in_loss = config.kl.coefficient > 0 and config.kl.where == "loss"
    if tokens.reference is not None:
        kl = divergence((tokens.new - tokens.reference).where(mask, 0.0), config.kl.estimator)
        means["reference_kl"] = kl
        if in_loss:
            losses = losses + config.kl.coefficient * (kl * token_ratio if config.kl.is_multiplied else kl)
    elif in_loss:
        raise ValueError("a KL penalty needs the reference policy's log-probabilities")

    if tokens.entropy is not None:
        entropy = tokens.entropy.where(mask, 0.0)
        means["entropy"] = entropy
        losses = losses - config.entropy_coefficient * entropy
    elif config.entropy_coefficient:
        raise ValueError("an entropy bonus needs entropies")

    value = (losses * token_weights(mask, config.normalise)).sum() / denominator
    return Loss(value, Tally.over(mask, means=means, maxima=maxima))


def value_loss(
    values: "torch.Tensor",
    old_values: "torch.Tensor",
    returns: "torch.Tensor",
    mask: "torch.Tensor",
    config: AlgorithmConfig,
    denominator: float,
) -> Loss:
    """The clipped loss of a critic, all [B, T]: the sum over tokens of weight x loss, divided by `denominator`.

        loss = coefficient x max((V - R)^2, (V_old + clip(V - V_old, -value_clip, value_clip) - R)^2) / 2

    As in the first public PPO (https://github.com/openai/baselines, ppo2); its paper has the square without the clip.
    The tally has `value_error`, the mean of (V - R)^2, and `value_clip`, the share whose gradient the clip stopped.
    """
    ppo = config.ppo
    error = (values - returns).where(mask, 0.0)
    near = old_values + (values - old_values).clamp(-ppo.value_clip, ppo.value_clip)
    near_error = (near - returns).where(mask, 0.0)
    losses = ppo.value_coefficient * error.square().maximum(near_error.square()) / 2
    value = (losses * token_weights(mask, config.normalise)).sum() / denominator
    means = {"value_error": error.square(), "value_clip": near_error.square() > error.square()}
    return Loss(value, Tally.over(mask, means=means, maxima={}))


def _mean(values: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """Mean of each row over its mask, [B, 1]; values are 0 where masked."""
    return values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
