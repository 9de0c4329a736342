"""Losses of policy and critic on the tokens of sampled responses, with their KL and importance terms.

A loss is a sum over tokens divided by a denominator that the caller passes, the same for all parts of a step. The
losses, and gradients, of micro-batches and workers therefore add up to those of the step, whatever the split between
sequences. (Where gradients are averaged over workers, each multiplies its loss by the number of workers.)

Start with `policy_loss`, the clipped loss of GRPO, its variants and PPO. The losses of preference pairs are in the
files of their algorithms (`algorithms/dpo.py`); `PairLogRatios` is their input.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.policy.config import AlgorithmConfig, ImportanceConfig

Normalise = Literal["tokens", "sequences", "constant"]
"""Aggregation of a step's loss; see `AlgorithmConfig.normalise`."""
VALUE_COEFFICIENT = 0.1
"""Factor of the critic's loss. The critic has an optimizer of its own, so the factor acts through the clipping of
gradients alone; its learning rate is the setting to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTokens:
    """Tokens of sampled responses, padded to one length. All log-probabilities are those of the sampled tokens, [B, T].

    Values where the mask is false are ignored and may be NaN.
    """

    mask: "torch.Tensor"
    """Boolean [B, T]: the token belongs to a response that counts."""
    new: "torch.Tensor"
    """Log-probabilities by the policy in training, with gradient."""
    old: "torch.Tensor"
    """Log-probabilities by the trainer with the weights at the start of the step."""
    advantages: "torch.Tensor"
    """Advantages of sequences [B], or of tokens [B, T]."""
    sampled: "torch.Tensor | None" = None
    """Log-probabilities by the engine at sampling time."""
    reference: "torch.Tensor | None" = None
    """Log-probabilities by the reference policy."""
    entropy: "torch.Tensor | None" = None
    """Entropy of the training policy's distribution of each token, nats; with gradient if it has a coefficient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogRatios:
    """Log-ratios log p_policy - log p_reference of whole responses (summed over their tokens) of P preference pairs."""

    chosen: "torch.Tensor"
    """Chosen responses, [P], with gradient."""
    rejected: "torch.Tensor"
    """Rejected responses, [P], with gradient."""
    chosen_other_image: "torch.Tensor | None" = None
    """Chosen responses, given another image in place of the pair's, [P], with gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricAccumulator:
    """Sums and maxima of metrics over tokens. Accumulators of micro-batches and workers add up to that of the step.

    All values are tensors without gradient on the device of the loss, so that nothing waits for the device before
    `compute`.
    """

    num_tokens: "torch.Tensor"
    sums: "dict[str, torch.Tensor]"
    maxima: "dict[str, torch.Tensor]"

    @classmethod
    def from_tokens(
        cls, mask: "torch.Tensor", *, means: "dict[str, torch.Tensor]", maxima: "dict[str, torch.Tensor]"
    ) -> Self:
        """Accumulate named values [B, T] where the mask [B, T] is true: those to average, and those to maximise."""
        return cls(
            num_tokens=mask.sum(),
            sums={name: values.detach().double().where(mask, 0.0).sum() for name, values in means.items()},
            maxima={name: values.detach().masked_fill(~mask, -float("inf")).amax() for name, values in maxima.items()},
        )

    def __add__(self, other: "MetricAccumulator") -> "MetricAccumulator":
        """Combine two accumulators of the same names."""
        return MetricAccumulator(
            num_tokens=self.num_tokens + other.num_tokens,
            sums={name: value + other.sums[name] for name, value in self.sums.items()},
            maxima={name: value.maximum(other.maxima[name]) for name, value in self.maxima.items()},
        )

    def cpu(self) -> "MetricAccumulator":
        """Return a copy on the CPU, to be sent to other workers."""
        return MetricAccumulator(
            num_tokens=self.num_tokens.cpu(),
            sums={name: value.cpu() for name, value in self.sums.items()},
            maxima={name: value.cpu() for name, value in self.maxima.items()},
        )

    def compute(self) -> dict[str, float]:
        """Return means and maxima by name; empty if there was no token."""
        num_tokens = int(self.num_tokens)
        if not num_tokens:
            return {}
        means = {name: float(value) / num_tokens for name, value in self.sums.items()}
        return means | {name: float(value) for name, value in self.maxima.items()}


class Loss(NamedTuple):
    """Loss of one part of a step."""

    value: "torch.Tensor"
    """Value of the loss, a scalar [] with gradient."""
    metrics: MetricAccumulator


# -- normalisation ---------------------------------------------------------------------------------------------


def loss_denominator(normalise: Normalise, *, num_tokens: int, num_sequences: int, max_tokens: int) -> float:
    """Return the divisor of a whole step's loss.

    Args:
        normalise: Aggregation of the loss.
        num_tokens: Unmasked tokens of the step, over all micro-batches and workers.
        num_sequences: Sequences with any unmasked token, likewise.
        max_tokens: Longest response allowed.
    """
    return max(1, {"tokens": num_tokens, "sequences": num_sequences, "constant": num_sequences * max_tokens}[normalise])


def token_weights(mask: "torch.Tensor", normalise: Normalise) -> "torch.Tensor":
    """Return the weight of each token [B, T] before division by the denominator; 0 where masked."""
    weights = mask.float()
    return weights / weights.sum(-1, keepdim=True).clamp(min=1.0) if normalise == "sequences" else weights


# -- terms of the policy loss ----------------------------------------------------------------------------------


def estimate_kl(log_ratio: "torch.Tensor", estimator: Literal["k1", "k2", "k3"]) -> "torch.Tensor":
    """Estimate KL(p || q) at each token drawn from p.

        k1 = log_ratio                        unbiased, of any sign
        k2 = log_ratio^2 / 2                  biased, never negative
        k3 = exp(-log_ratio) - 1 + log_ratio  unbiased, never negative

    (J. Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html, 2020.) If p is the policy in
    training, the gradients of the estimates are, on average over p: 0 for k1, the gradient of KL(p || q) for k2, that
    of KL(q || p) for k3 (arXiv 2506.09477). Multiplied by the ratio of p to the sampling probability, k1 and k3 have
    the gradient of KL(p || q).

    Args:
        log_ratio: log p - log q, of any shape.
        estimator: Name of the estimator.

    Returns:
        Estimates of the same shape.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return (-log_ratio).expm1() + log_ratio


