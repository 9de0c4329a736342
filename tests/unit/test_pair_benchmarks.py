"""VL-RewardBench, MM-RLHF-RewardBench and Multimodal RewardBench: official rules by hand, properties, real rows."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_files import ours, real_rows, rules, score, write_lines
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReply, BenchmarkRole
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver, read_rows
from vlgenrm_ray.evaluation.benchmarks.mm_rlhf_rewardbench import MmRlhfRewardBench
from vlgenrm_ray.evaluation.benchmarks.multimodal_rewardbench import MultimodalRewardBench
from vlgenrm_ray.evaluation.benchmarks.response_pairs import (
    Outcome,
    PairBenchmark,
    PairPrediction,
    ResponsePair,
    Vote,
    outcome_of_rewards,
)
from vlgenrm_ray.evaluation.benchmarks.vl_rewardbench import VlRewardBench, majority

ANYWHERE = ImageResolver(root="/data")
PAIR_BENCHMARKS: list[tuple[PairBenchmark, str]] = [
    (VlRewardBench(), "general"),
    (MmRlhfRewardBench(), "mcq"),
    (MultimodalRewardBench(), "knowledge"),
]
"""Each with one of its groups."""


def pair(id: str, *, better: int = 0, group: str = "general", key: str = "", cluster: str = "") -> ResponsePair:
    return ResponsePair(
        id=id,
        key=key or id,
        question="What is it?",
        images=("/data/x.jpg",),
        responses=("a short one", "another and longer one"),
        better=better,
        group=group,
        cluster=cluster or id,
    )


# -- rules that all share ----------------------------------------------------------------------------------------------


def test_a_tie_of_rewards_is_neither_right_nor_wrong_but_official_rules_count_it_wrong() -> None:
    assert outcome_of_rewards(pair("a"), (0.5, 0.5)) is Outcome.TIE
    assert outcome_of_rewards(pair("a", better=1), (0.4, 0.5)) is Outcome.RIGHT
    assert outcome_of_rewards(pair("a"), (0.4, None)) is Outcome.UNREADABLE
    predictions = [PairPrediction(votes=(Vote(outcome=o),)) for o in (Outcome.RIGHT, Outcome.TIE)]
    for benchmark, group in PAIR_BENCHMARKS:
        items = [pair("a", group=group), pair("b", group=group)]
        report = benchmark.score(items, predictions)
        assert report.metrics[0].rules["official"] == 0.5, benchmark
        assert report.main == 0.75, "ours counts a tie one half"


def test_only_vl_rewardbench_leaves_unreadable_pairs_out() -> None:
    predictions = [PairPrediction(votes=(Vote(outcome=o),)) for o in (Outcome.RIGHT, Outcome.UNREADABLE)]
    scores = []
    for benchmark, group in PAIR_BENCHMARKS:
        items = [pair("a", group=group), pair("b", group=group, better=1)]
        scores.append(benchmark.score(items, predictions).metrics[0].rules["official"])
    # Multimodal RewardBench tosses the first coin of seed 123, 0.052: A, but the second pair's better one is B.
    assert random.Random(123).random() < 0.5
    assert scores == [1.0, 0.5, 0.5]


votes_strategy = st.lists(
    st.builds(Vote, outcome=st.sampled_from(Outcome), first=st.sampled_from([0, 1])), min_size=1, max_size=5
)


@given(
    st.lists(st.tuples(votes_strategy, st.integers(0, 1), st.sampled_from(["hallucination", "general"])), min_size=1),
    st.data(),
)
def test_the_order_of_pairs_does_not_change_scores(rows: list[Any], data: st.DataObject) -> None:
    items = [pair(str(i), better=better, group=group) for i, (_, better, group) in enumerate(rows)]
    predictions = [PairPrediction(votes=tuple(votes)) for votes, _, _ in rows]
    order = data.draw(st.permutations(range(len(rows))))
    first = VlRewardBench().score(items, predictions)
    second = VlRewardBench().score([items[i] for i in order], [predictions[i] for i in order])
    for row, other in zip((*first.metrics, *first.groups), (*second.metrics, *second.groups), strict=True):
        assert row.rules == pytest.approx(other.rules), row.name
        assert row.ours is not None
        assert other.ours is not None
        assert row.ours.value == pytest.approx(other.ours.value, nan_ok=True)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.booleans())
def test_one_unreadable_judgement_takes_the_whole_item_out(rights: list[bool], readable: bool) -> None:
    votes = [Vote(outcome=Outcome.RIGHT if right else Outcome.WRONG) for right in rights]
    if readable:
        num_right = sum(rights)
        expected = None if 2 * num_right == len(rights) else float(2 * num_right > len(rights))
        assert majority(votes) == expected
    else:
        assert majority([*votes, Vote(outcome=Outcome.UNREADABLE)]) is None


def test_swapping_the_responses_of_every_item_changes_no_score_of_a_pointwise_judge() -> None:
    rewards = [(0.9, 0.1), (0.2, 0.7), (0.5, 0.5), (None, 0.4)]
    items = [pair(str(i), better=i % 2) for i in range(4)]
    swapped = [
        ResponsePair(
            **{name: getattr(item, name) for name in ("id", "key", "question", "images", "group", "cluster")},
            responses=item.responses[::-1],
            better=1 - item.better,
        )
        for item in items
    ]
    straight_votes = [Vote(outcome=outcome_of_rewards(item, r)) for item, r in zip(items, rewards, strict=True)]
    swapped_votes = [Vote(outcome=outcome_of_rewards(item, r[::-1])) for item, r in zip(swapped, rewards, strict=True)]
    assert straight_votes == swapped_votes


def test_a_pairwise_judge_is_asked_in_both_orders_and_its_position_bias_is_shown() -> None:
    benchmark = VlRewardBench()
    items = [pair("a"), pair("b", better=1)]
    requests = benchmark.requests(items, BenchmarkRole.PAIRWISE_JUDGE, 0.0)
    assert [(r.id, r.response, r.other) for r in requests[:2]] == [
        ("a/0", "a short one", "another and longer one"),
        ("a/1", "another and longer one", "a short one"),
    ]
    # A judge that always prefers what it sees first.
    replies = {r.id: BenchmarkReply(id=r.id, status="ok", reward=1.0) for r in requests}
    predictions = benchmark.predictions(items, BenchmarkRole.PAIRWISE_JUDGE, replies)
    result = benchmark.score(items, predictions).as_json()
    assert (ours(result, "better first"), ours(result, "better second")) == (1.0, 0.0)
    assert ours(result, "both orders agree") == 0.0
    assert ours(result, "overall accuracy") == 0.5
    assert result["counts"]["left out by the official rule"] == 2, "one of two judgements is no majority"


def test_blind_baselines_of_pairs() -> None:
    items = [pair("a"), pair("b", better=1), pair("c")]
    blind = (Vote(outcome=Outcome.TIE),)
    predictions = [PairPrediction(votes=(Vote(outcome=Outcome.RIGHT),), without_image=blind)] * 3
    result = MultimodalRewardBench().score(items, predictions).as_json()
    names = ("shorter", "longer", "first in the file", "no image")
    assert [round(ours(result, name), 4) for name in names] == [0.6667, 0.3333, 0.6667, 0.5]


# -- VL-RewardBench ----------------------------------------------------------------------------------------------------


def reward_item(id: str, ranking: list[int], query: str = "What?", first: str = "one") -> dict[str, Any]:
    return {
        "id": id,
        "query": f"<image>\n{query}",
        "response": [first, "another"],
        "human_ranking": ranking,
        "image": f"images/{id}.png",
    }


REWARD_ITEMS = [
    reward_item("hallucination_pair-1", [0, 1]),
    reward_item("RLAIF-2", [1, 0]),
    reward_item("mathverse_3", [0, 1]),
    reward_item("wildvision-4", [0, 1]),
    # A repeated id with another query is another item.
    reward_item("wildvision-4", [0, 1], query="Where?"),
    reward_item("wildvision-5", [0, 1]),
]


def test_vl_rewardbench_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps(REWARD_ITEMS))
    rewards = [[0.9, 0.1], [0.2, 0.7], [0.5, 0.5], [0.1, 0.6], [0.8, 0.3], [None, 0.3]]
    answers = write_lines(
        tmp_path / "answers.jsonl",
        [{"id": row["id"], "rewards": r} for row, r in zip(REWARD_ITEMS, rewards, strict=True)],
    )
    result = score("vl_rewardbench", data, answers)
    # right, right, tie, wrong, right, unreadable. The official rule leaves the last out and counts the tie wrong:
    # overall 3/5; hallucination 2/2, reasoning 0/1, general 1/2; macro (1 + 0 + 1/2) / 3 = 1/2.
    assert rules(result, "overall accuracy") == {"official": 0.6, "VLMEvalKit": 0.5}
    # VLMEvalKit: the unreadable one is wrong: general 1/3, macro 4/9. lmms-eval tosses a coin for it and the tie:
    # general 1.5/3, reasoning 1/2, macro (1 + 1/2 + 1/2) / 3 = 2/3.
    expected = {"official": 0.5, "lmms-eval": 2 / 3, "VLMEvalKit": 4 / 9}
    assert rules(result, "macro accuracy") == pytest.approx(expected)
    assert ours(result, "overall accuracy") == pytest.approx(4 / 6)
    assert ours(result, "first in the file") == pytest.approx(5 / 6)
    assert result["counts"]["left out by the official rule"] == 1


def call(item: dict[str, Any], first: int, text: str) -> dict[str, Any]:
    """One line of the official script's output."""
    return {
        "id": item["id"],
        "query": item["query"],
        "response": item["response"],
        "ranking": item["human_ranking"],
        "meta": {"filter_choice": text, "random_number": first},
    }


