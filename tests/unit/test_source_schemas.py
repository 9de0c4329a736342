"""Schemas: rows in the very form of each data set are recognised, and become the questions they hold."""

import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from source_rows import parse_row, parse_rows, png, png_base64, recognise_and_parse

from vlgenrm_ray.curation.pool import PoolConfig
from vlgenrm_ray.curation.sources.rows import Columns, SourceRow
from vlgenrm_ray.curation.sources.sample import row_reader, take_sample
from vlgenrm_ray.curation.sources.schema import SCHEMAS, rank_schemas
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.errors import ConfigError

CRITIC = (
    "<image>\nGiven an image and a corresponding question, please serve as an unbiased and fair judge to evaluate the "
    "quality of the answers provided by a Large Multimodal Model (LMM). Your task is provided as follows:\n"
)
USER = {"role": "user", "content": "What is it?"}
HUMAN = {"from": "human", "value": "<image>\nWhat is it?"}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "RLAIF-V": (
        "rlaif_v",
        {
            "ds_name": "RLAIF-V",
            "image": {"bytes": png(), "path": "1.jpg"},
            "question": "What is it?",
            "chosen": "A cat.",
            "rejected": "A dog.",
            "origin_dataset": "VQAv2",
            "origin_split": '{"model": "x", "type": "question_answer"}',
            "idx": 0,
            "image_path": "1.jpg",
        },
    ),
    "RLHF-V": (
        "rlhf_v",
        {
            "ds_name": "RLHF-V",
            "image": {"bytes": png(), "path": "1.jpg"},
            "text": '{"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}',
            "origin_dataset": "VQAv2",
            "origin_split": "train",
            "idx": 3,
        },
    ),
    "RLHF-V for LLaMA-Factory": (
        "sharegpt_preference",
        {"conversations": [HUMAN], "chosen": gpt("A cat."), "rejected": gpt("A dog."), "images": [png()]},
    ),
    "LLaMA-Factory messages preference": (
        "sharegpt_preference",
        {
            "messages": [USER],
            "chosen": assistant("A cat."),
            "rejected": assistant("A dog."),
            "images": ["a.png"],
        },
    ),
    "LLaMA-Factory Alpaca preference": (
        "alpaca",
        {
            "instruction": "<image>What is it?",
            "input": "",
            "chosen": "A cat.",
            "rejected": "A dog.",
            "images": ["a.png"],
        },
    ),
    "LLaMA-Factory Alpaca preference, older": (
        "alpaca",
        {"instruction": "What is", "input": "it?", "output": ["A cat.", "A dog."], "images": ["a.png"]},
    ),
    "TRL explicit prompt": (
        "trl",
        {
            "prompt": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]}
            ],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}],
            "images": [{"bytes": png(), "path": None}],
        },
    ),
    "TRL implicit prompt": (
        "trl",
        {"chosen": [USER, assistant("A cat.")], "rejected": [USER, assistant("A dog.")], "image": "a.png"},
    ),
    "TRL implicit prompt, rendered": (
        "trl",
        {
            "chosen": "\n\nHuman: What is it?\n\nAssistant: A cat.",
            "rejected": "\n\nHuman: What is it?\n\nAssistant: A dog.",
            "images": ["a.png"],
        },
    ),
    "ms-swift rejected_response": (
        "ms_swift",
        {
            "messages": [{"role": "user", "content": "<image>What is it?"}, assistant("A cat.")],
            "rejected_response": "A dog.",
            "images": ["a.png"],
        },
    ),
    "ms-swift rejected_messages": (
        "ms_swift",
        {
            "messages": [USER, assistant("A cat.")],
            "rejected_messages": [USER, assistant("A dog.")],
            "images": ["a.png"],
        },
    ),
    "ms-swift query": (
        "ms_swift",
        {"query": "<image>What is it?", "response": "A cat.", "rejected_response": "A dog.", "images": ["a.png"]},
    ),
    "OpenAI preference": (
        "openai_preference",
        {
            "input": {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is it?"},
                            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png_base64()}"}},
                        ],
                    }
                ]
            },
            "preferred_output": [assistant("A cat.")],
            "non_preferred_output": [assistant("A dog.")],
        },
    ),
    "POVID": (
        "povid",
        {
            "id": "1",
            "image": "coco/train2017/1.jpg",
            "conversations": [HUMAN, gpt("A cat.")],
            "rejected_conversations": [HUMAN, gpt("A dog.")],
        },
    ),
    "InternLM-XComposer-Reward": (
        "povid",
        {
            "id": 1,
            "image": "1.jpg",
            "conversations_a": [
                {"from": "human", "value": "<ImageHere>What is it?"},
                {"from": "bot", "value": "A cat."},
            ],
            "conversations_b": [
                {"from": "human", "value": "<ImageHere>What is it?"},
                {"from": "bot", "value": "A dog."},
            ],
        },
    ),
    "LLaVA-RLHF": (
        "llava_rlhf",
        {
            "id": "1",
            "image": "1.jpg",
            "conversations": [HUMAN],
            "output_1": gpt("A dog."),
            "output_2": gpt("A cat."),
            "preference": 2,
        },
    ),
    "LLaVA-Critic pairwise": (
        "llava_critic",
        {
            "id": "1",
            "image": ["1.jpg"],
            "conversations": [
                {
                    "from": "human",
                    "value": f"{CRITIC}Question: [What is it?]\nThe first response: [A dog.]\n"
                    "The second response: [A cat.]\nASSISTANT:\n",
                },
                gpt("The first response is wrong about the animal. Therefore, the second response is better."),
            ],
        },
    ),
    "SPA-VL": (
        "pairs",
        {
            "id": 4,
            "image": {"bytes": png(), "path": None},
            "question": "What is it?",
            "chosen": "A cat.",
            "rejected": "A dog.",
        },
    ),
    "MMPR": (
        "pairs",
        {
            "image": ["1.jpg"],
            "question": "<image>\nWhat is it?",
            "chosen": "A cat.",
            "rejected": "A dog.",
            "answer_gt": "cat",
        },
    ),
    "MM-RLHF": (
        "mm_rlhf",
        {
            "id": "7",
            "image": "short/7.png",
            "prompt": "What is it?",
            "chosen": "A cat.",
            "rejected": "A dog.",
            "chosen_reason": "right",
            "rejected_reason": "wrong",
        },
    ),
    "mDPO": (
        "pairs",
        {
            "img_path": "images/1.jpg",
            "prompt": "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT:",
            "chosen": "A cat.",
            "rejected": "A dog.",
        },
    ),
    "VL-RewardBench": (
        "ranked",
        {
            "id": "RLAIF-1",
            "query": "What is it?",
            "response": ["A dog.", "A cat."],
            "image": "1.png",
            "human_ranking": [1, 0],
            "models": ["a", "b"],
            "judge": "human",
            "ground_truth": "",
        },
    ),
    "two responses with scores": (
        "ranked",
        {"prompt": "What is it?", "responses": ["A dog.", "A cat."], "scores": ["2", 4.5], "image": "1.png"},
    ),
    "VLFeedback, two responses": (
        "vlfeedback",
        {
            "id": "svit-1",
            "prompt": "What is it?",
            "models": ["a", "b"],
            "completions": [
                {"annotations": {"Helpfulness": {"Rating": "2", "Rationale": "-"}}, "model": "a", "response": "A dog."},
                {"annotations": {"Helpfulness": {"Rating": "5", "Rationale": "-"}}, "model": "b", "response": "A cat."},
            ],
            "img_path": "1.jpg",
        },
    ),
    "Multimodal RewardBench": (
        "multimodal_rewardbench",
        {
            "ID": "math-1",
            "Text": "What is it?",
            "Image": "images/1.jpg",
            "Output1": "A dog.",
            "Output2": "A cat.",
            "Better": "Output2",
            "Category": "reasoning",
        },
    ),
}
"""Rows of one pair, by the data set that has them in this form, with the schema that must be recognised."""


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_in_the_form_of_a_data_set_is_read(name: str) -> None:
    schema, row = PAIRS[name]
    recognised, (parsed,) = recognise_and_parse(row)
    assert (recognised, parsed.problem) == (schema, "")
    assert " ".join(parsed.text.split()) == "What is it?"
    assert (parsed.chosen, parsed.rejected, len(parsed.images)) == ("A cat.", "A dog.", 1)


