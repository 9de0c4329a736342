"""Group-relative and leave-one-out advantages, reward shaping, and the settings of both."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.policy.advantages import GroupAdvantages, GroupStatus, group_relative_advantages, shape_reward
from vlgenrm_ray.policy.algorithms.rloo import leave_one_out_advantages
from vlgenrm_ray.policy.config import AlgorithmConfig, ImportanceConfig, KlConfig, OverlongConfig, PolicyConfig

# Steps of 1/8: sums and shifts of them are exact, and no standard deviation is near the limit by rounding.
rewards = st.integers(0, 8).map(lambda n: n / 8)
groups = st.lists(st.none() | rewards, min_size=1, max_size=8)
steps = st.lists(groups, min_size=1, max_size=4)
REWARD = {"rewards": [{"function": "a:b"}]}
scales = st.sampled_from(["group", "batch", "none"])


def algorithm(**values: Any) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(values)


def estimate(rewards: list[float | None], **values: Any) -> GroupAdvantages:
    """Advantages of a single group."""
    return group_relative_advantages([rewards], algorithm(**values))[0]


def approx(group: GroupAdvantages) -> list[Any]:
    return [None if a is None else pytest.approx(a, abs=1e-9) for a in group.advantages]


def test_group_relative_advantages_by_hand() -> None:
    # Mean 1/2; squares of the distances add up to 1, divided by 3: s = 1 / sqrt(3).
    assert estimate([1.0, 0.0, 1.0, 0.0]).advantages == pytest.approx([math.sqrt(3) / 2, -math.sqrt(3) / 2] * 2)
    assert estimate([1.0, 0.0, 1.0, 0.0], scale="none").advantages == (0.5, -0.5, 0.5, -0.5)


def test_scale_batch_divides_by_the_std_of_all_rewards() -> None:
    # Rewards 0, 1, 3, 4: mean 2, squares 4 + 1 + 1 + 4 = 10, divided by 3.
    estimated = group_relative_advantages([[0.0, 1.0], [3.0, 4.0], [None, 9.0]], algorithm(scale="batch"))
    expected = 0.5 / math.sqrt(10 / 3)
    assert estimated[0].advantages == estimated[1].advantages == pytest.approx((-expected, expected))
    assert estimated[2] == GroupAdvantages(advantages=(None, None), status=GroupStatus.TOO_FEW_SCORED)


def test_an_unscored_sample_is_not_a_reward_of_zero() -> None:
    group = estimate([0.9, None, 0.5, 0.1], scale="none")
    assert group.advantages == (pytest.approx(0.4), None, pytest.approx(0.0), pytest.approx(-0.4))
    assert group.status is GroupStatus.USED


def test_a_group_with_too_few_scored_samples_is_not_used() -> None:
    assert estimate([0.9, 0.1, None, None], min_scored=3) == GroupAdvantages(
        advantages=(None,) * 4, status=GroupStatus.TOO_FEW_SCORED
    )
    assert estimate([0.9, 0.1, None, None], min_scored=2).status is GroupStatus.USED
    assert estimate([], min_scored=2) == GroupAdvantages(advantages=(), status=GroupStatus.TOO_FEW_SCORED)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_nearly_equal_rewards_give_advantages_of_zero(scale: str) -> None:
    flat = estimate([0.500, 0.501, None, 0.502], min_std=0.01, scale=scale)
    assert flat == GroupAdvantages(advantages=(0.0, 0.0, None, 0.0), status=GroupStatus.ZERO_STD)
    assert estimate([0.50, 0.51, None, 0.53], min_std=0.01, scale=scale).status is GroupStatus.USED


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate([0.5, reward])


@given(steps, st.integers(-8, 8), scales)
def test_a_shift_of_all_rewards_changes_nothing(step: list[list[float | None]], by: int, scale: str) -> None:
    config = algorithm(scale=scale)
    shifted = [[None if r is None else r + by for r in group] for group in step]
    for before, after in zip(
        group_relative_advantages(step, config), group_relative_advantages(shifted, config), strict=True
    ):
        assert list(after.advantages) == approx(before)


@given(groups, st.randoms(), scales)
def test_the_order_within_a_group_does_not_matter(group: list[float | None], random: Any, scale: str) -> None:
    order = list(range(len(group)))
    random.shuffle(order)
    before, after = estimate(group, scale=scale), estimate([group[i] for i in order], scale=scale)
    assert list(after.advantages) == [approx(before)[i] for i in order]


@given(groups, st.integers(0, 8), scales)
def test_unscored_samples_change_nothing_for_the_others(group: list[float | None], at: int, scale: str) -> None:
    at = min(at, len(group))
    before, after = estimate(group, scale=scale), estimate([*group[:at], None, *group[at:]], scale=scale)
    assert list(after.advantages) == [*approx(before)[:at], None, *approx(before)[at:]]
    assert after.status == before.status


@given(groups)
def test_advantages_of_a_group_have_mean_0_and_deviation_1(group: list[float | None]) -> None:
    estimated = estimate(group)
    values = [a for a in estimated.advantages if a is not None]
    if estimated.status is GroupStatus.USED:
        assert np.mean(values) == pytest.approx(0.0, abs=1e-9)
        assert np.std(values, ddof=1) == pytest.approx(1.0)
    else:
        assert not any(values)


def test_leave_one_out_advantages_by_hand() -> None:
    # Baselines of rewards 1, 0, 0.5: the means of the other two, 0.25, 0.75, 0.5.
    (group,) = leave_one_out_advantages([[1.0, None, 0.0, 0.5]], algorithm(algorithm="rloo"))
    assert group.advantages == (0.75, None, -0.75, 0.0)
    assert group.status is GroupStatus.USED


@given(groups)
def test_leave_one_out_is_the_distance_from_the_mean_times_n_by_n_minus_1(group: list[float | None]) -> None:
    (loo,) = leave_one_out_advantages([group], algorithm(algorithm="rloo"))
    (centred,) = group_relative_advantages([group], algorithm(scale="none"))
    assert loo.status == centred.status
    n = sum(reward is not None for reward in group)
    expected = [a if not a else a * n / (n - 1) for a in centred.advantages]
    assert list(loo.advantages) == [None if a is None else pytest.approx(a, abs=1e-9) for a in expected]


def test_the_overlong_penalty_grows_over_the_buffer() -> None:
    config = OverlongConfig(handling="penalty", buffer=10, penalty=0.5)
    lengths = {80: 1.0, 90: 1.0, 91: 0.95, 95: 0.75, 100: 0.5, 101: 0.5}
    for num_tokens, expected in lengths.items():
        reward = shape_reward(1.0, num_tokens=num_tokens, truncated=num_tokens >= 100, max_tokens=100, config=config)
        assert reward == pytest.approx(expected)


@pytest.mark.parametrize(("handling", "expected"), [("keep", 0.7), ("mask", None), ("penalty", -0.3)])
def test_handling_of_a_truncated_response(handling: str, expected: float | None) -> None:
    config = OverlongConfig.model_validate({"handling": handling})
    assert shape_reward(0.7, num_tokens=64, truncated=True, max_tokens=64, config=config) == pytest.approx(expected)
    assert shape_reward(None, num_tokens=64, truncated=True, max_tokens=64, config=config) is None
    assert shape_reward(0.7, num_tokens=9, truncated=False, max_tokens=64, config=config) == 0.7


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (KlConfig, {"estimator": "k1", "weighted": False}, "k1"),
        (AlgorithmConfig, {"kl": {"where": "reward"}}, "algorithm: ppo"),
        (AlgorithmConfig, {"algorithm": "ppo", "ratio": "sequence"}, "algorithm: gspo"),
        (AlgorithmConfig, {"algorithm": "ppo", "resample_rounds": 1}, "resample_rounds"),
        (ImportanceConfig, {"low": 2.0, "high": 2.0}, "below"),
        (PolicyConfig, REWARD | {"rollouts": {"group_size": 1}}, "group_size"),
        (PolicyConfig, REWARD | {"critic_warmup": 2}, "algorithm: ppo"),
        (PolicyConfig, REWARD | {"algorithm": {"algorithm": "ppo"}, "critic_warmup": 9, "steps": 9}, "below steps"),
        (PolicyConfig, REWARD | {"algorithm": {"overlong": {"handling": "penalty", "buffer": 4096}}}, "overlong"),
        (AlgorithmConfig, {"clip_hihg": 0.2}, "clip_hihg"),
    ],
)
def test_contradictory_settings_are_refused(model: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(values)