def test_vl_rewardbench_reads_the_official_scripts_output(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps(REWARD_ITEMS[:2]))
    first, second = REWARD_ITEMS[:2]
    lines = [
        # Shown as (one, another), Answer 1 is the better one; shown swapped, Answer 2 is.
        call(first, 0, "...\n**Overall Judgment**: Answer 1 is better."),
        call(first, 1, "Therefore, Answer 2 is slightly better"),
        call(first, 1, "Overall Judgment: Answer 1 is the better one"),
        # The second item's better response is the second.
        call(second, 0, "Overall Judgment: Answer 1 is better"),
        call(second, 1, "Overall Judgment: Answer 2 is better"),
        call(second, 0, "overall judgment: answer 2 is better"),
    ]
    result = score("vl_rewardbench", data, write_lines(tmp_path / "answers.jsonl", lines))
    # First item: right, right, wrong: right. Second: wrong, wrong, right: wrong.
    assert rules(result, "overall accuracy")["official"] == 0.5
    assert result["counts"]["votes"] == 6
    assert {name for name in result["metrics"] if "k = " in name} >= {"overall, k = 1", "macro, k = 9"}
    assert rules(result, "overall, k = 3")["official"] == 0.5
    # In the file's order the better one was shown first in calls 1 and 5 (right, wrong), and second in the others.
    assert ours(result, "better first") == pytest.approx(np.mean([1, 0]))
    lines[0]["meta"]["filter_choice"] = "I cannot decide"
    result = score("vl_rewardbench", data, write_lines(tmp_path / "answers.jsonl", lines))
    assert rules(result, "overall accuracy")["official"] == 0.0, "the first item is left out"


