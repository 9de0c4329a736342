"""Metrics of a held-out evaluation."""

import math
import sys
from typing import Any

import factories
import pytest
from fake_rollouts import rollout_batch

from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.policy.evaluation import evaluation_metrics
from vlgenrm_ray.policy.rollouts import RolloutGroup
from vlgenrm_ray.records import Question


def half_of_yes(question: Question, text: str) -> float | None:
    """Measure that has no value for "?"."""
    return None if text == "?" else 0.5 if text == "Yes." else 0.0


def not_a_number(question: Question, text: str) -> float:
    return math.nan


def fails_on_no(question: Question, text: str) -> float:
    if text == "No.":
        sys.exit(1)
    return 1.0


async def of_coroutine(question: Question, text: str) -> float:
    return 0.5


def answer(name: str, text: str, reward: float | None = None, **over: Any) -> RolloutGroup:
    return (factories.rollout(f"{name}/e0/r0", question=factories.question(name), text=text, reward=reward, **over),)


def test_answers_are_evaluated_by_reward_and_measure() -> None:
    answers = [
        answer("a", "Yes.", 0.9),
        answer("b", "No.", 0.4, ids=(1,), logprobs=(0.0,)),
        answer("c", "?", None),
        answer("d", "", None, ids=(), logprobs=()),
    ]
    assert evaluation_metrics(rollout_batch(*answers), f"{__name__}:half_of_yes") == {
        "reward": pytest.approx(0.65),
        "num_rewarded": 2,
        "length": 1.75,
        "value": 0.25,
        "num_measured": 2,
        # A missing answer is not a wrong one.
        "outcomes": {"a": 0.5, "b": 0.0},
        "blank_image_reward": None,
        "image_reward_gain": None,
    }


def test_without_a_measure_there_are_only_rewards() -> None:
    metrics = evaluation_metrics(rollout_batch(answer("a", "Yes.", 0.9)), "")
    assert (metrics["reward"], metrics["value"], metrics["num_measured"], metrics["outcomes"]) == (0.9, None, 0, {})


def test_without_any_value_the_means_are_none() -> None:
    metrics = evaluation_metrics(rollout_batch(answer("a", "?", None)), f"{__name__}:half_of_yes")
    assert (metrics["reward"], metrics["value"]) == (None, None)


def test_a_measure_that_returns_no_finite_number_is_named() -> None:
    with pytest.raises(StageError, match=r"returned nan for a/e0/r0; it must be a finite number"):
        evaluation_metrics(rollout_batch(answer("a", "Yes.")), f"{__name__}:not_a_number")
    with pytest.raises(ConfigError, match=r"give module:function"):
        evaluation_metrics(rollout_batch(answer("a", "Yes.")), "nowhere:nothing")


def test_a_failure_of_the_measure_costs_its_answer_alone(caplog: pytest.LogCaptureFixture) -> None:
    batch = rollout_batch(answer("a", "Yes."), answer("b", "No."), answer("c", "Yes."))
    metrics = evaluation_metrics(batch, f"{__name__}:fails_on_no")
    assert (metrics["value"], metrics["num_measured"], set(metrics["outcomes"])) == (1.0, 2, {"a", "c"})
    assert "1 of 3 answers have no value" in caplog.text
    with pytest.raises(StageError, match=r"raised SystemExit\(1\) for b/e0/r0"):
        evaluation_metrics(rollout_batch(answer("b", "No.")), f"{__name__}:fails_on_no")


def test_a_measure_may_be_a_coroutine_function() -> None:
    assert evaluation_metrics(rollout_batch(answer("a", "Yes.")), f"{__name__}:of_coroutine")["value"] == 0.5
