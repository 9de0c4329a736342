"""Log files of a training, its metrics of rollouts, and the console texts about them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import factories
import pytest
from fake_rollouts import rollout_batch

from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.rollouts import RolloutGroup
from vlgenrm_ray.policy.run_logging import (
    ConsoleReporter,
    RunLogger,
    RunPaths,
    format_evaluation,
    format_samples,
    read_lines,
    rollout_metrics,
)
from vlgenrm_ray.rewards.config import RewardConfig

CONFIG = PolicyConfig(rewards=(RewardConfig(function="a:b"),), trackers=())


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def logger_of(paths: RunPaths, *, enabled: bool = True) -> RunLogger:
    return RunLogger(paths, CONFIG, enabled=enabled)


def evaluation(step: int, held_out: float = 0.5, **over: Any) -> dict[str, Any]:
    line = {"step": step, "held_out": held_out, "value": 0.5, "reward": 0.25, "image_reward_gain": None, "warning": ""}
    return line | over


# -- files -------------------------------------------------------------------------------------------------------------


def log_steps(paths: RunPaths, steps: int) -> RunLogger:
    """Log a training that evaluates and logs samples at each step."""
    logger = logger_of(paths)
    logger.start(0, total_steps=9)
    logger.log_evaluation(evaluation(0))
    for step in range(1, steps + 1):
        logger.log_step({"step": step})
        logger.log_samples(step, rollout_batch((factories.rollout(),)))
        logger.log_evaluation(evaluation(step))
    return logger


def steps_in(path: Path) -> list[int]:
    return [line["step"] for line in read_lines(path)]


def test_lines_after_the_checkpoint_are_removed(paths: RunPaths) -> None:
    logger = log_steps(paths, 4)
    logger.start(2, total_steps=9)
    assert steps_in(paths.metrics) == steps_in(paths.samples) == [1, 2]
    assert steps_in(paths.evaluations) == [0, 1, 2]
    assert read_json(paths.plan) == {"steps": 9}
    logger.log_step({"step": 3})
    assert steps_in(paths.metrics) == [1, 2, 3]


def test_a_training_that_starts_over_has_no_lines_and_no_best(paths: RunPaths) -> None:
    logger = log_steps(paths, 2)
    logger.log_best(evaluation(1))
    logger.start(0, total_steps=9)
    assert steps_in(paths.metrics) == steps_in(paths.samples) == steps_in(paths.evaluations) == []
    assert logger.is_best(evaluation(0, -1.0))


def test_an_incomplete_line_is_ignored(paths: RunPaths) -> None:
    logger = log_steps(paths, 2)
    with paths.metrics.open("a") as file:
        file.write('{"step": 3, "rew')
    assert steps_in(paths.metrics) == [1, 2]
    logger.start(2, total_steps=9)
    assert paths.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_best_evaluation_stays_even_if_its_step_is_repeated(paths: RunPaths) -> None:
    logger = log_steps(paths, 4)
    assert logger.is_best(evaluation(0))
    logger.log_best(evaluation(4, 0.75))
    # The exported model is that of step 4, whatever step the training resumes from.
    logger.start(2, total_steps=9)
    assert not logger.is_best(evaluation(4, 0.75))
    assert logger.is_best(evaluation(4, 0.8))
    assert read_json(paths.best_evaluation) == evaluation(4, 0.75)


def test_samples_have_all_answers_of_a_question(paths: RunPaths) -> None:
    answers = (
        factories.rollout("q0/s0/r0", text="Yes.", critique="Right."),
        factories.rollout("q0/s0/r1", text="No.", reward=None, status="timeout"),
    )
    logger_of(paths).log_samples(1, rollout_batch(answers, (factories.rollout("q1/s0/r0"),)))
    (line,) = read_lines(paths.samples)
    question = answers[0].question
    assert (line["step"], line["image"], line["question"]) == (1, question.image.uri, question.text)
    assert [(a["text"], a["reward"], a["status"], a["critique"]) for a in line["answers"]] == [
        ("Yes.", 0.75, "ok", "Right."),
        ("No.", None, "timeout", ""),
    ]


def test_the_result_has_the_steps_done_and_the_reason_for_an_early_stop(paths: RunPaths) -> None:
    logger_of(paths).finish(steps=4, stopped="reward hacking")
    assert json.loads(paths.result.read_text()) == {"steps": 4, "stopped": "reward hacking"}


def test_a_disabled_logger_writes_nothing(paths: RunPaths, tmp_path: Path) -> None:
    logger = logger_of(paths, enabled=False)
    logger.start(0, total_steps=9)
    logger.log_step({"step": 1})
    logger.log_samples(1, rollout_batch((factories.rollout(),)))
    logger.log_evaluation(evaluation(1))
    logger.log_best(evaluation(1))
    logger.finish(steps=1, stopped="")
    assert list(tmp_path.iterdir()) == []


# -- metrics of rollouts -----------------------------------------------------------------------------------------------


def group(*rewards: float | None, **over: Any) -> RolloutGroup:
    return tuple(
        factories.rollout(f"q/s0/r{i}", reward=reward, status="timeout" if reward is None else "ok", **over)
        for i, reward in enumerate(rewards)
    )


def test_metrics_of_a_step() -> None:
    stale = group(1.0, 0.5, step=3, version=2)
    unwritten = group(None, ids=(), logprobs=(), finish="", step=3, version=3)
    truncated = group(0.0, None, finish="length", step=3, version=3)
    batch = rollout_batch(stale, unwritten, truncated, statuses={"ok": 7, "timeout": 3}, num_replaced=2)
    assert rollout_metrics(batch) == {
        # Samples of replaced groups are counted as well.
        "samples": 10.0,
        "failed": 3.0,
        "groups_replaced": 2.0,
        "reward": 0.5,
        "reward_std": pytest.approx((2 * 0.25 / 3) ** 0.5),
        "length": 3.0,
        "truncated_share": 0.5,
        "staleness": 0.5,
    }


def test_unknown_metrics_are_left_out() -> None:
    unwritten = group(None, ids=(), logprobs=(), finish="")
    assert rollout_metrics(rollout_batch(unwritten, statuses=Counter(timeout=1))) == {
        "samples": 1.0,
        "failed": 1.0,
        "groups_replaced": 0.0,
    }


# -- console -----------------------------------------------------------------------------------------------------------


def answer(text: str, reward: float | None, critique: str = "", status: str = "ok") -> dict[str, Any]:
    return {"text": text, "reward": reward, "status": status, "critique": critique, "finish": "stop"}


SAMPLES = {
    "step": 11,
    "image": "/a.png",
    "question": "What is left of the " + "very " * 20 + "small circle?",
    "answers": [
        answer("A blue square.", 0.9, "Claim: a blue square.\nRight."),
        answer("A \x1b[31mred\nstar.", None, status="timeout"),
        answer("[bold]Nothing[/bold] " + "at all " * 20, 0.125, "Wrong. " * 20),
    ],
}


def test_a_table_fits_eighty_columns_and_has_no_terminal_sequences() -> None:
    title, head, *rows = format_samples(SAMPLES).splitlines()
    assert title.startswith("step 11: What is left of the very very")
    assert head.split() == ["reward", "answer", "(3", "of", "3)", "critique"]
    assert [row.split()[0] for row in rows] == ["0.900", "0.125", "timeout"]
    assert rows[0].split("  ")[-1] == "Claim: a blue square."
    assert rows[1].lstrip().startswith("0.125  [bold]Nothing[/bold] at all")
    assert rows[2].split()[1:] == ["A", "[31mred", "star."]
    assert max(map(len, format_samples(SAMPLES).splitlines())) <= 80


def test_without_critiques_there_is_no_column_for_them() -> None:
    _, head, row = format_samples(SAMPLES | {"answers": [answer("A star.", 1.0)]}).splitlines()
    assert (head.split(), row.split()) == (["reward", "answer", "(1", "of", "1)"], ["1.000", "A", "star."])


def test_the_best_and_the_worst_of_many_answers_are_shown() -> None:
    answers = [answer(f"{i}", i / 16) for i in range(16)]
    *_, first, second, third, last = format_samples(SAMPLES | {"answers": answers}).splitlines()
    assert [row.split()[1] for row in (first, second, third, last)] == ["15", "10", "5", "0"]


def test_an_evaluation_is_shown_with_its_warning() -> None:
    assert format_evaluation(evaluation(20)) == "evaluation after step 20: held-out 0.500, reward 0.250"
    assert format_evaluation(evaluation(0, value=None)) == "evaluation after step 0: held-out 0.500"
    text = format_evaluation(evaluation(20, image_reward_gain=-0.01, warning="the judge may ignore the image"))
    assert text.splitlines()[0].endswith("reward 0.250, of which the image adds -0.010")
    assert text.splitlines()[1] == "warning: the judge may ignore the image"


def test_lines_are_reported_once_and_again_only_if_written_again(paths: RunPaths) -> None:
    logger = logger_of(paths)
    logger.start(0, total_steps=9)
    logger.log_evaluation(evaluation(0))
    report = ConsoleReporter(paths)
    assert report() == [], "lines of an earlier call"
    logger.log_samples(1, rollout_batch((factories.rollout(),)))
    logger.log_evaluation(evaluation(2))
    logger.log_evaluation(evaluation(4))
    assert [text.split(":")[0] for text in report()] == ["step 1", "evaluation after step 2", "evaluation after step 4"]
    with paths.evaluations.open("a") as file:
        file.write('{"step": 6')
    assert report() == [], "an incomplete line"
    logger.start(2, total_steps=9)
    assert report() == []
    logger.log_evaluation(evaluation(4))
    assert [text.split(":")[0] for text in report()] == ["evaluation after step 4"]