LABELLED: dict[str, tuple[str, dict[str, Any], str]] = {
    "POPE": ("pope", {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}, "yes"),
    "R1-V number": ("labelled", {"image_path": "./a.png", "question": "Is it?", "ground_truth": 4}, "4"),
    "R1-V boolean": ("labelled", {"image": "a.png", "problem": "Is it?", "solution": True}, "Yes"),
    "AMBER": ("labelled", {"id": 1005, "image": "AMBER_1.jpg", "query": "Is it?", "truth": "no"}, "no"),
    "pandas": ("labelled", {"id": 3.0, "image": "a.jpg", "question": "Is it?", "answer": 2.0}, "2"),
    "VQA answers": ("labelled", {"image": "a.jpg", "question": "Is it?", "answers": ["red", "blue"]}, "red; blue"),
    "MMHal": (
        "mmhal",
        {
            "question_type": "attribute",
            "image_src": "a.jpg",
            "image_id": "x",
            "question": "Is it?",
            "gt_answer": "Yes.",
        },
        "Yes.",
    ),
    "HallusionBench": (
        "hallusionbench",
        {
            "category": "VD",
            "subcategory": "illusion",
            "visual_input": "1",
            "set_id": "0",
            "figure_id": "1",
            "question_id": "2",
            "question": "Is it?",
            "gt_answer": "0",
            "filename": "./VD/a.png",
        },
        "No",
    ),
    "RLAIF-V question": (
        "rlaif_v",
        {"ds_question_id": "a", "image_path": "a.jpg", "question": "Is it?", "metainfos": {"reference": "A mosque"}},
        "A mosque",
    ),
    "LLaVA": (
        "llava",
        {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nIs it?"}, gpt("Yes.")]},
        "Yes.",
    ),
    "OpenAI messages": (
        "messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": "Is it?"},
                    ],
                },
                assistant("Yes."),
            ]
        },
        "Yes.",
    ),
    "messages in JSON": (
        "messages",
        {
            "message": json.dumps(
                [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "Is it?"}, {"type": "image", "image": "/d/a.jpg"}],
                    }
                ]
            ),
            "answer": "$2$",
        },
        "$2$",
    ),
    "TRL prompt and completion": (
        "trl",
        {"prompt": [{"role": "user", "content": "Is it?"}], "completion": [assistant("Yes.")], "images": ["a.png"]},
        "Yes.",
    ),
    "verl": (
        "trl",
        {
            "data_source": "geo3k",
            "prompt": [{"role": "user", "content": "<image>Is it?"}],
            "images": [{"bytes": png()}],
            "reward_model": {"style": "rule", "ground_truth": "3"},
        },
        "3",
    ),
    "Alpaca": ("alpaca", {"instruction": "Is it?", "output": "Yes.", "images": ["a.png"]}, "Yes."),
    "ms-swift": ("ms_swift", {"query": "Is it?", "response": "Yes.", "images": ["a.png"]}, "Yes."),
    "Qwen-VL": ("ms_swift", {"query": "Picture 1: <img>a.png</img>\nIs it?", "response": "Yes."}, "Yes."),
}
"""Rows of a question with a label, with the schema and the reference."""


