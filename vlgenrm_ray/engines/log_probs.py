"""Log-probabilities of given tokens, and entropies, from logits, without a second tensor as wide as the vocabulary."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

EntropyMode = Literal["none", "value", "gradient"]
"""Whether the entropy is wanted: not; as a figure, without gradient; or with its gradient, for a loss."""

_ROWS = 1024
"""Rows computed at a time. In the backward pass they are computed again, so only their logits are kept."""


class LogProbs(NamedTuple):
    """Of one shape: [N], or [B, T] with 0 where a token has no weight."""

    values: "torch.Tensor"
    """Natural logarithm of each token's probability given those before it."""
    entropy: "torch.Tensor | None"
    """Of the distribution the token was drawn from, nats; None unless asked for."""


def log_probs(
    logits: "torch.Tensor", targets: "torch.Tensor", *, temperature: float = 1.0, entropy: EntropyMode = "none"
) -> LogProbs:
    """Log-probabilities [N] of `targets` [N] under softmax(logits / temperature), logits [N, V], in fp32."""
    import torch
    from torch.utils.checkpoint import checkpoint

    pieces = [
        checkpoint(_piece, *rows, temperature, entropy, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(torch.split(logits, _ROWS), torch.split(targets, _ROWS), strict=True)
    ]
    values, entropies = zip(*pieces, strict=True)
    return LogProbs(torch.cat(values), None if entropy == "none" else torch.cat(entropies))


def _piece(
    logits: "torch.Tensor", targets: "torch.Tensor", temperature: float, entropy: EntropyMode
) -> "tuple[torch.Tensor, torch.Tensor | None]":
    import torch
    import torch.nn.functional as F

    scaled = logits.float() / temperature
    values = -F.cross_entropy(scaled, targets, reduction="none")
    if entropy == "none":
        return values, None
    with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
        every = scaled.log_softmax(-1)
        return values, -(every.exp() * every).sum(-1)