class ImportanceWeights(NamedTuple):
    """Importance weights of tokens, [B, T] each, without gradient."""

    weights: "torch.Tensor"
    outside: "torch.Tensor"
    """Boolean: the weight was outside the range before it was truncated or masked."""


def importance_weights(log_ratio: "torch.Tensor", config: "ImportanceConfig") -> ImportanceWeights:
    """Compute weights that correct for an engine whose probabilities differ from the trainer's.

    Engine and trainer compute slightly different probabilities from the same weights, which makes on-policy training
    off-policy. Truncated importance sampling multiplies each token's loss by min(p_trainer / p_engine, high) (F. Yao et
    al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training, https://fengyao.notion.site/off-policy-rl,
    2025); masked importance sampling sets weights outside the range to 0. Masked tokens still count in the
    denominator of the loss, so that the weight of the other tokens does not grow.

    Args:
        log_ratio: log p_trainer - log p_engine, [B, T]; 0 where masked.
        config: Range, level and treatment of weights outside the range.
    """
    log_ratio = log_ratio.detach()
    if config.level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    outside = (ratio < config.low) | (ratio > config.high)
    if config.outside == "mask":
        return ImportanceWeights(ratio.masked_fill(outside, 0.0), outside)
    return ImportanceWeights(ratio.clamp(config.low, config.high), outside)


# -- losses ----------------------------------------------------------------------------------------------------


def policy_loss(tokens: ResponseTokens, config: "AlgorithmConfig", denominator: float) -> Loss:
    """Compute the clipped policy loss: the sum over tokens of weight x loss, divided by `denominator`.

        loss = -w min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + coefficient x KL - coefficient x entropy

    ratio = exp(new - old), or for a whole sequence exp(mean(new - old)); w is the importance weight, 1 without a
    correction.

    Sources: the clip, PPO (arXiv 1707.06347, eq. 7); the KL in the loss and the mean over sequences, GRPO (2402.03300,
    eq. 3 and 4); clip_high and the mean over tokens, DAPO (2503.14476); the constant, Dr. GRPO (2503.20783); the ratio
    of a sequence, GSPO (2507.18071).

    Args:
        tokens: Log-probabilities and advantages of one micro-batch.
        config: Clip, ratio, normalisation, KL, importance and entropy settings.
        denominator: `loss_denominator` of the whole step.

    Returns:
        The loss and its metrics. Means over tokens: `ratio`; `clip_low` and `clip_high`, shares of tokens whose
        gradient the clip stopped; `step_kl` between old and new policy (k3); and, if the inputs are given,
        `reference_kl`, `entropy`, `mismatch` (|old - sampled|), `importance_weight`, `importance_outside`. Maxima:
        `ratio_max`, `mismatch_max`.

    Raises:
        ValueError: The settings need log-probabilities or entropies that are missing.
    """
    mask = tokens.mask
    log_ratio = (tokens.new - tokens.old).where(mask, 0.0)
    token_ratio = log_ratio.exp()
    ratio = token_ratio if config.ratio == "token" else _row_mean(log_ratio, mask).exp().expand_as(log_ratio)
    advantages = _token_advantages(tokens)
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    losses = -(ratio * advantages).minimum(clipped * advantages)
    means = {
        "ratio": ratio,
        "clip_low": (ratio < 1.0 - config.clip_low) & (advantages < 0),
        "clip_high": (ratio > 1.0 + config.clip_high) & (advantages > 0),
        "step_kl": estimate_kl(-log_ratio, "k3"),
    }
    return _add_terms(losses, tokens, config, denominator, means=means, maxima={"ratio_max": ratio})