@pytest.mark.parametrize("name", LABELLED)
def test_a_question_with_a_label_is_read(name: str) -> None:
    schema, row, reference = LABELLED[name]
    recognised, (parsed,) = recognise_and_parse(row)
    assert (recognised, parsed.problem) == (schema, "")
    assert (parsed.text, parsed.reference, len(parsed.images)) == ("Is it?", reference, 1)
    assert (parsed.chosen, parsed.rejected) == (None, None)


def test_every_schema_has_a_row_above() -> None:
    """The others are those that refuse their rows, read steps, or take any column."""
    shown = {schema for schema, _ in PAIRS.values()} | {schema for schema, *_ in LABELLED.values()}
    assert set(SCHEMAS) - shown == {"columns", "model_answers", "vlrmbench"}


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        (
            {"id": "1", "video": "video/x", "prompt": "Q?", "chosen": "A", "rejected": "B", "chosen_reason": ""},
            "video",
            "video",
        ),
        ({"messages": [{"role": "user", "content": "<video>What happens?"}], "videos": ["a.mp4"]}, "video", "video"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]}, "video", "video"),
        ({"messages": [{"role": "user", "content": "<audio>What?"}], "audios": ["a.wav"]}, "malformed_row", "audio"),
        ({"prompt": "Q?", "image": "a", "chosen": "A", "rejected": "B", "is_tie": True}, "tie", "is_tie"),
        ({"query": "Q?", "response": ["A", "B"], "human_ranking": [0, 0], "image": "a"}, "tie", "same rank"),
        (
            {"query": "Q?", "response": ["A", "B"], "human_ranking": [0, 1, 2], "image": "a"},
            "malformed_row",
            "rates 3 of 2",
        ),
        ({"question_id": 1, "text": "No.", "model": "llava"}, "malformed_row", "vlgenrm benchmark"),
        ({"messages": [USER], "rejected_response": "B", "images": ["a"]}, "malformed_row", "rejected_response alone"),
        (
            {
                "chosen": [USER, assistant("A")],
                "rejected": [{"role": "user", "content": "Else?"}, assistant("B")],
                "image": "a",
            },
            "malformed_row",
            "differ before their last turn",
        ),
        ({"messages": [{"role": "narrator", "content": "Q?"}], "images": ["a"]}, "malformed_row", "unknown role"),
        (
            {"conversations": [HUMAN], "output_1": gpt("A"), "output_2": gpt("B"), "preference": 3},
            "malformed_row",
            "1 or 2",
        ),
        ({"Text": "Q?", "Image": "a", "Output1": "A", "Output2": "B", "Better": "Tie"}, "malformed_row", "Better"),
        (
            {"messages": [{"role": "user", "content": "<image><image>Q?"}], "images": ["a"]},
            "malformed_row",
            "2 <image>",
        ),
        ({"messages": [assistant("Hello.")], "images": ["a"]}, "malformed_row", "no turn of the user"),
        (
            {"prompt": "Q?", "image": "a", "chosen": "A", "rejected": ["B", "C"]},
            "malformed_row",
            "rejected has 2 texts",
        ),
        ({"question": "Q?", "answer": "A", "image": {"data": "x"}}, "malformed_row", "bytes, path or url, not data"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], reason: str, says: str) -> None:
    _, (parsed,) = recognise_and_parse(row)
    assert parsed.reason == reason
    assert says in parsed.problem


