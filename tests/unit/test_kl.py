"""KL estimators and importance weights: values and gradients, exact by summation over a small vocabulary."""

from typing import Any, Literal

import pytest
import torch
from tensors import assert_close

from vlgenrm_ray.policy.config import ImportanceConfig
from vlgenrm_ray.policy.losses import estimate_kl, importance_weights

LOGITS = torch.tensor([0.3, -0.9, 1.2, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([-0.5, 0.4, 0.8, 0.1], dtype=torch.float64).log_softmax(-1)


def policy() -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits with gradient, and their log-probabilities."""
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(-1)


def gradient(logits: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits)[0]


def reverse_kl() -> tuple[torch.Tensor, torch.Tensor]:
    logits, p = policy()
    value = (p.exp() * (p - REFERENCE)).sum()
    return value.detach(), gradient(logits, value)


def forward_kl_gradient() -> torch.Tensor:
    logits, p = policy()
    return gradient(logits, (REFERENCE.exp() * (REFERENCE - p)).sum())


def sampled(estimator: Literal["k1", "k2", "k3"], *, weighted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean over the policy's tokens of the estimate and of its gradient."""
    logits, p = policy()
    estimate = estimate_kl(p - REFERENCE, estimator)
    if weighted:
        estimate = estimate * (p - p.detach()).exp()
    value = (p.detach().exp() * estimate).sum()
    return value.detach(), gradient(logits, value)


def test_estimates_by_hand() -> None:
    log_ratio = torch.tensor([0.0, 1.0, -1.0])
    assert estimate_kl(log_ratio, "k1").tolist() == [0.0, 1.0, -1.0]
    assert estimate_kl(log_ratio, "k2").tolist() == [0.0, 0.5, 0.5]
    assert_close(estimate_kl(log_ratio, "k3"), torch.tensor([0.0, 0.3678794, 0.7182818]))


def test_k1_and_k3_are_unbiased() -> None:
    expected, _ = reverse_kl()
    assert_close(sampled("k1", weighted=False)[0], expected)
    assert_close(sampled("k3", weighted=False)[0], expected)
    assert float(sampled("k2", weighted=False)[0]) != pytest.approx(float(expected), rel=1e-2)


def test_gradients_of_unweighted_estimates() -> None:
    _, expected = reverse_kl()
    assert_close(sampled("k1", weighted=False)[1], torch.zeros_like(LOGITS))
    assert_close(sampled("k2", weighted=False)[1], expected)
    assert_close(sampled("k3", weighted=False)[1], forward_kl_gradient())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_weighted_estimates_have_the_gradient_of_the_reverse_kl(estimator: Any) -> None:
    value, slope = sampled(estimator, weighted=True)
    expected, expected_slope = reverse_kl()
    assert_close(value, expected)
    assert_close(slope, expected_slope)


def weights(log_ratio: list[list[float]], **values: Any) -> tuple[torch.Tensor, list[list[bool]]]:
    result = importance_weights(torch.tensor(log_ratio), ImportanceConfig.model_validate(values))
    return result.weights, result.outside.tolist()


def test_weights_of_tokens_are_truncated_or_masked() -> None:
    log_ratio = torch.tensor([[0.5, 1.0, 4.0]]).log().tolist()
    assert_close(weights(log_ratio, high=2.0)[0], torch.tensor([[0.5, 1.0, 2.0]]))
    assert_close(weights(log_ratio, low=0.6, high=2.0)[0], torch.tensor([[0.6, 1.0, 2.0]]))
    masked, outside = weights(log_ratio, low=0.6, high=2.0, outside="mask")
    assert_close(masked, torch.tensor([[0.0, 1.0, 0.0]]))
    assert outside == [[True, False, True]]


def test_a_sequence_s_weight_is_the_product_over_its_tokens() -> None:
    log_ratio = torch.tensor([[0.5, 3.0, 1.0], [2.0, 3.0, 1.0]]).log().tolist()
    truncated, outside = weights(log_ratio, level="sequence", high=2.0)
    assert_close(truncated, torch.tensor([[1.5] * 3, [2.0] * 3]))
    assert outside == [[False] * 3, [True] * 3]
    assert_close(weights(log_ratio, level="sequence", outside="mask")[0], torch.tensor([[1.5] * 3, [0.0] * 3]))
