"""Log-probabilities and entropies of given tokens."""

import math

import pytest
import torch
from tensors import assert_close

from vlgenrm_ray.engines import log_probs as module
from vlgenrm_ray.engines.log_probs import EntropyMode, log_probs
from vlgenrm_ray.engines.vlm_batch import Batch


def test_log_probs_and_entropy_by_hand() -> None:
    result = log_probs(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([1]), entropy="value")
    assert float(result.values) == pytest.approx(math.log(0.75))
    assert result.entropy is not None
    assert float(result.entropy) == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def test_a_temperature_of_a_half_squares_the_odds() -> None:
    result = log_probs(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([1]), temperature=0.5)
    assert float(result.values) == pytest.approx(math.log(0.9))
    assert result.entropy is None


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 100])
def test_chunks_change_neither_values_nor_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ROWS", rows)
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.arange(6)
    result = log_probs(logits, targets, temperature=0.7, entropy="gradient")
    every = torch.distributions.Categorical(logits=logits / 0.7)
    assert result.entropy is not None
    assert_close(result.values, every.log_prob(targets))
    assert_close(result.entropy, every.entropy())
    weights = torch.arange(6.0)
    (gradient,) = torch.autograd.grad((weights * (result.values + 2 * result.entropy)).sum(), logits)
    (expected,) = torch.autograd.grad((weights * (every.log_prob(targets) + 2 * every.entropy())).sum(), logits)
    assert_close(gradient, expected)


@pytest.mark.parametrize(("entropy", "has"), [("value", False), ("gradient", True)])
def test_an_entropy_has_a_gradient_only_where_asked_for(entropy: EntropyMode, has: bool) -> None:
    result = log_probs(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]), entropy=entropy)
    assert result.entropy is not None
    assert result.entropy.requires_grad is has
    assert result.values.requires_grad


def test_no_targets_give_empty_values() -> None:
    logits = torch.randn(0, 3, requires_grad=True)
    result = log_probs(logits, torch.zeros(0, dtype=torch.long), entropy="gradient")
    assert result.values.shape == (0,)
    assert result.values.requires_grad


def test_values_are_at_the_positions_of_their_targets() -> None:
    weights = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, -1.0, 0.0, 0.0]])
    batch = Batch({}, (0, 0), weights)
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    spread = batch.scatter(values)
    assert spread.tolist() == [[0.0, 0.0, 1.0, 2.0], [0.0, 3.0, 0.0, 0.0]]
    assert torch.autograd.grad((spread * weights).sum(), values)[0].tolist() == [2.0, 1.0, -1.0]
    assert len(batch) == 2