def test_questions_without_a_figure_say_so() -> None:
    row = LABELLED["HallusionBench"][1] | {"visual_input": "0", "filename": None}
    assert "asked without a figure" in parse_row(row, schema="hallusionbench").problem
    parsed = parse_row(LABELLED["HallusionBench"][1], schema="hallusionbench")
    assert (parsed.question_id, parsed.group) == ("VD_illusion_0_1_2", "VD_illusion_0_1")


def vlfeedback(*ratings: str) -> dict[str, Any]:
    """Return a row as Hugging Face stores it: an object of lists."""
    return {
        "id": "x",
        "prompt": "What is it?",
        "img_path": "1.jpg",
        "completions": {
            "annotations": [{"Helpfulness": {"Rating": r}, "Visual Faithfulness": {"Rating": r}} for r in ratings],
            "model": [f"m{i}" for i in range(len(ratings))],
            "response": [f"answer {i}" for i in range(len(ratings))],
        },
    }


def test_every_two_responses_of_different_rating_form_a_pair() -> None:
    assert rank_schemas([vlfeedback("1", "2")])[0][0] == "vlfeedback"
    rows = parse_rows(vlfeedback("3", "5", "3", "N/A"), schema="vlfeedback")
    assert [(r.question_id, r.chosen, r.rejected) for r in rows] == [
        ("x-2v1", "answer 1", "answer 0"),
        ("x-2v3", "answer 1", "answer 2"),
    ]
    assert [row.id for row in rows] == ["d.jsonl:1", "d.jsonl:1.2"]
    assert {row.group for row in rows} == {"x"}
    (tie,) = parse_rows(vlfeedback("3", "3"), schema="vlfeedback")
    assert tie.reason == "tie"


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_a_pair_is_never_against_its_ranking(ranks: list[int]) -> None:
    row = {"query": "Q?", "image": "a", "response": [str(i) for i in range(len(ranks))], "human_ranking": ranks}
    pairs = [(int(p.chosen), int(p.rejected)) for p in parse_rows(row, schema="ranked") if p.chosen and p.rejected]
    assert all(ranks[better] < ranks[worse] for better, worse in pairs)
    assert len(pairs) == sum(a < b for a in ranks for b in ranks)


