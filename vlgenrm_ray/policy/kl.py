"""Estimates of the KL divergence of two policies from the tokens one of them sampled."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def divergence(log_ratio: "torch.Tensor", estimator: Literal["k1", "k2", "k3"]) -> "torch.Tensor":
    """Estimate of KL(p || q) at each token drawn from p; log_ratio = log p - log q, of any shape.

        k1 = log_ratio                        unbiased, of any sign
        k2 = log_ratio^2 / 2                  biased, never negative
        k3 = exp(-log_ratio) - 1 + log_ratio  unbiased, never negative

    (J. Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html, 2020.) With p the policy that
    learns, their gradients are not what they estimate: on average over p that of k1 is 0, that of k2 is the gradient of
    KL(p || q), that of k3 the gradient of KL(q || p) (arXiv 2506.09477). Multiplied by the ratio of p's probability to
    the one sampled by, k1 and k3 have the gradient of KL(p || q).
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return (-log_ratio).expm1() + log_ratio
