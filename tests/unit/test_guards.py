"""Guards that stop a run, and the history they look at."""

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.policy.guards import (
    MIN_SAMPLES,
    EvaluationPoint,
    ImageAblationRule,
    RewardFailureRule,
    RewardHackingRule,
    TrainingHistory,
    check_image_ablation,
    check_reward_failures,
    check_reward_hacking,
)

HACKING_RULE = RewardHackingRule(window=2, min_rise=0.05, min_fall=0.05)
ABLATION_RULE = ImageAblationRule(window=2, min_rise=0.05, floor=0.02)
measures = st.lists(st.floats(0, 1), min_size=1, max_size=12)


# -- reward hacking ----------------------------------------------------------------------------------------------------


def evaluations(rewards: list[float], held_out: list[float]) -> list[EvaluationPoint]:
    return [
        EvaluationPoint(step=10 * i, reward=reward, held_out=measure)
        for i, (reward, measure) in enumerate(zip(rewards, held_out, strict=True))
    ]


def test_a_reward_that_rises_while_the_measure_falls_is_hacking() -> None:
    reason = check_reward_hacking(evaluations([0.5, 0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.6, 0.5, 0.4]), HACKING_RULE)
    # Best window: steps 10 and 20, reward 0.65 and measure 0.6; the last: 0.85 and 0.45.
    assert reason == (
        "reward hacking: since step 20 the training reward rose by 0.2 (limit 0.05) while the held-out measure fell by "
        "0.15 (limit 0.05)"
    )


def test_the_best_window_is_compared_however_long_ago() -> None:
    falling = [0.6 - 0.01 * i for i in range(12)]
    rising = [0.5 + 0.01 * i for i in range(12)]
    assert check_reward_hacking(evaluations(rising[:6], falling[:6]), HACKING_RULE) is None
    assert check_reward_hacking(evaluations(rising, falling), HACKING_RULE)


def test_one_bad_evaluation_or_a_fall_of_both_is_not_reward_hacking() -> None:
    rising = [0.5, 0.6, 0.7, 0.8, 0.9]
    assert check_reward_hacking(evaluations(rising, [0.6, 0.6, 0.6, 0.6, 0.52]), HACKING_RULE) is None
    assert check_reward_hacking(evaluations(rising[::-1], [0.6, 0.6, 0.6, 0.3, 0.2]), HACKING_RULE) is None


@given(measures, st.integers(1, 4))
def test_a_measure_that_never_falls_is_never_hacking(values: list[float], window: int) -> None:
    rule = RewardHackingRule(window=window, min_rise=0.0, min_fall=0.0)
    assert check_reward_hacking(evaluations(values, sorted(values)), rule) is None


@given(st.integers(0, 7), st.integers(1, 4))
def test_fewer_than_two_windows_never_stop_a_training(number: int, window: int) -> None:
    rule = RewardHackingRule(window=window, min_rise=0.0, min_fall=0.0)
    history = evaluations([float(i) for i in range(number)], [-float(i) for i in range(number)])
    assert (check_reward_hacking(history, rule) is not None) == (number >= 2 * window)


# -- image ablation ----------------------------------------------------------------------------------------------------


def ablations(rewards: list[float], gains: Sequence[float | None]) -> list[EvaluationPoint]:
    return [
        EvaluationPoint(step=10 * i, reward=reward, held_out=0.5, image_reward_gain=gain)
        for i, (reward, gain) in enumerate(zip(rewards, gains, strict=True))
    ]


def test_a_reward_that_rises_with_blank_images_as_well_is_suspect() -> None:
    assert check_image_ablation(ablations([0.5, 0.6, 0.8, 0.9], [0.1, 0.3, 0.02, 0.0]), ABLATION_RULE) == (
        "the judge may ignore the image: since step 10 the training reward rose by 0.3 (limit 0.05) while the image's "
        "contribution to it fell from 0.2 to 0.01 (limit 0.02)"
    )


def test_a_contribution_that_stays_or_grows_or_falls_with_the_reward_is_not_suspect() -> None:
    rising = [0.5, 0.6, 0.8, 0.9]
    assert check_image_ablation(ablations(rising, [0.1, 0.3, 0.1, 0.0]), ABLATION_RULE) is None
    # If most answers are wrong, images lower the reward.
    assert check_image_ablation(ablations(rising, [-0.4, -0.3, -0.2, -0.1]), ABLATION_RULE) is None
    assert check_image_ablation(ablations(rising[::-1], [0.3, 0.3, 0.0, 0.0]), ABLATION_RULE) is None
    only_three_measured = ablations(rising, [0.3, None, 0.0, 0.0])
    assert check_image_ablation(only_three_measured, ABLATION_RULE) is None