@pytest.mark.parametrize(
    ("verdict", "better"),
    [
        ("... Therefore, the first response is better.", "first"),
        (
            "The first response is better in style, yet the second response is more accurate; the second is better.",
            "second",
        ),
        ("Overall, the second answer is clearly better than the first.", "second"),
        ("[[A]]", "first"),
        ("Both are good, but I prefer the second.", "second"),
        ("The first response is worse.", "second"),
    ],
)
def test_the_verdict_of_a_critic_is_read(verdict: str, better: str) -> None:
    row = json.loads(json.dumps(PAIRS["LLaVA-Critic pairwise"][1]))
    row["conversations"][1]["value"] = verdict
    parsed = parse_row(row, schema="llava_critic")
    assert (parsed.chosen, parsed.rejected) == (("A dog.", "A cat.") if better == "first" else ("A cat.", "A dog."))


def test_a_critics_tie_and_a_verdict_in_other_words_are_dropped() -> None:
    row = json.loads(json.dumps(PAIRS["LLaVA-Critic pairwise"][1]))
    row["conversations"][1]["value"] = "The two responses are equally good."
    assert parse_row(row, schema="llava_critic").reason == "tie"
    row["conversations"][1]["value"] = "Hard to say."
    assert "names neither" in parse_row(row, schema="llava_critic").problem


@pytest.mark.parametrize(
    "filling", ["\n", " ", "The \n", "first response: ", "USER: ", "<image>", "[", "Picture 1: <img>"]
)
def test_a_long_hostile_text_takes_linear_time(filling: str) -> None:
    text = "Question: " + filling * 50_000
    begin = time.monotonic()
    for schema in SCHEMAS:
        conversations = [{"from": "human", "value": text}, gpt(text)]
        row = {"image": "a", "question": text, "text": text, "prompt": text, "chosen": text, "rejected": text + "b"}
        parse_rows(row | {"conversations": conversations, "messages": conversations}, schema=schema)
    assert time.monotonic() - begin < 30


def test_pointwise_rows_of_a_critic_give_their_question() -> None:
    prompt = f"{CRITIC}Question: [What is it?]\nThe LMM response: [A dog.]\nASSISTANT:\n "
    row = {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": prompt}, gpt("Score: 20")]}
    schema, (parsed,) = recognise_and_parse(row)
    assert (schema, parsed.text, parsed.chosen) == ("llava_critic", "What is it?", None)


# -- conversations and images ------------------------------------------------------------------------------------------


def test_several_turns_stay_a_conversation() -> None:
    row = {
        "conversations": [HUMAN, gpt("A cat."), {"from": "human", "value": "What colour?"}, gpt("Black.")],
        "image": "a.png",
    }
    _, (parsed,) = recognise_and_parse(row)
    assert parsed.text == "User: What is it?\nAssistant: A cat.\nUser: What colour?"
    assert parsed.reference == "Black."


def test_history_and_rendered_turns_stay_a_conversation() -> None:
    swift = {"query": "Q2?", "response": "A2", "history": [["Q1?", "A1"]], "images": ["a"]}
    rendered = {
        "prompt": "A chat. USER: <image>\nQ1? ASSISTANT: A1 USER: Q2? ASSISTANT:",
        "image": "a",
        "chosen": "A2",
        "rejected": "B",
    }
    for row in (swift, rendered):
        _, (parsed,) = recognise_and_parse(row)
        assert parsed.text == "User: Q1?\nAssistant: A1\nUser: Q2?"


def test_places_of_several_images_are_kept_where_they_matter() -> None:
    def text(content: str) -> str:
        return parse_row({"question": content, "images": ["a.png", "b.png"]}).text

    assert text("<image>\n<image>\nWhat differs?") == "What differs?"
    assert text("What differs?") == "What differs?"
    assert text("Is <image> like <image>?") == "Is (image 1) like (image 2)?"
    assert parse_row({"question": "What is on <image>?", "images": ["a.png"]}).text == "What is on ?"


@pytest.mark.parametrize(
    "images",
    [
        ["a.png", "b.png"],
        '["a.png", "b.png"]',
        [{"bytes": None, "path": "a.png"}, {"path": "b.png"}],
        [{"url": "a.png"}, "b.png"],
    ],
)
def test_several_images_are_read_in_every_form(images: object) -> None:
    parsed = parse_row({"question": "What?", "image": images})
    assert parsed.images == (SourceImage(uri="/data/a.png"), SourceImage(uri="/data/b.png"))


@pytest.mark.parametrize("column", ["image_url", "image_base64", "image_name", "file_name", "picture", "webp"])
def test_an_image_column_of_another_usual_name_is_read(column: str) -> None:
    image = base64.b64encode(png()).decode() if column == "image_base64" else "a.png"
    _, (parsed,) = recognise_and_parse({"question": "What?", "chosen": "A cat.", "rejected": "A dog.", column: image})
    assert parsed.images == (SourceImage(data=png()) if column == "image_base64" else SourceImage(uri="/data/a.png"),)


def test_a_column_for_each_image_is_read() -> None:
    row = {"id": "m", "question": "Is <image 1> like <image 2>?", "options": "['yes', 'no']", "answer": "B"}
    schema, (parsed,) = recognise_and_parse(row | {"image_1": {"bytes": png()}, "image_2": "b.png", "image_3": None})
    assert (schema, parsed.text) == ("labelled", "Is (image 1) like (image 2)?\nA. yes\nB. no")
    assert parsed.images == (SourceImage(data=png()), SourceImage(uri="/data/b.png"))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, assistant("A cat.")], "images": ["a.png"]},
        {"prompt": [USER], "completion": [assistant("A cat.")], "images": ["a.png"]},
        {"prompt": "What is it?", "completion": "A cat.", "image": "a.png"},
    ],
)
def test_a_label_of_desirability_is_no_reference(row: dict[str, Any]) -> None:
    """KTO: the label says whether the answer beside it is a good one; a bad one is no reference either."""
    _, (good, bad) = recognise_and_parse(row | {"label": True}, row | {"label": False})
    assert (good.text, good.reference) == ("What is it?", "A cat.")
    assert (bad.text, bad.reference) == ("What is it?", None)


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_a_system_text_in_a_column_of_its_own_is_part_of_the_conversation(column: str) -> None:
    """LLaMA-Factory has `system` beside the turns."""
    turns = [HUMAN, gpt("A cat.")] if column == "conversations" else [USER, assistant("A cat.")]
    _, (parsed,) = recognise_and_parse({column: turns, "system": "Be brief.", "images": ["a.png"]})
    assert (parsed.text, parsed.reference) == ("System: Be brief.\nUser: What is it?", "A cat.")


