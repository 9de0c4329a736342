"""Token log-probabilities and entropies from logits, in chunks, without a second tensor of the logits' size."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

EntropyMode = Literal["none", "value", "gradient"]
"""Entropy to compute: none, its value without gradient (a metric), or its value with gradient (part of a loss)."""

_CHUNK_ROWS = 1024
"""Rows per chunk. The backward pass recomputes them, so only their logits are kept."""


class LogProbs(NamedTuple):
    """Log-probabilities and entropies of one shape: [N], or [B, T] with 0 where a token has no weight."""

    values: "torch.Tensor"
    """Natural logarithm of the probability of each token given the tokens before it."""
    entropy: "torch.Tensor | None"
    """Entropy of the distribution at each token, in nats; None unless requested."""


def log_probs(
    logits: "torch.Tensor", targets: "torch.Tensor", *, temperature: float = 1.0, entropy: EntropyMode = "none"
) -> LogProbs:
    """Compute log-probabilities in fp32.

    Args:
        logits: [N, V].
        targets: Token ids, [N].
        temperature: Divisor of the logits.
        entropy: Entropy to compute as well.

    Returns:
        Log-probabilities [N] of the targets under softmax(logits / temperature), and entropies [N] or None.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    chunks = [
        checkpoint(_chunk, *rows, temperature, entropy, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(torch.split(logits, _CHUNK_ROWS), torch.split(targets, _CHUNK_ROWS), strict=True)
    ]
    values, entropies = zip(*chunks, strict=True)
    return LogProbs(torch.cat(values), None if entropy == "none" else torch.cat(entropies))


def _chunk(
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
