"""POPE, HallusionBench and AMBER: official rules on small files by hand, properties, and real stored answers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_files import ours, real_rows, rules, score, write_lines
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmark_run import BenchmarkTask, score_answers
from vlgenrm_ray.evaluation.benchmarks.amber import official_scores
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReply, BenchmarkRole
from vlgenrm_ray.evaluation.benchmarks.pope import Pope, read_verdict
from vlgenrm_ray.evaluation.benchmarks.yes_no_questions import (
    YesNoPrediction,
    YesNoQuestion,
    as_numbers,
    classification,
    read_like_vlmevalkit,
    read_plainly,
)

# -- readings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No, there is no dog.", "no"),
        ("There is not a dog", "no"),
        ("A dog is there. No cat.", "yes"),
        ("There is a dog, no, a cat.", "no"),
        ("NO dog", "yes"),
        ("Nothing", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_the_first_sentence(answer: str, verdict: str) -> None:
    assert read_verdict(answer) == verdict


@pytest.mark.parametrize(
    ("answer", "kit", "plain"),
    [
        ("Yes, there is a dog.", True, True),
        ("No.", False, False),
        ("**No**", None, False),
        ("yes/no", None, True),
        ("The answer is no", False, False),
        ("No, yes", None, False),
        ("I cannot tell", None, None),
        ("", None, None),
    ],
)
def test_vlmevalkit_reads_words_and_ours_the_first_word(answer: str, kit: bool | None, plain: bool | None) -> None:
    assert read_like_vlmevalkit(answer) is kit
    assert read_plainly(answer) is plain


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_classification_agrees_with_scikit_learn(rows: list[tuple[bool, bool]]) -> None:
    labels, answers = as_numbers([label for label, _ in rows]), as_numbers([answer for _, answer in rows])
    expected = precision_recall_fscore_support(labels, answers, average="binary", zero_division=0.0)[:3]
    metrics = classification(labels, answers)
    assert np.array([metrics.precision, metrics.recall, metrics.f1]).ravel() == pytest.approx(expected)
    doubled = classification(labels, answers, np.full((1, len(labels)), 2.0))
    assert doubled.f1 == pytest.approx(metrics.f1)


# -- POPE --------------------------------------------------------------------------------------------------------------


def pope_question(i: int, label: object, image: str = "x.jpg") -> dict[str, Any]:
    return {"question_id": i, "image": image, "text": "Is there a dog in the image?", "label": label}


def pope_result(tmp_path: Path, labels: list[str], answers: list[str]) -> dict[str, Any]:
    data = write_lines(tmp_path / "data.json", [pope_question(i, label) for i, label in enumerate(labels)])
    rows = [{"question_id": i, "text": text} for i, text in enumerate(answers)]
    return score("pope", data, write_lines(tmp_path / "answers.jsonl", rows))


def test_pope_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    # label yes: "Yes." right, "No." wrong, "A dog." is yes by the official rule, unreadable for the others.
    # label no: "yes" wrong, "no" right.
    result = pope_result(tmp_path, ["yes", "yes", "yes", "no", "no"], ["Yes.", "No.", "A dog.", "yes", "no"])
    # official: tp 2, fp 1, fn 1, tn 1: accuracy 3/5, precision 2/3, recall 2/3, F1 2/3, yes 3/5.
    # lmms-eval compares whole answers: only "yes" and "no" are answers; the first is wrong, the second right: 1/5.
    # VLMEvalKit: "A dog." is neither: accuracy 2/5; tp 1, fp 1, fn 2: precision 1/2, recall 1/3, F1 2/5.
    assert rules(result, "accuracy") == {"official": 0.6, "lmms-eval": 0.2, "VLMEvalKit": 0.4}
    assert rules(result, "F1") == pytest.approx({"official": 2 / 3, "lmms-eval": 0.0, "VLMEvalKit": 0.4})
    assert rules(result, "recall") == pytest.approx({"official": 2 / 3, "lmms-eval": 0.0, "VLMEvalKit": 1 / 3})
    assert rules(result, "yes ratio") == {"official": 0.6, "lmms-eval": 0.6}
    # ours: right, wrong, undecided, wrong, right: 2.5 / 5.
    assert ours(result, "accuracy") == 0.5
    assert (ours(result, "always yes"), ours(result, "always no")) == (0.6, 0.4)
    assert result["counts"] == {"items": 5, "ties": 0, "unreadable": 1}


@pytest.mark.parametrize(("yes", "no"), [("Yes", "No"), (1, 0), ("1", "0"), (True, False)])
def test_pope_reads_labels_of_any_spelling(yes: object, no: object, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.json", [pope_question(i, label) for i, label in enumerate([yes, no, no])])
    answers = [{"question_id": i, "text": text} for i, text in enumerate(["yes", "no", "yes"])]
    result = score("pope", data, write_lines(tmp_path / "answers.jsonl", answers))
    assert rules(result, "accuracy")["official"] == pytest.approx(2 / 3)
    assert rules(result, "precision")["official"] == 0.5


def test_pope_answers_without_ids_are_matched_by_their_order(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.json", [pope_question(i, label) for i, label in enumerate(["yes", "no"])])
    rows = [{"question": "Is there a dog in the image?", "answer": answer} for answer in ("yes", "no")]
    assert rules(score("pope", data, write_lines(tmp_path / "a.jsonl", rows)), "accuracy")["official"] == 1.0
    with pytest.raises(InputError, match="1 answers without `question_id` to 2 questions"):
        score("pope", data, write_lines(tmp_path / "a.jsonl", rows[:1]))


def test_pope_reads_the_table_of_vlmevalkit(tmp_path: Path) -> None:
    data, answers = tmp_path / "POPE.tsv", tmp_path / "answers.tsv"
    data.write_text(
        "index\timage\tquestion\tanswer\tcategory\n0\tx.jpg\tIs it?\tYes\tpopular\n1\tx.jpg\tIs it?\tNo\trandom\n"
    )
    answers.write_text("index\tprediction\n1\tno.\n0\tno.\n")
    result = score("pope", data, answers)
    assert rules(result, "accuracy")["official"] == 0.5
    assert [rules(result, name)["official"] for name in ("popular", "random")] == [0.0, 1.0]


def test_pope_gives_the_published_values_on_stored_answers() -> None:
    rows = real_rows()
    result = score("pope", rows / "coco_pope_random.json", rows / "pope_random_answers.jsonl")
    values = tuple(round(rules(result, name)["official"], 4) for name in ("accuracy", "F1", "yes ratio"))  # type: ignore[arg-type]
    assert values == (0.8957, 0.8969, 0.5123)
    assert result["metrics"]["accuracy"]["ours"]["ci95"] == pytest.approx([0.884, 0.906], abs=0.005)


def test_a_judge_answers_with_the_response_it_rewards_more() -> None:
    benchmark = Pope()
    items = [
        YesNoQuestion(id=id, question="Is there a dog?", images=("x.jpg",), is_yes=True, cluster="x") for id in "abcd"
    ]
    requests = benchmark.requests(items, BenchmarkRole.JUDGE, 0.0)
    assert [(r.id, r.response) for r in requests[:2]] == [("a/Yes", "Yes"), ("a/No", "No")]
    rewards = {
        "a/Yes": 0.9,
        "a/No": 0.1,
        "b/Yes": 0.2,
        "b/No": 0.3,
        "c/Yes": 0.5,
        "c/No": 0.5,
        "d/Yes": None,
        "d/No": 1,
    }
    replies = {id: BenchmarkReply(id=id, status="ok", reward=reward) for id, reward in rewards.items()}
    predictions = benchmark.predictions(items, BenchmarkRole.JUDGE, replies)
    assert [(p.text, p.is_tied) for p in predictions] == [("Yes", False), ("No", False), ("", True), ("", False)]
    report = benchmark.score(items, predictions)
    # right, wrong, tie 1/2, unreadable 1/2
    assert report.main == 0.5
    assert report.counts == {"items": 4, "ties": 1, "unreadable": 1}


def test_a_policy_is_asked_the_question_also_without_the_image() -> None:
    benchmark = Pope()
    items = [YesNoQuestion(id="a", question="Is there a dog?", images=("x.jpg",), is_yes=False, cluster="x")]
    with_image, without_image = benchmark.requests(items, BenchmarkRole.POLICY, 1.0)
    assert (with_image.id, with_image.response, with_image.is_blank) == ("a", None, False)
    assert (without_image.id, without_image.is_blank) == ("a/no-image", True)
    replies = {
        "a": BenchmarkReply(id="a", status="ok", text="No."),
        "a/no-image": BenchmarkReply(id="a/no-image", status="ok", text="Yes."),
    }
    predictions = benchmark.predictions(items, BenchmarkRole.POLICY, replies)
    report = benchmark.score(items, predictions).as_json()
    assert (ours(report, "accuracy"), ours(report, "no image")) == (1.0, 0.0)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["Yes.", "No", "no dog", "maybe", ""])), min_size=1), st.data()
)
def test_the_order_of_questions_does_not_change_yes_no_scores(
    rows: list[tuple[bool, str]], data: st.DataObject
) -> None:
    items = [
        YesNoQuestion(id=str(i), question="q", images=(), is_yes=is_yes, cluster=str(i))
        for i, (is_yes, _) in enumerate(rows)
    ]
    predictions = [YesNoPrediction(text=text) for _, text in rows]
    order = data.draw(st.permutations(range(len(rows))))
    first = Pope().score(items, predictions)
    second = Pope().score([items[i] for i in order], [predictions[i] for i in order])
    for row, other in zip(first.metrics, second.metrics, strict=True):
        assert row.rules == pytest.approx(other.rules), row.name
    assert first.main == pytest.approx(second.main)


# -- HallusionBench ----------------------------------------------------------------------------------------------------


def figure_question(category: str, set_id: int, figure: int, question: int, answer: str) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": "0" if category == "VS" and figure == 0 else "1",
        "set_id": str(set_id),
        "figure_id": str(figure),
        "question_id": str(question),
        "question": "Is A larger than B?",
        "gt_answer": answer,
        "filename": None if category == "VS" and figure == 0 else f"./{category}/{set_id}_{figure}.png",
    }


FIGURE_QUESTIONS = [
    # (question, answer, check by GPT-4)
    (figure_question("VS", 0, 0, 0, "1"), "I cannot know without the chart", "2"),
    (figure_question("VS", 0, 1, 0, "1"), "Yes", "1"),
    (figure_question("VS", 0, 1, 1, "0"), "Yes", "0"),
    (figure_question("VD", 1, 0, 0, "1"), "Yes", "1"),
    (figure_question("VD", 1, 1, 0, "0"), "It is unclear", "2"),
]


def hallusion_result(tmp_path: Path, *, checked: bool) -> dict[str, Any]:
    data, answers = tmp_path / "data.json", tmp_path / "answers.json"
    data.write_text(json.dumps([question for question, _, _ in FIGURE_QUESTIONS]))
    rows = [
        question | {"model_prediction": answer} | ({"gpt4v_output_gpt_check": check} if checked else {})
        for question, answer, check in FIGURE_QUESTIONS
    ]
    answers.write_text(json.dumps(rows))
    return score("hallusionbench", data, answers)


def test_hallusionbench_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    result = hallusion_result(tmp_path, checked=True)
    # official: right are the first (unclear without a figure), second and fourth: aAcc 3/5.
    # Figures, VS figure 0 left out: VS_0_1 (right, wrong) no, VD_1_0 yes, VD_1_1 no: fAcc 1/3.
    # Question pairs: VS_0_q0 (right, right) yes, VS_0_q1 no, VD_1_q0 (right, wrong) no: qAcc 1/3.
    # Easy (figure 0): VS_0_q0 yes, VD_1_q0 yes. Hard: VS_0_q0 yes, VS_0_q1 no, VD_1_q0 no.
    assert [round(rules(result, name)["official"], 4) for name in ("aAcc", "fAcc", "qAcc")] == [0.6, 0.3333, 0.3333]  # type: ignore[arg-type]
    assert rules(result, "easy questions")["official"] == 1.0
    assert rules(result, "hard questions")["official"] == pytest.approx(1 / 3)
    # Others use the four questions with a figure; without "yes" lmms-eval reads no, which is right for the last one,
    # where VLMEvalKit reads nothing: 3/4 and 2/4.
    assert rules(result, "aAcc") == pytest.approx({"official": 0.6, "lmms-eval": 0.75, "VLMEvalKit": 0.5})
    assert result["notes"] == []


def test_hallusionbench_without_checks_says_that_answers_were_read_by_words(tmp_path: Path) -> None:
    result = hallusion_result(tmp_path, checked=False)
    assert rules(result, "aAcc")["official"] == 0.6
    assert "GPT-4 is not in the answers" in result["notes"][0]


def test_hallusionbench_scores_the_real_answers() -> None:
    folder = real_rows() / "hallusionbench"
    task = BenchmarkTask(name="hallusionbench", data=folder / "HallusionBench.json")
    answers = folder / "HallusionBench_result_sample.json"
    with pytest.raises(InputError, match="875 of 1129 questions have no answer"):
        score_answers(task, answers)
    result = score_answers(task, answers, allow_missing=True).as_json()
    # Counted by a few lines over the same rows, written for this test: `independent_counts` below.
    expected = independent_counts(json.loads(task.data.read_text()), json.loads(answers.read_text()))
    assert {name: rules(result, name)["official"] for name in expected} == pytest.approx(expected)


def independent_counts(questions: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, float]:
    """Count aAcc, fAcc and qAcc by dictionaries, from the words of the answers."""
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    truth = {tuple(row[name] for name in names): row["gt_answer"] == "1" for row in questions}
    right, by_figure, pairs = [], {}, {}
    for row in answers:
        key = tuple(row[name] for name in names)
        reading = read_plainly(row["model_prediction"])
        without_figure = key[0] == "VS" and key[3] == "0"
        is_right = without_figure if reading is None else reading == truth[key]
        right.append(is_right)
        if not without_figure:
            by_figure[key[:4]] = by_figure.get(key[:4], True) and is_right
        pair = (*key[:3], key[4])
        pairs[pair] = pairs.get(pair, True) and is_right
    return {
        "aAcc": sum(right) / len(right),
        "fAcc": sum(by_figure.values()) / len(by_figure),
        "qAcc": sum(pairs.values()) / len(pairs),
    }


# -- AMBER -------------------------------------------------------------------------------------------------------------


def test_amber_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    annotations = [
        {"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
        {"id": 2, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
        {"id": 6, "type": "discriminative-relation", "truth": "yes"},
    ]
    responses = ["No", "Yes", "Yes", "no", "No"]
    data, answers = tmp_path / "annotations.json", tmp_path / "answers.json"
    data.write_text(json.dumps(annotations))
    answers.write_text(json.dumps([{"id": i + 2, "response": text} for i, text in enumerate(responses)]))
    result = score("amber", data, answers)
    # Right: ids 2 and 4; "no" of id 5 is not exactly "No". accuracy 2 / 5.001 = 39.992 -> 40.0.
    # Answers "No": ids 2, 6, of which 2 is right: precision 1 / 2.001 -> 50.0. Label no: ids 2, 3, 5: recall 1 / 3.001
    # -> 33.3. F1 = 2 * 0.5 * 0.333 / (0.5 + 0.333 + 0.0001) = 0.39971 -> 40.0.
    official = {name: rules(result, name)["official"] for name in ("accuracy", "precision", "recall", "F1")}
    assert official == {"accuracy": 40.0, "precision": 50.0, "recall": 33.3, "F1": 40.0}
    # Existence: ids 2, 3: accuracy 1 / 2.001 -> 50.0, precision 1 / 1.001 -> 99.9, recall 1 / 2.001 -> 50.0,
    # F1 = 2 * 0.999 * 0.5 / (0.999 + 0.5 + 0.001) = 0.666 -> 66.6.
    assert rules(result, "F1 existence")["official"] == 66.6
    # VLMEvalKit reads "no": existence 1/2, attribute 2/2, relation 0/1: mean 50.
    assert rules(result, "mean accuracy of the kinds")["VLMEvalKit"] == 50.0
    # ours: right, wrong, right, right, wrong
    assert ours(result, "accuracy") == 0.6


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([1.0, 0.0, math.nan])), min_size=1, max_size=40))
def test_an_answer_that_is_not_exactly_yes_or_no_is_never_right_in_amber(rows: list[tuple[bool, float]]) -> None:
    labels = as_numbers([label for label, _ in rows])
    answers = np.array([answer for _, answer in rows])
    accuracy, *_ = official_scores(labels, answers, 0.0001)
    num_right = sum(answer == label for label, answer in rows)
    assert accuracy == round(num_right / (0.001 + len(rows)) * 100, 1)
