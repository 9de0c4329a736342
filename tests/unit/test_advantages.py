"""Advantages of groups, the shaping of rewards before them, and the settings of both."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.policy.advantages import JudgedGroup, group_advantages
from vlgenrm_ray.policy.config import AlgorithmConfig, ImportanceConfig, KlConfig, OverlongConfig
from vlgenrm_ray.policy.shaping import shaped
from vlgenrm_ray.policy.training_config import PolicyConfig

# Steps of 1/8: sums and shifts of them are exact, and no spread is near the limit by rounding.
rewards = st.integers(0, 8).map(lambda n: n / 8)
groups = st.lists(st.none() | rewards, min_size=1, max_size=8)
steps = st.lists(groups, min_size=1, max_size=4)
REWARD = {"rewards": [{"function": "a:b"}]}
scales = st.sampled_from(["group", "batch", "none"])


def algorithm(**values: Any) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(values)


def one(rewards: list[float | None], **values: Any) -> JudgedGroup:
    return group_advantages([rewards], algorithm(**values))[0]


def near(group: JudgedGroup) -> list[Any]:
    return [None if a is None else pytest.approx(a, abs=1e-9) for a in group.advantages]


def test_a_group_by_hand() -> None:
    # Mean 1/2; squares of the distances add up to 1, divided by 3: s = 1 / sqrt(3).
    assert one([1.0, 0.0, 1.0, 0.0]).advantages == pytest.approx([math.sqrt(3) / 2, -math.sqrt(3) / 2] * 2)
    assert one([1.0, 0.0, 1.0, 0.0], scale="none").advantages == (0.5, -0.5, 0.5, -0.5)


def test_the_batch_s_spread_is_of_all_rewards() -> None:
    # Rewards 0, 1, 3, 4: mean 2, squares 4 + 1 + 1 + 4 = 10, divided by 3.
    judged = group_advantages([[0.0, 1.0], [3.0, 4.0], [None, 9.0]], algorithm(scale="batch"))
    expected = 0.5 / math.sqrt(10 / 3)
    assert judged[0].advantages == judged[1].advantages == pytest.approx((-expected, expected))
    assert judged[2] == JudgedGroup(advantages=(None, None), fate="left_out")


def test_a_sample_without_reward_is_not_a_zero() -> None:
    group = one([0.9, None, 0.5, 0.1], scale="none")
    assert group.advantages == (pytest.approx(0.4), None, pytest.approx(0.0), pytest.approx(-0.4))
    assert group.fate == "learnt"


def test_too_few_scored_leave_the_group_out() -> None:
    assert one([0.9, 0.1, None, None], min_scored=3) == JudgedGroup(advantages=(None,) * 4, fate="left_out")
    assert one([0.9, 0.1, None, None], min_scored=2).fate == "learnt"
    assert one([], min_scored=2) == JudgedGroup(advantages=(), fate="left_out")


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_rewards_nearly_alike_teach_nothing(scale: str) -> None:
    flat = one([0.500, 0.501, None, 0.502], min_spread=0.01, scale=scale)
    assert flat == JudgedGroup(advantages=(0.0, 0.0, None, 0.0), fate="flat")
    assert one([0.50, 0.51, None, 0.53], min_spread=0.01, scale=scale).fate == "learnt"


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        one([0.5, reward])


@given(steps, st.integers(-8, 8), scales)
def test_a_shift_of_all_rewards_changes_nothing(step: list[list[float | None]], by: int, scale: str) -> None:
    config = algorithm(scale=scale)
    shifted = [[None if r is None else r + by for r in group] for group in step]
    for before, after in zip(group_advantages(step, config), group_advantages(shifted, config), strict=True):
        assert list(after.advantages) == near(before)


@given(groups, st.randoms(), scales)
def test_the_order_within_a_group_does_not_matter(group: list[float | None], random: Any, scale: str) -> None:
    order = list(range(len(group)))
    random.shuffle(order)
    before, after = one(group, scale=scale), one([group[i] for i in order], scale=scale)
    assert list(after.advantages) == [near(before)[i] for i in order]


@given(groups, st.integers(0, 8), scales)
def test_unscored_samples_change_nothing_for_the_others(group: list[float | None], at: int, scale: str) -> None:
    at = min(at, len(group))
    before, after = one(group, scale=scale), one([*group[:at], None, *group[at:]], scale=scale)
    assert list(after.advantages) == [*near(before)[:at], None, *near(before)[at:]]
    assert after.fate == before.fate


@given(groups)
def test_advantages_of_a_group_have_mean_0_and_deviation_1(group: list[float | None]) -> None:
    judged = one(group)
    values = [a for a in judged.advantages if a is not None]
    if judged.fate == "learnt":
        assert np.mean(values) == pytest.approx(0.0, abs=1e-9)
        assert np.std(values, ddof=1) == pytest.approx(1.0)
    else:
        assert not any(values)


def test_the_overlong_penalty_grows_over_the_buffer() -> None:
    config = OverlongConfig(handling="penalty", buffer=10, penalty=0.5)
    lengths = {80: 1.0, 90: 1.0, 91: 0.95, 95: 0.75, 100: 0.5, 101: 0.5}
    for num_tokens, expected in lengths.items():
        reward = shaped(1.0, num_tokens=num_tokens, cut=num_tokens >= 100, max_tokens=100, config=config)
        assert reward == pytest.approx(expected)


@pytest.mark.parametrize(("handling", "expected"), [("keep", 0.7), ("mask", None), ("penalty", -0.3)])
def test_a_response_cut_at_the_limit(handling: str, expected: float | None) -> None:
    config = OverlongConfig.model_validate({"handling": handling})
    assert shaped(0.7, num_tokens=64, cut=True, max_tokens=64, config=config) == pytest.approx(expected)
    assert shaped(None, num_tokens=64, cut=True, max_tokens=64, config=config) is None
    assert shaped(0.7, num_tokens=9, cut=False, max_tokens=64, config=config) == 0.7


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (KlConfig, {"estimator": "k1", "weighted": False}, "k1"),
        (AlgorithmConfig, {"kl": {"where": "reward"}}, "algorithm: ppo"),
        (AlgorithmConfig, {"algorithm": "ppo", "ratio": "sequence"}, "algorithm: grpo"),
        (AlgorithmConfig, {"algorithm": "ppo", "resample_rounds": 1}, "flat groups"),
        (ImportanceConfig, {"low": 2.0, "high": 2.0}, "below"),
        (PolicyConfig, REWARD | {"rollouts": {"group_size": 1}}, "group_size"),
        (PolicyConfig, REWARD | {"critic_warmup": 2}, "algorithm: ppo"),
        (PolicyConfig, REWARD | {"algorithm": {"algorithm": "ppo"}, "critic_warmup": 9, "steps": 9}, "below steps"),
        (PolicyConfig, REWARD | {"algorithm": {"overlong": {"handling": "penalty", "buffer": 4096}}}, "overlong"),
        (AlgorithmConfig, {"clip_hihg": 0.2}, "clip_hihg"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(model: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(values)