@given(measures, st.integers(1, 4))
def test_a_contribution_that_never_falls_is_never_suspect(values: list[float], window: int) -> None:
    rule = ImageAblationRule(window=window, min_rise=0.0, floor=2.0)
    assert check_image_ablation(ablations(values, sorted(values)), rule) is None


# -- reward failures ---------------------------------------------------------------------------------------------------


def test_failures_beyond_the_share_stop_with_their_statuses() -> None:
    rule = RewardFailureRule(window=2, max_share=0.25)
    failing = {"ok": 26, "timeout": 5, "unreadable_verdict": 5}
    assert check_reward_failures([failing], rule) == (
        "10 of the last 36 samples have no usable reward (limit 25%): 5 timeout, 5 unreadable_verdict"
    )
    assert check_reward_failures([failing, {"ok": 16}], rule) is None
    only_the_last_two_count = [{"timeout": 99}, {"ok": 16}, {"ok": 16}]
    assert check_reward_failures(only_the_last_two_count, rule) is None


def test_a_share_at_the_limit_or_of_too_few_samples_is_allowed() -> None:
    rule = RewardFailureRule(window=2, max_share=0.25)
    assert check_reward_failures([{"ok": 24, "timeout": 8}], rule) is None
    assert check_reward_failures([{"timeout": MIN_SAMPLES - 1}], rule) is None
    # A full window decides, however few its samples are.
    assert check_reward_failures([{"timeout": 2}, {"timeout": 2}], rule) is not None
    assert check_reward_failures([{"timeout": MIN_SAMPLES}], rule)
    assert check_reward_failures([], rule) is None


# -- history -----------------------------------------------------------------------------------------------------------


def test_an_evaluation_has_the_mean_reward_of_the_steps_since_the_last() -> None:
    history = TrainingHistory()
    history.add_evaluation(0, held_out=0.4, reward=0.3, image_reward_gain=None)
    for reward in (0.5, None, 0.7):
        history.add_step(reward, {"ok": 8})
    assert history.training_reward == 0.6
    history.add_evaluation(3, held_out=0.5, reward=0.9, image_reward_gain=None)
    assert history.training_reward is None
    assert history.evaluations == [
        EvaluationPoint(step=0, reward=0.3, held_out=0.4),
        EvaluationPoint(step=3, reward=0.6, held_out=0.5),
    ]


def test_without_any_reward_the_held_out_measure_is_used() -> None:
    history = TrainingHistory()
    history.add_evaluation(0, held_out=0.4, reward=None, image_reward_gain=None)
    assert history.evaluations == [EvaluationPoint(step=0, reward=0.4, held_out=0.4)]


def test_the_state_dict_restores_the_history() -> None:
    history = TrainingHistory()
    history.add_evaluation(0, held_out=0.4, reward=0.3, image_reward_gain=0.2)
    for step in range(5):
        history.add_step(0.1 * step, {"ok": step, "timeout": 1})
    assert TrainingHistory.from_state_dict(json.loads(json.dumps(history.state_dict(5)))) == history
    assert TrainingHistory.from_state_dict(history.state_dict(2)).statuses == history.statuses[-2:]


def test_the_history_applies_each_rule() -> None:
    history = TrainingHistory()
    failures = RewardFailureRule(window=2, max_share=0.25)
    history.add_step(0.5, {"ok": 8})
    assert history.check_reward_failures(failures) is None
    history.add_step(None, {"timeout": 8})
    assert "8 timeout" in (history.check_reward_failures(failures) or "")
    reward_hacking = RewardHackingRule(window=1, min_rise=0.1, min_fall=0.1)
    history.add_evaluation(2, held_out=0.8, reward=0.5, image_reward_gain=None)
    assert history.check_reward_hacking(reward_hacking) is None
    history.add_step(0.9, {"ok": 8})
    history.add_evaluation(3, held_out=0.5, reward=0.5, image_reward_gain=None)
    assert "since step 2" in (history.check_reward_hacking(reward_hacking) or "")
    ablation = ImageAblationRule(window=1, min_rise=0.1, floor=0.05)
    assert history.check_image_ablation(ablation) is None
    for step, reward, gain in ((4, 0.5, 0.3), (5, 0.9, 0.01)):
        history.add_step(reward, {"ok": 8})
        history.add_evaluation(step, held_out=0.5, reward=0.5, image_reward_gain=gain)
    assert "since step 4" in (history.check_image_ablation(ablation) or "")
