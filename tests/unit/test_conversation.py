"""Conversations as message lists and as rendered text, and labels."""

import json

import numpy as np
import pandas
import pytest

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import (
    message_images,
    message_text,
    refers_to_image,
    split_last_answer,
    to_openai_messages,
)
from vlgenrm_ray.judge.label import Label, read_label, write_label


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (None, Label()),
        ("", Label()),
        ("42", Label(reference="42")),
        (42, Label(reference="42")),
        ("{broken", Label(reference="{broken")),
        ({"question": "q", "image": "a.png"}, Label(question="q", images=("a.png",))),
        ('{"images": ["a", "b"], "answer": 3, "other": []}', Label(images=("a", "b"), reference="3")),
        ({"image": {"bytes": b"x", "path": None}}, Label(images=({"bytes": b"x", "path": None},))),
        (float("nan"), Label()),
        (np.float32("nan"), Label()),
        (np.datetime64("NaT"), Label()),
        (pandas.NA, Label()),
        (pandas.NaT, Label()),
        ({"question": "q", "image": float("nan"), "reference": np.nan, "answer": pandas.NA}, Label(question="q")),
        ({"images": ["a", None, float("nan")], "answer": np.int64(3)}, Label(images=("a",), reference="3")),
        ('{"question": NaN, "images": NaN, "answer": NaN}', Label()),
        (0, Label(reference="0")),
        (np.array(["a", "b"]), Label(reference="['a' 'b']")),
    ],
)
def test_labels_are_read_from_any_form(value: object, label: Label) -> None:
    assert read_label(value) == label


@pytest.mark.parametrize("value", [{"images": "a.png"}, {"images": 3}, {"question": ["q"]}, {"reference": {"a": 1}}])
def test_invalid_labels_name_the_field(value: object) -> None:
    with pytest.raises(InputError, match=r"label\."):
        read_label(value)


def test_a_written_label_is_read_back() -> None:
    text = write_label(question="q", images=["a.png"], reference="r")
    assert read_label(text) == Label(question="q", images=("a.png",), reference="r")
    assert json.loads(write_label(question="q")) == {"question": "q"}


def test_images_are_read_from_every_form_of_part() -> None:
    parts = [
        {"type": "image", "image": "a"},
        {"type": "image", "url": "b"},
        {"type": "image", "base64": "c"},
        {"type": "image", "bytes": None, "path": "d"},
        {"type": "image_url", "image_url": "e"},
        {"type": "input_image", "image_url": "f", "detail": "auto"},
        {"type": "image_pil", "image_pil": "g"},
        {"image": "h"},
        {"text": "What?"},
    ]
    turns = [{"role": "user", "content": parts}]
    assert message_images(turns) == ("a", "b", "c", {"bytes": None, "path": "d"}, "e", "f", "g", "h")
    assert message_text(turns[0]) == "What?"


@pytest.mark.parametrize(
    ("prompt", "refers"),
    [
        ("What?", False),
        ("<image>What?", True),
        ([{"role": "user", "content": "What?"}], False),
        ([{"role": "user", "content": "<|image_pad|>What?"}], True),
        ([{"role": "user", "content": [{"type": "image"}, "What?"]}], True),
        ([{"role": "user", "content": [{"type": "image", "image": "a"}, "What?"]}], True),
    ],
)
def test_a_prompt_refers_to_an_image_by_any_mark(prompt: object, refers: bool) -> None:
    assert refers_to_image(prompt) == refers


def test_all_part_forms_become_openai_parts() -> None:
    parts = [
        "Look: ",
        {"type": "image"},
        {"type": "image", "image": "a", "text": None},
        {"type": "input_image", "image_url": "b"},
        {"type": "image_url", "image_url": {"url": "c"}},
        {"type": "input_text", "text": "what?"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    (user, _) = to_openai_messages(messages, lambda image: f"<{image}>")
    assert [p["image_url"]["url"] for p in user["content"] if p["type"] == "image_url"] == ["<a>", "<b>", "<c>"]
    assert message_text(messages[0]) == "Look: \nwhat?"
    assert split_last_answer(messages) == ([messages[0]], "x")


@pytest.mark.parametrize(
    "messages",
    [
        ["text"],
        [{"content": "no role"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "\ud800"}],
    ],
)
def test_invalid_conversations_name_the_message(messages: list[object]) -> None:
    with pytest.raises(InputError, match=r"messages\[0\]"):
        to_openai_messages(messages)


@pytest.mark.parametrize(
    "messages", [[], [{"role": "assistant", "content": "x"}], [{"role": "user", "content": "x"}] * 2]
)
def test_a_conversation_must_end_with_an_answer(messages: list[dict[str, str]]) -> None:
    with pytest.raises(InputError, match="last turn"):
        split_last_answer(messages)