def test_the_first_k_judgements_are_those_of_the_official_shuffle(tmp_path: Path) -> None:
    chance = random.Random(0)
    items = [reward_item(f"wildvision-{i}", chance.choice([[0, 1], [1, 0]])) for i in range(20)]
    lines = [
        call(item, chance.choice([0, 1]), f"Overall Judgment: Answer {chance.choice([1, 2])} is better")
        for item in items
        for _ in range(10)
    ]
    chance.shuffle(lines)
    data = tmp_path / "data.json"
    data.write_text(json.dumps(items))
    result = score("vl_rewardbench", data, write_lines(tmp_path / "answers.jsonl", lines))
    generator = random.Random(1234)
    for k in (1, 3, 5, 7, 9):
        order = list(lines)
        for i in range(len(order)):
            j = generator.randint(0, len(order) - 1)
            order[i], order[j] = order[j], order[i]
        agreements: dict[str, list[bool]] = {}
        for line in order:
            rejected = line["ranking"].index(1 - line["meta"]["random_number"]) + 1
            votes = agreements.setdefault(line["id"], [])
            if len(votes) < k:
                votes.append(f"Answer {rejected} is" not in line["meta"]["filter_choice"])
        decisions = [sum(votes) > k / 2 for votes in agreements.values()]
        assert rules(result, f"overall, k = {k}")["official"] == pytest.approx(np.mean(decisions)), k


