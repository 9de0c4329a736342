import math
from typing import Any

import factories
import pytest
from policy_examples import collected

from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.policy.evaluation import measured
from vlgenrm_ray.policy.rollouts import Group
from vlgenrm_ray.records import Question


def half_of_yes(question: Question, text: str) -> float | None:
    """The measure: none of "?"."""
    return None if text == "?" else 0.5 if text == "Yes." else 0.0


def not_a_number(question: Question, text: str) -> float:
    return math.nan


def answer(name: str, text: str, reward: float | None = None, **over: Any) -> Group:
    return (factories.rollout(f"{name}/e0/r0", question=factories.question(name), text=text, reward=reward, **over),)


def test_answers_are_measured_by_their_rewards_and_by_what_the_reward_never_saw() -> None:
    answers = [
        answer("a", "Yes.", 0.9),
        answer("b", "No.", 0.4, ids=(1,), logprobs=(0.0,)),
        answer("c", "?", None),
        answer("d", "", None, ids=(), logprobs=()),
    ]
    assert measured(collected(*answers), f"{__name__}:half_of_yes") == {
        "reward": pytest.approx(0.65),
        "rewarded": 2,
        "length": 1.75,
        "value": 0.25,
        "num": 2,
        # No answer is not a wrong one.
        "outcomes": {"a": 0.5, "b": 0.0},
        "blank_reward": None,
        "sight": None,
    }


def test_without_a_measure_there_are_the_rewards() -> None:
    found = measured(collected(answer("a", "Yes.", 0.9)), "")
    assert (found["reward"], found["value"], found["num"], found["outcomes"]) == (0.9, None, 0, {})


def test_where_nothing_could_be_measured_there_is_no_value() -> None:
    found = measured(collected(answer("a", "?", None)), f"{__name__}:half_of_yes")
    assert (found["reward"], found["value"]) == (None, None)


def test_a_measure_that_gives_no_number_is_named() -> None:
    with pytest.raises(StageError, match=r"gave nan for a/e0/r0; it must be a finite number"):
        measured(collected(answer("a", "Yes.")), f"{__name__}:not_a_number")
    with pytest.raises(ConfigError, match=r"give module:function"):
        measured(collected(answer("a", "Yes.")), "nowhere:nothing")