def likelihood_loss(tokens: ResponseTokens, config: "AlgorithmConfig", denominator: float) -> Loss:
    """Compute the weighted negative log-likelihood: the sum over tokens of weight x loss, divided by `denominator`.

        loss = -A log p + coefficient x KL - coefficient x entropy

    With A = 1 this is the loss of supervised fine-tuning on the samples. Arguments, metrics (without those of the clip)
    and errors are those of `policy_loss`.
    """
    losses = -tokens.new.where(tokens.mask, 0.0) * _token_advantages(tokens)
    means = {"step_kl": estimate_kl((tokens.old - tokens.new).where(tokens.mask, 0.0), "k3")}
    return _add_terms(losses, tokens, config, denominator, means=means, maxima={})


def _token_advantages(tokens: ResponseTokens) -> "torch.Tensor":
    """Return the advantage of each token, [B, T]; 0 where masked."""
    advantages = tokens.advantages if tokens.advantages.dim() == 2 else tokens.advantages[:, None]
    return advantages.expand_as(tokens.new).where(tokens.mask, 0.0)


def _add_terms(
    losses: "torch.Tensor",
    tokens: ResponseTokens,
    config: "AlgorithmConfig",
    denominator: float,
    *,
    means: "dict[str, torch.Tensor]",
    maxima: "dict[str, torch.Tensor]",
) -> Loss:
    """Weight the losses of tokens [B, T], add the KL and entropy terms, and sum up.

    `means` and `maxima` are metrics of tokens [B, T], to which those of the terms are added.
    """
    mask = tokens.mask
    if tokens.sampled is not None:
        mismatch = (tokens.old - tokens.sampled).where(mask, 0.0)
        means["mismatch"] = maxima["mismatch_max"] = mismatch.abs()
        if config.importance is not None:
            weights, outside = importance_weights(mismatch, config.importance)
            losses = losses * weights
            means |= {"importance_weight": weights, "importance_outside": outside}
    elif config.importance is not None:
        raise ValueError("an importance correction needs the engine's log-probabilities")

    kl_in_loss = config.kl.coefficient > 0 and config.kl.where == "loss"
    if tokens.reference is not None:
        kl = estimate_kl((tokens.new - tokens.reference).where(mask, 0.0), config.kl.estimator)
        means["reference_kl"] = kl
        if kl_in_loss:
            token_ratio = (tokens.new - tokens.old).where(mask, 0.0).exp()
            losses = losses + config.kl.coefficient * (kl * token_ratio if config.kl.is_multiplied else kl)
    elif kl_in_loss:
        raise ValueError("a KL penalty needs the reference policy's log-probabilities")

    if tokens.entropy is not None:
        entropy = tokens.entropy.where(mask, 0.0)
        means["entropy"] = entropy
        losses = losses - config.entropy_coefficient * entropy
    elif config.entropy_coefficient:
        raise ValueError("an entropy bonus needs entropies")

    value = (losses * token_weights(mask, config.normalise)).sum() / denominator
    return Loss(value, MetricAccumulator.from_tokens(mask, means=means, maxima=maxima))


def value_loss(
    values: "torch.Tensor",
    old_values: "torch.Tensor",
    returns: "torch.Tensor",
    mask: "torch.Tensor",
    config: "AlgorithmConfig",
    denominator: float,
) -> Loss:
    """Compute the clipped loss of a critic: the sum over tokens of weight x loss, divided by `denominator`.

        loss = VALUE_COEFFICIENT x max((V - R)^2, (V_old + clip(V - V_old, -value_clip, value_clip) - R)^2) / 2

    As in the first public PPO (https://github.com/openai/baselines, ppo2); its paper has the square without the clip.

    Args:
        values: Values V with gradient, [B, T].
        old_values: Values at the start of the step, [B, T].
        returns: Returns R, [B, T].
        mask: True for tokens of responses, [B, T].
        config: Settings `ppo` and `normalise`.
        denominator: `loss_denominator` of the whole step.

    Returns:
        The loss and its metrics: `value_error`, the mean of (V - R)^2, and `value_clip`, the share of tokens whose
        gradient the clip stopped.
    """
    ppo = config.ppo
    error = (values - returns).where(mask, 0.0)
    clipped = old_values + (values - old_values).clamp(-ppo.value_clip, ppo.value_clip)
    clipped_error = (clipped - returns).where(mask, 0.0)
    losses = VALUE_COEFFICIENT * error.square().maximum(clipped_error.square()) / 2
    value = (losses * token_weights(mask, config.normalise)).sum() / denominator
    means = {"value_error": error.square(), "value_clip": clipped_error.square() > error.square()}
    return Loss(value, MetricAccumulator.from_tokens(mask, means=means, maxima={}))


def _row_mean(values: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """Return the mean of each row over its mask, [B, 1]; values must be 0 where masked."""
    return values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