def test_answers_to_a_rendered_prompt_lose_its_special_tokens() -> None:
    prompt = "<|im_start|>user\n<|image_pad|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    answers = {"chosen": "A cat.<|im_end|>\n", "rejected": "A dog.<|im_end|>"}
    for row in (
        {"prompt": prompt} | answers,
        {name: prompt + answer for name, answer in answers.items()},
    ):
        _, (parsed,) = recognise_and_parse(row | {"image": "a.png"})
        assert (parsed.text, parsed.chosen, parsed.rejected) == ("What is it?", "A cat.", "A dog.")


def test_a_response_names_the_model_that_wrote_it() -> None:
    outputs = {"output_1": {"from": "llava", "value": "A dog."}, "output_2": {"from": "llava", "value": "A cat."}}
    _, (parsed,) = recognise_and_parse({"conversations": [HUMAN], "image": "a.png", "preference": 2} | outputs)
    assert (parsed.chosen, parsed.rejected) == ("A cat.", "A dog.")


@pytest.mark.parametrize(
    ("solution", "reference"),
    [
        ("<answer> 4 </answer>", "4"),
        ("<think>one by one</think>\n<answer>4</answer>", "4"),
        ("write <answer>4</answer>", "write <answer>4</answer>"),
        (["4", "four"], "4; four"),
    ],
)
def test_the_answer_of_a_solution_is_the_reference(solution: object, reference: str) -> None:
    """R1-V wraps the answer in tags; VQA sets have several."""
    _, (parsed,) = recognise_and_parse({"problem": "How many?", "image": "a.png", "solution": solution})
    assert parsed.reference == reference


def test_options_of_a_multiple_choice_are_part_of_the_question() -> None:
    indexed = {"image": "a", "question": "Which?", "choices": ["red", "blue"], "answer": 1}
    _, (parsed,) = recognise_and_parse(indexed)
    assert (parsed.text, parsed.reference) == ("Which?\nA. red\nB. blue", "B")
    row = {"index": 0, "image": png_base64(), "question": "Which?", "A": "red", "B": "blue", "answer": "B"}
    schema, (parsed,) = recognise_and_parse(row)
    assert (schema, parsed.text, parsed.reference) == ("labelled", "Which?\nA. red\nB. blue", "B")


