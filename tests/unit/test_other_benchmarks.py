"""VLRMBench, MMHal and LLaVA-Bench: official rules by hand, properties, and real rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_files import ours, real_rows, rules, score, write_lines
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReply, BenchmarkRole
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver
from vlgenrm_ray.evaluation.benchmarks.mmhal import TYPES, ratings_in
from vlgenrm_ray.evaluation.benchmarks.vlrmbench import VlrmBench, read_labels, weighted_f1

# -- VLRMBench ---------------------------------------------------------------------------------------------------------


def solution(id: str, labels: list[int]) -> dict[str, Any]:
    return {
        "id": id,
        "image": [f"{id}.jpg"],
        "question": "How many?",
        "step_list": [f"STEP{i + 1}: ...\n" for i in range(len(labels))],
        "task_gt": labels,
        "category": "location_error",
    }


SOLUTIONS = [solution("a", [0, 0, 1]), solution("b", [0, 1])]


def test_vlrmbench_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", SOLUTIONS)
    answers = [row | {"model_answer": text} for row, text in zip(SOLUTIONS, ["[0, 2, 1, 1]", "[0]"], strict=True)]
    result = score("vlrmbench", data, write_lines(tmp_path / "answers.jsonl", answers))
    # Read: a = 0 1 1 (2 counts as 1, the fourth is cut), b = 0 0 (filled up). Labels 0 0 1 0 1.
    # Wrong steps: tp 1, fp 1, fn 1: F1 1/2. Right steps: tp 2, fp 1, fn 1: F1 2/3.
    # w_pos = share of negatives 3/5, w_neg = 2/5: 0.4 * 2/3 + 0.6 * 1/2 = 0.5667.
    assert rules(result, "weighted F1")["official"] == pytest.approx(0.4 * 2 / 3 + 0.6 / 2)
    assert ours(result, "weighted F1") == pytest.approx(0.4 * 2 / 3 + 0.6 / 2)
    assert ours(result, "accuracy of steps") == 0.6
    # Never wrong: F1 of wrong steps 0, of right ones 2 * 3/5 / (8/5) = 3/4: 0.4 * 3/4.
    assert ours(result, "no step wrong") == pytest.approx(0.3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_weighted_f1_is_that_of_scikit_learn(rows: list[tuple[bool, bool]]) -> None:
    labels, answers = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    positive, negative = (f1_score(labels, answers, pos_label=p, zero_division=0.0) for p in (1, 0))
    share = labels.mean()
    assert weighted_f1(labels, answers) == pytest.approx(share * negative + (1 - share) * positive)


@given(st.text(max_size=40), st.integers(1, 8))
def test_any_answer_gives_one_label_per_step(answer: str, num_steps: int) -> None:
    labels = read_labels(answer, num_steps)
    assert len(labels) == num_steps
    assert set(labels) <= {0, 1}


def test_a_judge_marks_steps_that_it_rewards_below_one_half(tmp_path: Path) -> None:
    benchmark = VlrmBench()
    items = benchmark.read(write_lines(tmp_path / "data.jsonl", SOLUTIONS), ImageResolver(root="/data"))
    requests = benchmark.requests(items, BenchmarkRole.JUDGE, 0.0)
    assert [r.id for r in requests] == ["a/0", "a/1", "a/2", "b/0", "b/1"]
    assert requests[0].question == "How many?"
    assert requests[2].question == "How many?\nSteps so far:\nSTEP1: ...\nSTEP2: ..."
    rewards = [0.9, 0.8, 0.1, None, 0.2]
    replies = {r.id: BenchmarkReply(id=r.id, status="ok", reward=v) for r, v in zip(requests, rewards, strict=True)}
    predictions = benchmark.predictions(items, BenchmarkRole.JUDGE, replies)
    assert [p.labels for p in predictions] == [(0, 0, 1), (None, 1)]
    report = benchmark.score(items, predictions)
    assert report.counts == {"items": 2, "steps": 5, "unreadable": 1}
    assert report.metrics[0].rules["official"] == 1.0, "a missing step counts as 0"


def test_vlrmbench_refuses_labels_that_do_not_fit_the_steps(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", [solution("a", [0, 1]) | {"task_gt": [0]}])
    with pytest.raises(InputError, match="a has 2 steps and labels"):
        VlrmBench().read(data, ImageResolver(root="/data"))


def test_vlrmbench_reads_the_real_rows(tmp_path: Path) -> None:
    data = real_rows() / "location_error.jsonl"
    rows = [json.loads(line) for line in data.read_text().split("\n") if line]
    perfect = [{"id": row["id"], "model_answer": str(row["task_gt"])} for row in rows]
    result = score("vlrmbench", data, write_lines(tmp_path / "perfect.jsonl", perfect))
    assert (result["counts"]["items"], rules(result, "weighted F1")["official"]) == (126, 1.0)
    inverted = [row | {"model_answer": [1 - label for label in row["task_gt"]]} for row in rows]
    result = score("vlrmbench", data, write_lines(tmp_path / "inverted.jsonl", inverted))
    assert rules(result, "weighted F1")["official"] == 0.0


# -- MMHal -------------------------------------------------------------------------------------------------------------


def test_mmhal_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    data, answers = tmp_path / "data.json", tmp_path / "reviews.json"
    data.write_text(json.dumps([{"question": "What?", "image_id": f"i{i}"} for i in range(10)]))
    ratings = [
        "Rating: 6",
        "rating: 2",
        "Rating: 3, or Rating: 4",
        "none",
        *["RATING: 5"] * 4,
        "Rating: 0",
        "rating: 4",
    ]
    answers.write_text(json.dumps([{"choices": [{"message": {"content": text}}]} for text in ratings]))
    result = score("mmhal", data, answers)
    # Reviews 3 and 4 name two ratings and none: they rate 0. (6 + 2 + 0 + 0 + 4 * 5 + 0 + 4) / 10 = 3.2.
    # Below 3: 2, 0, 0, 0: rate 4/10. Type 0 (index mod 8): reviews 1 and 9: 6 and 0, mean 3.
    assert rules(result, "mean rating")["official"] == pytest.approx(3.2)
    assert rules(result, "hallucination rate")["official"] == pytest.approx(0.4)
    assert rules(result, "attribute")["official"] == 3.0
    assert list(result["groups"]) == list(TYPES)
    # ours leaves the two unreadable reviews out: 32 / 8 and 2 / 8.
    assert (ours(result, "mean rating"), ours(result, "hallucination rate")) == (4.0, 0.25)
    assert result["counts"] == {"items": 10, "unreadable": 2}


def test_mmhal_wants_one_review_per_question(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", [{"question": "What?"}] * 2)
    answers = write_lines(tmp_path / "reviews.jsonl", [{"review": "Rating: 6"}])
    with pytest.raises(InputError, match="1 reviews of 2 questions"):
        score("mmhal", data, answers)


@given(st.integers(0, 6), st.text(alphabet="abc .\n", max_size=20))
def test_a_rating_is_read_from_any_place_of_a_review(rating: int, around: str) -> None:
    assert ratings_in(f"{around}Rating: {rating}{around}") == (float(rating),)


def test_mmhal_reads_the_real_questions(tmp_path: Path) -> None:
    data = real_rows() / "mmhal-bench_answer_template.json"
    rows = [{"review": f"Rating: {i % 7}"} for i in range(96)]
    result = score("mmhal", data, write_lines(tmp_path / "reviews.jsonl", rows))
    assert rules(result, "mean rating")["official"] == pytest.approx(sum(i % 7 for i in range(96)) / 96)
    questions = json.loads(data.read_text())
    assert [row["question_type"] for row in questions[:8]] == list(TYPES)


# -- LLaVA-Bench -------------------------------------------------------------------------------------------------------


def test_llava_bench_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    categories = ["conv", "conv", "detail", "complex"]
    questions = [{"question_id": i, "image": f"{i % 2}.jpg", "category": c} for i, c in enumerate(categories)]
    data = write_lines(tmp_path / "questions.jsonl", questions)
    scores = [[8, 6], [9, 9], [10, 5], [-1, -1]]
    reviews = [{"question_id": i, "tuple": pair} for i, pair in enumerate(scores)]
    result = score("llava_bench", data, write_lines(tmp_path / "reviews.jsonl", reviews))
    # all: reference (8 + 9 + 10 - 1) / 4 = 6.5, model (6 + 9 + 5 - 1) / 4 = 4.75: 73.1. conv: 7.5 / 8.5 = 88.2.
    assert rules(result, "relative score")["official"] == 73.1
    assert (rules(result, "conv")["official"], rules(result, "detail")["official"]) == (88.2, 50.0)
    # ours leaves the failed review out: 20 / 27.
    assert ours(result, "relative score") == pytest.approx(100 * 20 / 27)
    assert result["counts"] == {"items": 4, "unreadable": 1}
