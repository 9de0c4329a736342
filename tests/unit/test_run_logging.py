import json
from pathlib import Path
from typing import Any

import factories
import pytest
from policy_examples import collected

from vlgenrm_ray.data.store import read_json
from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.policy.reward import RewardConfig
from vlgenrm_ray.policy.run_logging import Journal, read_lines
from vlgenrm_ray.policy.training_config import PolicyConfig


@pytest.fixture
def job(tmp_path: Path) -> PolicyJob:
    config = PolicyConfig(rewards=(RewardConfig(function="a:b"),), trackers=())
    return PolicyJob(config=config, base=tmp_path, target=tmp_path, collector="c")


def written(job: PolicyJob, steps: int) -> Journal:
    """Of a training that evaluates and shows samples at each step."""
    journal = Journal(job, writes=True)
    journal.begin(0, steps=9)
    journal.evaluation(evaluation(0, 0.5))
    for step in range(1, steps + 1):
        journal.step({"step": step})
        journal.samples(step, collected((factories.rollout(),)))
        journal.evaluation(evaluation(step, 0.5))
    return journal


def evaluation(step: int, held_out: float) -> dict[str, Any]:
    return {"step": step, "held_out": held_out}


def steps_of(path: Path) -> list[int]:
    return [line["step"] for line in read_lines(path)]


def test_lines_after_a_checkpoint_are_forgotten_and_those_before_it_stay(job: PolicyJob) -> None:
    journal = written(job, 4)
    journal.begin(2, steps=9)
    assert steps_of(job.metrics) == steps_of(job.samples) == [1, 2]
    assert steps_of(job.evaluations) == [0, 1, 2]
    assert read_json(job.plan) == {"steps": 9}
    journal.step({"step": 3})
    assert steps_of(job.metrics) == [1, 2, 3]


def test_a_training_that_begins_anew_has_no_lines_and_no_best(job: PolicyJob) -> None:
    journal = written(job, 2)
    journal.best(evaluation(1, 0.5))
    journal.begin(0, steps=9)
    assert steps_of(job.metrics) == steps_of(job.samples) == steps_of(job.evaluations) == []
    assert journal.is_best(evaluation(0, -1.0))


def test_a_line_that_its_writer_did_not_finish_is_no_line(job: PolicyJob) -> None:
    journal = written(job, 2)
    with job.metrics.open("a") as out:
        out.write('{"step": 3, "rew')
    assert steps_of(job.metrics) == [1, 2]
    journal.begin(2, steps=9)
    assert job.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_best_is_above_all_before_it_even_those_that_are_done_again(job: PolicyJob) -> None:
    journal = written(job, 4)
    assert journal.is_best(evaluation(0, 0.5))
    journal.best(evaluation(4, 0.75))
    # What is exported is of step 4, wherever the training goes on.
    journal.begin(2, steps=9)
    assert not journal.is_best(evaluation(4, 0.75))
    assert journal.is_best(evaluation(4, 0.8))
    assert read_json(job.best_evaluation) == evaluation(4, 0.75)


def test_a_sample_table_has_all_of_a_questions_answers(job: PolicyJob) -> None:
    answers = (
        factories.rollout("q0/s0/r0", text="Yes.", critique="Right."),
        factories.rollout("q0/s0/r1", text="No.", reward=None, status="timeout"),
    )
    Journal(job, writes=True).samples(1, collected(answers, (factories.rollout("q1/s0/r0"),)))
    (line,) = read_lines(job.samples)
    question = answers[0].question
    assert (line["step"], line["image"], line["question"]) == (1, question.image.uri, question.text)
    assert [(a["text"], a["reward"], a["status"], a["critique"]) for a in line["answers"]] == [
        ("Yes.", 0.75, "ok", "Right."),
        ("No.", None, "timeout", ""),
    ]


def test_the_end_says_how_far_it_came_and_why_no_farther(job: PolicyJob) -> None:
    Journal(job, writes=True).end(steps=4, stopped="reward hacking")
    assert json.loads(job.result.read_text()) == {"steps": 4, "stopped": "reward hacking"}


def test_other_workers_write_nothing(job: PolicyJob, tmp_path: Path) -> None:
    journal = Journal(job, writes=False)
    journal.begin(0, steps=9)
    journal.step({"step": 1})
    journal.samples(1, collected((factories.rollout(),)))
    journal.evaluation(evaluation(1, 0.5))
    journal.best(evaluation(1, 0.5))
    journal.end(steps=1, stopped="")
    assert list(tmp_path.iterdir()) == []
