"""Metrics of a held-out evaluation."""

import math
import sys
from typing import Any

import factories
import pytest
from fake_rollouts import rollout_batch
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.policy.config import PolicyEvaluationConfig
from vlgenrm_ray.policy.evaluation import decoding_metrics, evaluation_metrics
from vlgenrm_ray.policy.rollouts import DecodingBatch, RolloutGroup
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


def samples(name: str, *texts: str) -> RolloutGroup:
    question = factories.question(name)
    return tuple(
        factories.rollout(f"{name}/d0/r{index}", question=question, text=text, reward=None)
        for index, text in enumerate(texts)
    )


def test_greedy_is_compared_with_k_samples_on_the_same_questions() -> None:
    batch = DecodingBatch(
        greedy=(samples("a", "No."), samples("b", "Yes."), samples("c", "?")),
        sampled=(samples("a", "Yes.", "No.", "no."), samples("b", "No.", "Yes.", "Maybe."), samples("c", "Yes.") * 3),
    )
    # "Yes." is worth 0.5, all else 0; the question with an answer of no value is left out everywhere.
    metrics = decoding_metrics(batch, f"{__name__}:half_of_yes")
    assert metrics["outcomes"] == {
        "greedy": {"a": 0.0, "b": 0.5},
        "avg_at_k": {"a": pytest.approx(0.5 / 3), "b": pytest.approx(0.5 / 3)},
        # "No." and "no." are the same answer; on a tie the first sample counts.
        "maj_at_k": {"a": 0.0, "b": 0.0},
        "pass_at_k": {"a": 0.5, "b": 0.5},
    }
    assert (metrics["k"], metrics["num_questions"]) == (3, 2)
    assert (metrics["greedy"], metrics["maj_at_k"], metrics["pass_at_k"]) == (0.25, 0.0, 0.5)
    assert metrics["avg_at_k"] == pytest.approx(0.5 / 3)


def test_a_missing_answer_takes_its_question_out_of_the_comparison() -> None:
    missing = (factories.rollout("a/d0/r0", question=factories.question("a"), text="", ids=(), reward=None),)
    batch = DecodingBatch(greedy=(missing, samples("b", "Yes.")), sampled=(samples("a", "Yes."), samples("b", "Yes.")))
    metrics = decoding_metrics(batch, f"{__name__}:half_of_yes")
    assert metrics["num_questions"] == 1
    assert metrics["outcomes"]["pass_at_k"] == {"b": 0.5}


@given(st.lists(st.sampled_from(["yes", "Yes.", "no", "maybe"]), min_size=1, max_size=9))
def test_no_way_of_decoding_beats_any_of_k(texts: list[str]) -> None:
    batch = DecodingBatch(greedy=(samples("a", texts[0]),), sampled=(samples("a", *texts),))
    metrics = decoding_metrics(batch, f"{__name__}:half_of_yes")
    assert 0 <= metrics["maj_at_k"] <= metrics["pass_at_k"] <= 0.5
    assert metrics["avg_at_k"] <= metrics["pass_at_k"]


@pytest.mark.parametrize(
    ("every", "num_steps", "expected"),
    [
        (20, 140, [0, 20, 60, 100, 140]),
        # All of them, if there are not more than five; the last evaluation comes early.
        (2, 4, [0, 2, 4]),
        (50, 60, [0, 50, 60]),
        (100, 60, [0, 60]),
    ],
)
def test_decoding_is_compared_at_the_first_and_last_evaluation_and_three_between(
    every: int, num_steps: int, expected: list[int]
) -> None:
    config = PolicyEvaluationConfig(every=every, measure="a:b")
    assert [step for step in range(num_steps + 1) if config.compares_decoding(step, num_steps)] == expected
    assert not config.model_copy(update={"measure": ""}).compares_decoding(0, num_steps)