def test_vl_rewardbench_refuses_rankings_that_are_none(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([reward_item("a", [0, 0])]))
    with pytest.raises(InputError, match=r"a has 2 responses ranked \[0, 0\]"):
        VlRewardBench().read(data, ANYWHERE)


def test_vl_rewardbench_reads_the_real_rows_with_every_repeated_id(tmp_path: Path) -> None:
    data = real_rows() / "vl_rewardbench_quarter.json"
    items = VlRewardBench().read(data, ANYWHERE)
    assert (len(items), len({item.key for item in items}), len({item.id for item in items})) == (313, 311, 313)
    groups = {name: sum(item.group == name for item in items) for name in ("hallucination", "reasoning", "general")}
    assert groups == {"hallucination": 187, "reasoning": 80, "general": 46}
    rows = read_rows(data)
    # A judge that always prefers the first response of the file.
    answers = write_lines(tmp_path / "first.jsonl", [{"id": row["id"], "choice": 1} for row in rows])
    result = score("vl_rewardbench", data, answers)
    assert rules(result, "overall accuracy")["official"] == pytest.approx(311 / 313)
    lengths = [[-len(r) for r in row["response"]] for row in rows]
    answers = write_lines(
        tmp_path / "shorter.jsonl", [{"id": row["id"], "rewards": r} for row, r in zip(rows, lengths, strict=True)]
    )
    shorter = score("vl_rewardbench", data, answers)
    assert ours(shorter, "overall accuracy") == pytest.approx(ours(shorter, "shorter"))


# -- MM-RLHF-RewardBench -----------------------------------------------------------------------------------------------


def mm_row(id: str, image: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"id": id, "image": image, "prompt": "Why?", "chosen": chosen, "rejected": rejected}


MM_ROWS = [
    mm_row("1", "mcq/1.png", "A", "B"),
    mm_row("1", "mcq/1.png", "A", "C and more"),
    mm_row("2", "long/2.png", "A", "B"),
    {"id": "3", "video": "video/3", "prompt": "Why?", "chosen": "A", "rejected": "B"},
    {"id": "3", "video": "video/3", "prompt": "Why?", "chosen": "A", "rejected": "C"},
]
MM_REWARDS = [[1.0, 0.0], [0.6, 0.6], [0.9, 0.2], [0.8, 0.1], [0.7, 0.1]]


def test_mm_rlhf_rewardbench_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", MM_ROWS)
    official_form = [row | {"rewards": r} for row, r in zip(MM_ROWS, MM_REWARDS, strict=True)]
    answers = write_lines(tmp_path / "answers.jsonl", official_form[::-1])
    result = score("mm_rlhf_rewardbench", data, answers)
    # Right: rows 1, 3, 4, 5; row 2 is a tie, hence wrong: ACC 4/5. Ids: 1 no, 2 yes, 3 yes: ACC+ 2/3.
    assert rules(result, "ACC") == {"official": 0.8}
    assert rules(result, "ACC+") == pytest.approx({"official": 2 / 3})
    assert (rules(result, "ACC mcq"), rules(result, "ACC+ mcq")) == ({"official": 0.5}, {"official": 0.0})
    assert rules(result, "ACC+ video") == {"official": 1.0}
    # ours: the tie counts one half: 4.5/5 and (1/2 + 1 + 1) / 3.
    assert ours(result, "ACC") == pytest.approx(0.9)
    assert ours(result, "ACC+") == pytest.approx(2.5 / 3)
    assert result["counts"]["ids"] == 3
    # Rows of an id and its rewards alone are matched in order.
    plain = [{"id": row["id"], "rewards": r} for row, r in zip(MM_ROWS, MM_REWARDS, strict=True)]
    again = score("mm_rlhf_rewardbench", data, write_lines(tmp_path / "plain.jsonl", plain))
    assert again["metrics"] == result["metrics"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1))
def test_acc_plus_needs_every_row_of_an_id(rows: list[tuple[str, bool]]) -> None:
    items = [pair(str(i), key=key, group="mcq") for i, (key, _) in enumerate(rows)]
    outcomes = [Outcome.RIGHT if right else Outcome.WRONG for _, right in rows]
    report = MmRlhfRewardBench().score(items, [PairPrediction(votes=(Vote(outcome=o),)) for o in outcomes])
    ids = {key for key, _ in rows}
    whole = {key for key in ids if all(right for other, right in rows if other == key)}
    assert report.metrics[1].rules["official"] == pytest.approx(len(whole) / len(ids))
    assert report.metrics[1].rules["official"] <= max(1.0, report.metrics[0].rules["official"] or 0.0)


