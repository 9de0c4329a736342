"""The rules that end a run: over small histories, and over all that grow."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.policy.guards import (
    Evaluation,
    FailureRule,
    HackingRule,
    SightRule,
    blindness,
    reward_failures,
    reward_hacking,
)

RULE = HackingRule(window=2, min_rise=0.05, min_fall=0.05)
measures = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def history(rewards: list[float], held_out: list[float]) -> list[Evaluation]:
    return [
        Evaluation(step=10 * i, reward=reward, held_out=measure)
        for i, (reward, measure) in enumerate(zip(rewards, held_out, strict=True))
    ]


def test_a_reward_that_rises_while_the_measure_falls_is_hacking() -> None:
    reason = reward_hacking(history([0.5, 0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.6, 0.5, 0.4]), RULE)
    # Best window: steps 10 and 20, reward 0.65 and measure 0.6; the last: 0.85 and 0.45.
    assert reason == (
        "reward hacking: since step 20 the training reward rose by 0.2 (limit 0.05) while the held-out measure fell by "
        "0.15 (limit 0.05)"
    )


def test_the_best_window_is_compared_however_long_ago() -> None:
    slow = [0.6 - 0.01 * i for i in range(12)]
    rising = [0.5 + 0.01 * i for i in range(12)]
    assert reward_hacking(history(rising[:6], slow[:6]), RULE) is None
    assert reward_hacking(history(rising, slow), RULE)


def test_one_bad_evaluation_or_a_fall_of_both_is_not_hacking() -> None:
    rising = [0.5, 0.6, 0.7, 0.8, 0.9]
    assert reward_hacking(history(rising, [0.6, 0.6, 0.6, 0.6, 0.52]), RULE) is None
    assert reward_hacking(history(rising[::-1], [0.6, 0.6, 0.6, 0.3, 0.2]), RULE) is None


@given(measures, st.integers(1, 4))
def test_a_measure_that_never_falls_is_never_hacking(values: list[float], window: int) -> None:
    rule = HackingRule(window=window, min_rise=0.0, min_fall=0.0)
    assert reward_hacking(history(values, sorted(values)), rule) is None


@given(st.integers(0, 7), st.integers(1, 4))
def test_fewer_than_two_windows_are_no_reason(number: int, window: int) -> None:
    rule = HackingRule(window=window, min_rise=0.0, min_fall=0.0)
    found = reward_hacking(history([float(i) for i in range(number)], [-float(i) for i in range(number)]), rule)
    assert (found is not None) == (number >= 2 * window)


LOOKS = SightRule(window=2, min_rise=0.05, floor=0.02)


def seen(rewards: list[float], sights: Sequence[float | None]) -> list[Evaluation]:
    return [
        Evaluation(step=10 * i, reward=reward, held_out=0.5, sight=sight)
        for i, (reward, sight) in enumerate(zip(rewards, sights, strict=True))
    ]


def test_a_reward_that_rises_by_blank_pictures_as_well_is_doubted() -> None:
    assert blindness(seen([0.5, 0.6, 0.8, 0.9], [0.1, 0.3, 0.02, 0.0]), LOOKS) == (
        "the judge may not look: since step 10 the training reward rose by 0.3 (limit 0.05) while what the picture "
        "adds to it fell from 0.2 to 0.01 (limit 0.02)"
    )


def test_sight_that_stays_or_grows_or_goes_with_the_reward_is_not_doubted() -> None:
    rising = [0.5, 0.6, 0.8, 0.9]
    assert blindness(seen(rising, [0.1, 0.3, 0.1, 0.0]), LOOKS) is None
    # Of answers that are mostly wrong, pictures take away.
    assert blindness(seen(rising, [-0.4, -0.3, -0.2, -0.1]), LOOKS) is None
    assert blindness(seen(rising[::-1], [0.3, 0.3, 0.0, 0.0]), LOOKS) is None
    assert blindness(seen(rising, [0.3, None, 0.0, 0.0]), LOOKS) is None, "three that are known are no two windows"


@given(measures, st.integers(1, 4))
def test_a_sight_that_never_falls_is_never_doubted(values: list[float], window: int) -> None:
    rule = SightRule(window=window, min_rise=0.0, floor=2.0)
    assert blindness(seen(values, sorted(values)), rule) is None


def test_failures_beyond_the_share_stop_with_their_names() -> None:
    rule = FailureRule(window=2, max_share=0.25, min_samples=8)
    bad = {"ok": 10, "timeout": 5, "unreadable_verdict": 1}
    assert reward_failures([bad], rule) == (
        "6 of the last 16 samples have no reward to learn from (limit 25%): 5 timeout, 1 unreadable_verdict"
    )
    assert reward_failures([bad, {"ok": 16}], rule) is None
    # Only the last two steps are looked at.
    assert reward_failures([{"timeout": 99}, {"ok": 16}, {"ok": 16}], rule) is None


def test_the_share_itself_is_allowed_and_few_samples_are_no_share() -> None:
    rule = FailureRule(window=2, max_share=0.25, min_samples=8)
    assert reward_failures([{"ok": 6, "timeout": 2}], rule) is None
    assert reward_failures([{"timeout": 7}], rule) is None
    # A window that is full is all there will ever be.
    assert reward_failures([{"timeout": 2}, {"timeout": 2}], rule) is not None
    assert reward_failures([{"timeout": 8}], rule)
    assert reward_failures([], rule) is None
