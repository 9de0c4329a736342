"""What a training tells while it goes on: tables of answers, and evaluations, as they are written."""

from pathlib import Path
from typing import Any

import factories
import pytest
from policy_examples import collected

from vlgenrm_ray.policy import news
from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.policy.news import News
from vlgenrm_ray.policy.reward import RewardConfig
from vlgenrm_ray.policy.run_logging import Journal
from vlgenrm_ray.policy.training_config import PolicyConfig


def answer(text: str, reward: float | None, critique: str = "", status: str = "ok") -> dict[str, Any]:
    return {"text": text, "reward": reward, "status": status, "critique": critique, "finish": "stop"}


def evaluation(step: int, **over: Any) -> dict[str, Any]:
    return {"step": step, "held_out": 0.5, "value": 0.5, "reward": 0.25, "sight": None, "doubt": ""} | over


LINE = {
    "step": 11,
    "image": "/a.png",
    "question": "What is left of the " + "very " * 20 + "small circle?",
    "answers": [
        answer("A blue square.", 0.9, "Claim: a blue square.\nRight."),
        answer("A \x1b[31mred\nstar.", None, status="timeout"),
        answer("[bold]Nothing[/bold] " + "at all " * 20, 0.125, "Wrong. " * 20),
    ],
}


def test_a_table_fits_eighty_columns_and_says_nothing_a_terminal_obeys() -> None:
    title, head, *rows = news.samples(LINE).splitlines()
    assert title.startswith("step 11: What is left of the very very")
    assert head.split() == ["reward", "answer", "(3", "of", "3)", "critique"]
    assert [row.split()[0] for row in rows] == ["0.900", "0.125", "timeout"]
    assert rows[0].split("  ")[-1] == "Claim: a blue square."
    assert rows[1].lstrip().startswith("0.125  [bold]Nothing[/bold] at all")
    assert rows[2].split()[1:] == ["A", "[31mred", "star."]
    assert max(map(len, news.samples(LINE).splitlines())) <= 80


def test_without_critiques_there_is_no_column_of_them() -> None:
    _, head, row = news.samples(LINE | {"answers": [answer("A star.", 1.0)]}).splitlines()
    assert (head.split(), row.split()) == (["reward", "answer", "(1", "of", "1)"], ["1.000", "A", "star."])


def test_of_many_answers_the_best_and_the_worst_are_among_those_shown() -> None:
    answers = [answer(f"{i}", i / 16) for i in range(16)]
    *_, first, second, third, last = news.samples(LINE | {"answers": answers}).splitlines()
    assert [row.split()[1] for row in (first, second, third, last)] == ["15", "10", "5", "0"]


def test_an_evaluation_says_what_is_known_and_what_to_doubt() -> None:
    assert news.evaluation(evaluation(20)) == "evaluation after step 20: held-out 0.500, reward 0.250"
    assert news.evaluation(evaluation(0, value=None)) == "evaluation after step 0: held-out 0.500"
    told = news.evaluation(evaluation(20, sight=-0.01, doubt="the judge may not look"))
    assert told.splitlines()[0].endswith("reward 0.250, of which the picture adds -0.010")
    assert told.splitlines()[1] == "warning: the judge may not look"


@pytest.fixture
def job(tmp_path: Path) -> PolicyJob:
    config = PolicyConfig(rewards=(RewardConfig(function="a:b"),), trackers=())
    return PolicyJob(config=config, base=tmp_path, target=tmp_path, collector="c")


def test_news_are_told_once_and_again_only_where_they_are_made_again(job: PolicyJob) -> None:
    journal = Journal(job, writes=True)
    journal.begin(0, steps=9)
    journal.evaluation(evaluation(0))
    told = News(job)
    assert told() == [], "of an earlier call"
    journal.samples(1, collected((factories.rollout(),)))
    journal.evaluation(evaluation(2))
    journal.evaluation(evaluation(4))
    assert [text.split(":")[0] for text in told()] == ["step 1", "evaluation after step 2", "evaluation after step 4"]
    with job.evaluations.open("a") as out:
        out.write('{"step": 6')
    assert told() == [], "not whole yet"
    journal.begin(2, steps=9)
    assert told() == []
    journal.evaluation(evaluation(4))
    assert [text.split(":")[0] for text in told()] == ["evaluation after step 4"]