def test_mm_rlhf_rewardbench_reads_the_real_rows(tmp_path: Path) -> None:
    data = real_rows() / "mm_rlhf_rewardbench_half.jsonl"
    items = MmRlhfRewardBench().read(data, ANYWHERE)
    groups = {name: sum(item.group == name for item in items) for name in ("mcq", "long", "short", "safety", "video")}
    assert (len(items), groups) == (86, {"mcq": 26, "long": 12, "short": 18, "safety": 12, "video": 18})
    rows = [{"id": item.key, "rewards": [len(r) for r in item.responses]} for item in items]
    result = score("mm_rlhf_rewardbench", data, write_lines(tmp_path / "longer.jsonl", rows))
    assert result["counts"]["ids"] == 23
    num_longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in read_rows(data))
    assert rules(result, "ACC")["official"] == pytest.approx(num_longer / 86)
    assert ours(result, "longer (ACC+)") == pytest.approx(rules(result, "ACC+")["official"])


# -- Multimodal RewardBench --------------------------------------------------------------------------------------------


def meta_row(id: str, better: str, category: str) -> dict[str, Any]:
    return {
        "ID": id,
        "Text": "What?",
        "Image": f"images/{id}.jpg",
        "Output1": "one",
        "Output2": "two and more",
        "Better": better,
        "Category": category,
    }


META_ROWS = [
    meta_row("pairs-1", "Output1", "safety"),
    meta_row("toxic-2", "Output2", "safety"),
    meta_row("math-3", "Output2", "reasoning"),
    meta_row("emma-4", "Output2", "reasoning"),
    meta_row("vqa-5", "Output1", "knowledge"),
]
JUDGEMENTS = ["Final verdict: [[A]]", "[[B]]", "[[A]] ... no, [[B]]", "I like both", "neither"]


def test_multimodal_rewardbench_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", META_ROWS)
    lines = [
        {"ID": row["ID"], "output": text, "Label": "A" if row["Better"] == "Output1" else "B"}
        for row, text in zip(META_ROWS, JUDGEMENTS, strict=True)
    ]
    result = score("multimodal_rewardbench", data, write_lines(tmp_path / "answers.jsonl", lines))
    # A right; B right; A before B, wrong; the coins of seed 123 are 0.052 -> A, wrong, and 0.087 -> A, right: 3/5.
    generator = random.Random(123)
    assert [generator.random() < 0.5 for _ in range(2)] == [True, True]
    assert rules(result, "accuracy") == {"official": 0.6, "lmms-eval": 0.6}
    assert set(result["groups"]) == {
        "knowledge", "reasoning/coding", "reasoning/math", "safety/bias", "safety/toxicity"
    }  # fmt: skip
    # ours: right, right, wrong, 1/2, 1/2
    assert ours(result, "accuracy") == 0.6
    assert result["counts"]["unreadable"] == 2


def test_the_coin_of_multimodal_rewardbench_follows_the_order_of_the_answers(tmp_path: Path) -> None:
    rows = [meta_row(f"v-{i}", "Output2" if i % 3 else "Output1", "knowledge") for i in range(12)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    lines = [{"ID": row["ID"], "output": "no verdict"} for row in rows][::-1]
    result = score("multimodal_rewardbench", data, write_lines(tmp_path / "answers.jsonl", lines))
    generator = random.Random(123)
    labels = {row["ID"]: "A" if row["Better"] == "Output1" else "B" for row in rows}
    expected = [("A" if generator.random() < 0.5 else "B") == labels[str(line["ID"])] for line in lines]
    assert rules(result, "accuracy")["official"] == pytest.approx(np.mean(expected))


def test_the_official_output_of_multimodal_rewardbench_is_data_and_answers(tmp_path: Path) -> None:
    lines = [
        {"ID": row["ID"], "output": text, "Label": "A" if row["Better"] == "Output1" else "B"}
        | {"Image": row["Image"], "Meta": {"Category": row["Category"]}}
        for row, text in zip(META_ROWS, JUDGEMENTS, strict=True)
    ]
    file = write_lines(tmp_path / "outputs.jsonl", lines)
    assert rules(score("multimodal_rewardbench", file, file), "accuracy")["official"] == 0.6
