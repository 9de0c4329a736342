"""Losses of policy and critic: worked examples, and invariance to splitting, padding and masking."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import assert_close

from vlgenrm_ray.policy import losses
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.losses import Loss, ResponseTokens, policy_loss, value_loss

NAN = float("nan")
PLAIN: dict[str, Any] = {"kl": {"coefficient": 0.0}, "importance": None}
"""Only the clipped ratio."""

all_settings = st.fixed_dictionaries(
    {
        "normalise": st.sampled_from(["tokens", "sequences", "constant"]),
        "ratio": st.sampled_from(["token", "sequence"]),
        "entropy_coefficient": st.sampled_from([0.0, 0.1]),
        "kl": st.fixed_dictionaries({"estimator": st.sampled_from(["k2", "k3"]), "weighted": st.booleans()}),
        "importance": st.fixed_dictionaries(
            {
                "level": st.sampled_from(["token", "sequence"]),
                "outside": st.sampled_from(["truncate", "mask"]),
                "high": st.just(1.2),
            }
        ),
    }
)
seeds = st.integers(0, 999)
few = settings(max_examples=30)


def algorithm(**values: Any) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(values)


def tokens(new: list[list[float]], advantages: list[Any], **tensors: torch.Tensor) -> ResponseTokens:
    """Build responses whose old probabilities are 1/e and whose new ones are `new` times as large."""
    ratio = torch.tensor(new, dtype=torch.float64)
    defaults = {"mask": torch.ones_like(ratio, dtype=torch.bool), "old": torch.full_like(ratio, -1.0)} | tensors
    return ResponseTokens(
        new=(ratio.log() - 1.0).requires_grad_(), advantages=torch.tensor(advantages, dtype=torch.float64), **defaults
    )


def random_tokens(seed: int, rows: int = 4, width: int = 5) -> ResponseTokens:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    noise = [0.3 * torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(5)]
    return ResponseTokens(
        mask=torch.arange(width) < lengths,
        new=noise[0] - 1.0,
        old=noise[1] - 1.0,
        sampled=noise[2] - 1.0,
        reference=noise[3] - 1.0,
        entropy=noise[4].exp(),
        advantages=torch.randn(rows, generator=generator, dtype=torch.float64),
    )


def loss_and_gradient(batch: ResponseTokens, config: AlgorithmConfig, denominator: float) -> tuple[Loss, torch.Tensor]:
    """Return the loss and its gradient by the new log-probabilities."""
    new = batch.new.detach().requires_grad_()
    loss = policy_loss(replace(batch, new=new), config, denominator)
    return loss, torch.autograd.grad(loss.value, new)[0]


def rows(batch: ResponseTokens, part: slice | list[int]) -> ResponseTokens:
    return ResponseTokens(**{field.name: getattr(batch, field.name)[part] for field in fields(batch)})


def padded(batch: ResponseTokens, width: int) -> ResponseTokens:
    """Append masked tokens that hold NaN."""

    def wider(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 1:
            return tensor
        return torch.nn.functional.pad(tensor, (0, width), value=False if tensor.dtype == torch.bool else NAN)

    return ResponseTokens(**{field.name: wider(getattr(batch, field.name)) for field in fields(batch)})


def assert_same_metrics(one: dict[str, float], other: dict[str, float]) -> None:
    assert one == {name: pytest.approx(value) for name, value in other.items()}


# -- by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),
        # Above 1 + clip_high: no more to win; a bad token is still pushed down.
        (1.5, 2.0, -2.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        # Below 1 - clip_low: no more to lose; a good token is still pulled up.
        (0.5, -2.0, 1.6, 0.0),
        (0.5, 2.0, -1.0, -1.0),
    ],
)
def test_the_clip_stops_only_gradients_in_the_direction_of_the_advantage(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    batch = tokens([[ratio]], [advantage])
    value, metrics = policy_loss(batch, algorithm(clip_low=0.2, clip_high=0.3, **PLAIN), 1.0)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert batch.new.grad.item() == pytest.approx(slope)
    clipped = metrics.compute()["clip_low"] + metrics.compute()["clip_high"]
    assert clipped == (slope == 0.0)


@pytest.mark.parametrize(("normalise", "expected"), [("tokens", -5 / 4), ("sequences", -3 / 2), ("constant", -5 / 16)])
def test_normalisation_decides_the_weight_of_long_responses(normalise: Any, expected: float) -> None:
    # Advantage 1 for three tokens, 2 for one; at a ratio of 1 the loss of a token is its advantage.
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = tokens([[1.0] * 3, [1.0, 9.0, 9.0]], [1.0, 2.0], mask=mask)
    denominator = losses.loss_denominator(normalise, num_tokens=4, num_sequences=2, max_tokens=8)
    loss = policy_loss(batch, algorithm(normalise=normalise, **PLAIN), denominator)
    assert loss.value.item() == pytest.approx(expected)


def test_a_sequence_s_ratio_is_the_geometric_mean() -> None:
    # Ratios 2 and 1/2 have the mean 1: no token of the first is clipped. The second's mean is 2, clipped at 1.28.
    batch = tokens([[2.0, 0.5], [4.0, 1.0]], [1.0, 1.0])
    value, metrics = policy_loss(batch, algorithm(ratio="sequence", normalise="sequences", **PLAIN), 2.0)
    value.backward()
    assert value.item() == pytest.approx(-(1.0 + 1.28) / 2)
    # d/d log p of exp(mean) is ratio / length for each token, and each sequence is one of two.
    assert_close(batch.new.grad, torch.tensor([[-0.25, -0.25], [0.0, 0.0]], dtype=torch.float64))
    assert metrics.compute()["clip_high"] == 0.5


def test_penalty_bonus_and_weight_by_hand() -> None:
    one = torch.full((1, 1), -1.0, dtype=torch.float64)
    batch = tokens([[1.2]], [1.0], sampled=one - math.log(4.0), reference=one, entropy=torch.full_like(one, 0.7))
    config = algorithm(
        kl={"coefficient": 0.5, "estimator": "k3", "weighted": True}, importance={"high": 3.0}, entropy_coefficient=0.1
    )
    loss = policy_loss(batch, config, 1.0)
    kl = 1 / 1.2 - 1 + math.log(1.2)
    assert loss.value.item() == pytest.approx(-3.0 * 1.2 + 0.5 * 1.2 * kl - 0.1 * 0.7)
    loss.value.backward()
    # The ratio before the penalty takes a gradient too; d/d log p of the ratio is the ratio, of k3 it is 1 - 1 / 1.2.
    assert batch.new.grad.item() == pytest.approx(-3.0 * 1.2 + 0.5 * 1.2 * (kl + 1 - 1 / 1.2))
    assert loss.metrics.compute() == {
        "ratio": pytest.approx(1.2),
        "ratio_max": pytest.approx(1.2),
        "clip_low": 0.0,
        "clip_high": 0.0,
        "step_kl": pytest.approx(0.2 - math.log(1.2)),
        "mismatch": pytest.approx(math.log(4.0)),
        "mismatch_max": pytest.approx(math.log(4.0)),
        "importance_weight": 3.0,
        "importance_outside": 1.0,
        "reference_kl": pytest.approx(kl),
        "entropy": pytest.approx(0.7),
    }


def test_k2_is_never_multiplied_by_the_ratio() -> None:
    one = torch.full((1, 1), -1.0, dtype=torch.float64)
    batch = tokens([[1.2]], [0.0], reference=one)
    loss = policy_loss(batch, algorithm(kl={"coefficient": 1.0, "estimator": "k2"}, importance=None), 1.0)
    loss.value.backward()
    assert batch.new.grad.item() == pytest.approx(math.log(1.2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kl": {"coefficient": 0.0}}, "engine"),
        ({"importance": None}, "reference"),
        (PLAIN | {"entropy_coefficient": 0.1}, "entropies"),
    ],
)
def test_missing_log_probs_or_entropies_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_loss(tokens([[1.0]], [1.0]), algorithm(**config), 1.0)


def test_the_critic_s_clip_by_hand() -> None:
    # Old value 0, clip 0.2. Towards the return and past the clip: stopped. Away from it: the larger error counts.
    values = torch.tensor([[0.1, 0.5, -0.5, NAN]], requires_grad=True)
    returns = torch.tensor([[1.0, 1.0, 1.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    config = algorithm(algorithm="ppo", ppo={"value_clip": 0.2})
    loss = value_loss(values, torch.tensor([[0.0, 0.0, 0.0, NAN]]), returns, mask, config, 3.0)
    loss.value.backward()
    assert loss.value.item() == pytest.approx(0.1 * (0.81 + 0.64 + 2.25) / 2 / 3)
    assert_close(values.grad, torch.tensor([[-0.9, 0.0, -1.5, 0.0]]) * 0.1 / 3)
    expected = {"value_error": pytest.approx((0.81 + 0.25 + 2.25) / 3), "value_clip": pytest.approx(1 / 3)}
    assert loss.metrics.compute() == expected


# -- properties ----------------------------------------------------------------------------------------------


@few
@given(all_settings, seeds, st.integers(1, 3), st.integers(0, 3))
def test_a_step_in_two_parts_equals_the_whole_step(values: dict[str, Any], seed: int, at: int, width: int) -> None:
    config, whole = algorithm(**values), random_tokens(seed)
    loss, gradient = loss_and_gradient(whole, config, 7.0)
    parts = [rows(whole, slice(None, at)), padded(rows(whole, slice(at, None)), width)]
    (one, one_gradient), (two, two_gradient) = (loss_and_gradient(part, config, 7.0) for part in parts)
    assert_close(one.value + two.value, loss.value)
    assert_close(torch.cat([one_gradient, two_gradient[:, : gradient.shape[1]]]), gradient)
    assert_same_metrics((one.metrics + two.metrics).compute(), loss.metrics.compute())


@few
@given(all_settings, seeds)
def test_a_masked_response_changes_nothing(values: dict[str, Any], seed: int) -> None:
    config, whole = algorithm(**values), random_tokens(seed)
    mask = whole.mask.clone()
    mask[1] = False
    advantages = whole.advantages.clone()
    advantages[1] = NAN
    loss, gradient = loss_and_gradient(replace(whole, mask=mask, advantages=advantages), config, 7.0)
    without, expected = loss_and_gradient(rows(whole, [0, 2, 3]), config, 7.0)
    assert_close(loss.value, without.value)
    assert_close(gradient[[0, 2, 3]], expected)
    assert not gradient[1].any()
    assert_same_metrics(loss.metrics.compute(), without.metrics.compute())


@few
@given(all_settings, seeds)
def test_on_policy_the_gradient_is_the_policy_gradient(values: dict[str, Any], seed: int) -> None:
    whole = random_tokens(seed)
    config = algorithm(**values | {"kl": {"coefficient": 0.0}, "importance": None})
    _, gradient = loss_and_gradient(replace(whole, old=whole.new), config, 1.0)
    weights = losses.token_weights(whole.mask, config.normalise).double()
    if config.ratio == "sequence":
        # Every token has the same part in its sequence's ratio, and its sequence's weight is the sum over tokens.
        weights = weights.sum(-1, keepdim=True) * whole.mask / whole.mask.sum(-1, keepdim=True)
    assert_close(gradient, -weights * whole.advantages[:, None], rtol=1e-5, atol=1e-7)


def test_advantages_of_tokens_are_those_of_a_sequence_repeated() -> None:
    whole, config = random_tokens(3), algorithm()
    expected, expected_gradient = loss_and_gradient(whole, config, 7.0)
    each = whole.advantages[:, None].expand_as(whole.new)
    loss, gradient = loss_and_gradient(replace(whole, advantages=each), config, 7.0)
    assert_close(loss.value, expected.value)
    assert_close(gradient, expected_gradient)


def test_a_fully_masked_batch_has_no_loss_and_no_metrics() -> None:
    whole = random_tokens(5)
    something = loss_and_gradient(whole, algorithm(), 1.0)[0].metrics
    nothing = replace(whole, mask=torch.zeros_like(whole.mask))
    loss, gradient = loss_and_gradient(nothing, algorithm(normalise="sequences"), 1.0)
    assert loss.value.item() == 0.0
    assert not gradient.any()
    assert loss.metrics.compute() == {}
    assert_same_metrics((loss.metrics + something).compute(), something.compute())
    assert losses.loss_denominator("tokens", num_tokens=0, num_sequences=0, max_tokens=8) == 1
