"""Edits of one fact, and topics of questions, in the language of the world and in everyday English."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.curation.edits import Fact, changes_one_statement, propose_edits, remove_sentence, split_statements
from vlgenrm_ray.curation.evidence import parse_question
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import ClaimKind
from vlgenrm_ray.shapes import basic
from vlgenrm_ray.shapes.corruption import corrupt_answer

SHAPES = load_vocabulary("shapes")
COCO = load_vocabulary("coco")


def edited_texts(text: str, fact: Fact, index: int = 0) -> list[str]:
    edits = propose_edits(text, index, SHAPES)
    return [e.text for e in edits if e.fact is fact and changes_one_statement(text, index, e, SHAPES)]


def test_an_edited_attribute_has_the_right_article() -> None:
    assert "Yes, there is an orange circle." in edited_texts("Yes, there is a red circle.", Fact.ATTRIBUTE)
    assert "There is a red star at the centre." in edited_texts(
        "There is an orange star at the centre.", Fact.ATTRIBUTE
    )
    assert len(edited_texts("The star is red.", Fact.ATTRIBUTE)) == 5


def test_an_object_keeps_its_number() -> None:
    assert edited_texts("There are two circles.", Fact.OBJECT) == [
        "There are two squares.",
        "There are two triangles.",
        "There are two stars.",
    ]


def test_an_edited_number_agrees_with_verb_and_noun() -> None:
    assert edited_texts("There is one circle.", Fact.NUMBER)[:2] == ["There are no circles.", "There are two circles."]
    assert edited_texts("There are no red shapes.", Fact.NUMBER)[0] == "There is one red shape."
    assert "There is 1 circle." in edited_texts("There are 2 circles.", Fact.NUMBER)


def test_relations_and_places_are_edited() -> None:
    assert edited_texts("The red circle is left of the blue square.", Fact.RELATION) == [
        "The red circle is right of the blue square."
    ]
    assert edited_texts("The circle is to the left of the square.", Fact.RELATION) == [
        "The circle is to the right of the square."
    ]
    assert edited_texts("The circle is under the square.", Fact.RELATION) == ["The circle is above the square."]
    places = edited_texts("There is a red circle at the top left.", Fact.PLACE)
    assert len(places) == 8
    assert "There is a red circle at the centre." in places


def test_edited_presence_reverses_a_leading_yes_or_no() -> None:
    yes, no = "Yes, there is an orange circle.", "No, there is no orange circle."
    assert edited_texts(yes, Fact.PRESENCE) == [no]
    assert edited_texts(no, Fact.PRESENCE) == [yes]
    assert edited_texts("There is a star at the centre.", Fact.PRESENCE) == []


def test_hedged_statements_are_not_edited() -> None:
    assert not list(propose_edits("There may be a red circle.", 0, SHAPES))


def test_everyday_english_is_edited() -> None:
    text = "Two dogs are playing, and a man holds a red umbrella."
    proposed = [e.text for i in range(len(split_statements(text, COCO))) for e in propose_edits(text, i, COCO)]
    assert "Three dogs are playing, and a man holds a red umbrella." in proposed
    assert "Two dogs are playing, and a man holds a blue umbrella." in proposed
    assert "Two cats are playing, and a man holds a red umbrella." in proposed


def test_a_sentence_is_removed() -> None:
    text = "There is a red circle at the top left. There is a star. It is nice."
    first, second = split_statements(text, SHAPES)
    assert remove_sentence(text, first) == "There is a star. It is nice."
    assert remove_sentence(text, second) == "There is a red circle at the top left. It is nice."


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.data())
def test_an_edit_changes_exactly_one_statement_and_only_its_span(index: int, data: st.DataObject) -> None:
    scene, question = basic.draw_item(3, "train", index)
    text = data.draw(st.sampled_from([question.reference, corrupt_answer(scene, question, random.Random(index))]))
    parts = split_statements(text, SHAPES)
    number = data.draw(st.integers(0, len(parts) - 1))
    proposed = [e for e in propose_edits(text, number, SHAPES) if changes_one_statement(text, number, e, SHAPES)]
    assert proposed
    for edit in proposed:
        end = len(text) - (len(edit.text) - (edit.end - edit.start)) + edit.start
        assert (edit.text[: edit.start], edit.text[edit.end :]) == (text[: edit.start], text[end:])
        after = split_statements(edit.text, SHAPES)
        assert [i for i, (a, b) in enumerate(zip(parts, after, strict=True)) if a.meaning != b.meaning] == [number]


@pytest.mark.parametrize(
    ("question", "kind", "subjects"),
    [
        ("Describe the image.", None, set()),
        ("Is there a red circle?", "existence", {"red circle"}),
        ("How many circles are there?", "count", {"circle"}),
        ("How many red shapes are there?", "count", {"red shape"}),
        ("What colour is the star?", "attribute", {"star"}),
        ("What color is the star?", "attribute", {"star"}),
        ("Is the red circle left of or right of the blue square?", "spatial", {"red circle", "blue square"}),
        ("Why is the star funny?", None, {"star"}),
    ],
)
def test_topic_of_a_question(question: str, kind: str | None, subjects: set[str]) -> None:
    topic = parse_question(question, SHAPES)
    assert (topic.kind, set(topic.subjects)) == (kind and ClaimKind(kind), subjects)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_reference_answers_answer_their_question(index: int) -> None:
    _, question = basic.draw_item(3, "train", index)
    assert parse_question(question.text, SHAPES).answered_by(extract_claims(question.reference, SHAPES))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is there a red circle?", "Yes, there is a blue circle."),
        ("How many circles are there?", "There is a circle."),
        ("How many circles are there?", "There are two stars."),
        ("What colour is the star?", "There is a star."),
        ("Is the red circle above or below the blue square?", "The red circle is below the blue star."),
        ("Is the red circle above or below the blue square?", "The red circle is left of the blue square."),
    ],
)
def test_a_remark_about_something_else_does_not_answer(question: str, answer: str) -> None:
    assert not parse_question(question, SHAPES).answered_by(extract_claims(answer, SHAPES))
