"""Token rewards, generalized advantage estimation and whitening."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import assert_close

from vlgenrm_ray.policy.advantages import gae, token_moments, token_rewards, whiten
from vlgenrm_ray.policy.config import KlConfig

NAN = float("nan")
sizes = st.tuples(st.integers(1, 4), st.integers(1, 6))
shares = st.floats(0, 1)
few = settings(max_examples=30)


def random(size: tuple[int, int], seed: int, number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(number)]


def right_padded(size: tuple[int, int], seed: int) -> torch.Tensor:
    lengths = torch.randint(1, size[1] + 1, (size[0], 1), generator=torch.Generator().manual_seed(seed))
    return torch.arange(size[1]) < lengths


def test_gae_by_hand() -> None:
    # gamma 1/2, lambda 1/2; reward 1 at the end. delta = (1 + 1 - 2, 0 + 2 - 2, 1 - 4), from the last backwards:
    # A = (-3, 0 - 3/4, 0 - 3/16).
    rewards, values = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[2.0, 2.0, 4.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [[-0.1875, -0.75, -3.0]]
    assert returns.tolist() == [[1.8125, 1.25, 1.0]]


@few
@given(sizes, st.integers(0, 99), shares, shares)
def test_gae_is_the_sum_of_discounted_residuals(size: tuple[int, int], seed: int, gamma: float, lam: float) -> None:
    rewards, values = random(size, seed, 2)
    mask = right_padded(size, seed)
    advantages, _ = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for row, length in enumerate(mask.sum(-1).tolist()):
        v = [*values[row, :length].tolist(), 0.0]
        residuals = [float(rewards[row, t]) + gamma * v[t + 1] - v[t] for t in range(length)]
        expected = [sum((gamma * lam) ** (k - t) * residuals[k] for k in range(t, length)) for t in range(length)]
        assert advantages[row].tolist() == pytest.approx(expected + [0.0] * (size[1] - length))


def test_returns_of_reinforce_plus_plus_by_hand() -> None:
    # Rewards 1 and 0. Each token pays 1 x (old - reference) for itself and for the tokens after it.
    mask = torch.tensor([[True, True], [True, False]])
    old, reference = torch.tensor([[-1.0, -1.0], [-1.0, NAN]]), torch.tensor([[-1.25, -1.5], [-1.0, NAN]])
    kl = KlConfig(coefficient=1.0, where="reward", estimator="k1")
    rewards = token_rewards(torch.tensor([1.0, 0.0]), old, reference, mask, kl)
    returns, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)
    assert returns.tolist() == [[0.25, 0.5], [0.0, 0.0]]
    # Mean 1/4 and variance 1/24 over the three tokens.
    whitened = whiten(returns, mask, token_moments(returns, mask))
    assert whitened.flatten().tolist() == pytest.approx([0.0, 0.25 * 24**0.5, -0.25 * 24**0.5, 0.0], abs=1e-6)


@few
@given(sizes, st.integers(0, 99))
def test_with_lambda_1_returns_do_not_depend_on_the_critic(size: tuple[int, int], seed: int) -> None:
    rewards, values = random(size, seed, 2)
    mask = right_padded(size, seed)
    _, returns = gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    expected = (rewards * mask).flip(-1).cumsum(-1).flip(-1) * mask
    assert_close(returns, expected)


def test_masked_tokens_are_skipped_even_if_nan() -> None:
    mask = torch.tensor([[True, False, True, True, False]])
    rewards, values = torch.tensor([[0.3, NAN, 0.2, 1.0, NAN]]), torch.tensor([[0.5, NAN, 0.1, 0.7, NAN]])
    apart = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    close = gae(rewards[mask][None], values[mask][None], mask[mask][None], gamma=0.9, gae_lambda=0.8)
    for result, expected in zip(apart, close, strict=True):
        assert_close(result[mask], expected[0])
        assert not result[~mask].any()


def test_the_last_token_gets_the_reward_and_each_token_pays_kl() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    old = torch.tensor([[-1.0, -2.0, NAN], [-1.0, -1.0, -1.0], [NAN, NAN, NAN]])
    reference = torch.tensor([[-1.5, -2.0, NAN], [-1.0, -3.0, 0.0], [NAN, NAN, NAN]])
    config = KlConfig(coefficient=0.1, estimator="k1", where="reward")
    rewards = token_rewards(torch.tensor([1.0, 2.0, NAN]), old, reference, mask, config)
    assert_close(rewards, torch.tensor([[-0.05, 1.0, 0.0], [0.0, -0.2, 2.1], [0.0, 0.0, 0.0]]))
    in_loss = token_rewards(torch.tensor([1.0, 2.0, NAN]), old, None, mask, KlConfig(coefficient=0.1))
    assert_close(in_loss, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="reference"):
        token_rewards(torch.tensor([1.0, 2.0, NAN]), old, None, mask, config)


@few
@given(sizes, st.integers(0, 99), st.data())
def test_whitening_in_parts_equals_whitening_the_whole_step(size: tuple[int, int], seed: int, data: Any) -> None:
    [advantages] = random(size, seed, 1)
    mask = right_padded(size, seed)
    at = data.draw(st.integers(0, size[0]))
    parts = [(advantages[:at], mask[:at]), (advantages[at:], mask[at:])]
    whole = sum(token_moments(*part) for part in parts)
    together = whiten(advantages, mask, token_moments(advantages, mask))
    assert_close(torch.cat([whiten(*part, whole) for part in parts]), together)
    assert not together[~mask].any()
    assert float(together[mask].mean()) == pytest.approx(0.0, abs=1e-6)
    if mask.sum() > 1:
        assert float(together[mask].std(correction=0)) == pytest.approx(1.0, abs=1e-5)