def test_the_text_of_a_question_is_no_template() -> None:
    question = "Look at the form.\nUser name field: is it filled in?"
    assert parse_row({"question": question, "image": "a"}).text == question


_NAMES = st.sampled_from(
    sorted(
        {name for _, row in PAIRS.values() for name in row} | {name for _, row, _ in LABELLED.values() for name in row}
    )
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(["user", "human", "A cat.", "<image>", "<video>", "[1, 2]", '{"a": 1}', "USER: hi ASSISTANT:"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "from",
                    "content",
                    "value",
                    "type",
                    "text",
                    "bytes",
                    "path",
                    "response",
                    "annotations",
                    "messages",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def is_question_or_problem(row: SourceRow) -> bool:
    usable = bool(row.question_id and row.text and row.images) and (row.chosen is None) == (row.rejected is None)
    return usable != bool(row.problem)


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
@settings(max_examples=40, deadline=None)
@given(row=st.dictionaries(_NAMES, _JSON, max_size=6))
def test_any_row_becomes_a_question_or_has_a_problem(schema: str, row: dict[str, Any]) -> None:
    assert all(is_question_or_problem(parsed) for parsed in parse_rows(row, schema=schema))


@pytest.mark.parametrize("name", [*PAIRS, *LABELLED])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_damaged_row_becomes_a_question_or_has_a_problem(name: str, data: st.DataObject) -> None:
    schema, row = PAIRS.get(name) or LABELLED[name][:2]
    damaged = row | {data.draw(st.sampled_from(sorted(row))): data.draw(_JSON)}
    assert all(is_question_or_problem(parsed) for parsed in parse_rows(damaged, schema=schema))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(_NAMES, _JSON, max_size=6), max_size=4))
def test_any_sample_can_be_ranked(sample: list[dict[str, Any]]) -> None:
    scores = [match.score for _, match in rank_schemas(sample)]
    assert scores == sorted(scores, reverse=True)


# -- settings ----------------------------------------------------------------------------------------------------------

USER_PACKAGE = """
from vlgenrm_ray.curation.sources.conversations import parse_turns
from vlgenrm_ray.curation.sources.rows import RowContent, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch


class Quiz:
    title = "our quiz"

    def match(self, columns, sample):
        return SchemaMatch(90, "columns riddle and picture") if {"riddle", "picture"} <= columns else None

    def questions(self, fields):
        turns = parse_turns(fields.take("question", "riddle"), "riddle")
        yield RowContent(turns=turns, images=take_images(fields, "picture"), id=fields.take("id", "number"))
"""


def test_a_schema_of_a_users_package_is_named_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user_schemas.py").write_text(USER_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_schemas", raising=False)
    (tmp_path / "d.jsonl").write_text(json.dumps({"number": 3, "riddle": "What?", "picture": "a.png"}))
    config = PoolConfig(source="files", path=str(tmp_path / "d.jsonl"), schema="user_schemas:Quiz")
    sample = take_sample(config)
    (parsed,) = row_reader(config, sample.schema).read(sample.rows[0].value, id="d:1", folder="/data")
    assert (sample.schema, parsed.question_id, parsed.text) == ("user_schemas:Quiz", "3", "What?")
    with pytest.raises(ValidationError, match="'quiz' is unknown; choose from alpaca, columns"):
        PoolConfig(source="files", path="x", schema="quiz")
    with pytest.raises(ConfigError, match=r"pool\.schema: 'user_schemas:Missing' cannot be imported"):
        take_sample(config.model_copy(update={"schema": "user_schemas:Missing"}))


def test_named_columns_go_before_the_usual_ones_in_every_schema() -> None:
    row = {"id": 1, "image": "a.png", "question": "Q?", "chosen": "old", "rejected": "B", "better": "new"}
    parsed = parse_row(row, schema="pairs", columns=Columns(chosen="better"))
    assert (parsed.chosen, parsed.rejected) == ("new", "B")


def test_columns_in_a_recipe_override_what_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"image": "a.png", "question": "Q?", "chosen": "A", "rejected": "B", "ask": "R?"}))
    config = PoolConfig(source="files", path=str(path))
    assert take_sample(config).schema == "pairs"
    named = config.model_copy(update={"columns": Columns(question="ask")})
    assert take_sample(named).schema == "columns"
