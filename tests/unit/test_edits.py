"""Edits of one fact, in the world's language and in everyday English."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.curation.asked import asked
from vlgenrm_ray.curation.edits import Fact, edits, is_single, statements, without
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import ClaimKind
from vlgenrm_ray.shapes import world
from vlgenrm_ray.shapes.pairs import corrupt

SHAPES = load_vocabulary("shapes")
COCO = load_vocabulary("coco")


def changed(text: str, fact: Fact, at: int = 0) -> list[str]:
    return [e.text for e in edits(text, at, SHAPES) if e.fact is fact and is_single(text, at, e, SHAPES)]


def test_an_attribute_with_its_article() -> None:
    assert "Yes, there is an orange circle." in changed("Yes, there is a red circle.", Fact.ATTRIBUTE)
    assert "There is a red star at the centre." in changed("There is an orange star at the centre.", Fact.ATTRIBUTE)
    assert len(changed("The star is red.", Fact.ATTRIBUTE)) == 5


def test_an_object_keeps_its_number() -> None:
    assert changed("There are two circles.", Fact.OBJECT) == [
        "There are two squares.",
        "There are two triangles.",
        "There are two stars.",
    ]


def test_a_number_with_verb_and_noun() -> None:
    assert changed("There is one circle.", Fact.NUMBER)[:2] == ["There are no circles.", "There are two circles."]
    assert changed("There are no red shapes.", Fact.NUMBER)[0] == "There is one red shape."
    assert "There is 1 circle." in changed("There are 2 circles.", Fact.NUMBER)


def test_relation_and_place() -> None:
    assert changed("The red circle is left of the blue square.", Fact.RELATION) == [
        "The red circle is right of the blue square."
    ]
    assert changed("The circle is to the left of the square.", Fact.RELATION) == [
        "The circle is to the right of the square."
    ]
    assert changed("The circle is under the square.", Fact.RELATION) == ["The circle is above the square."]
    places = changed("There is a red circle at the top left.", Fact.PLACE)
    assert len(places) == 8
    assert "There is a red circle at the centre." in places


def test_presence_turns_with_its_yes_or_no() -> None:
    yes, no = "Yes, there is an orange circle.", "No, there is no orange circle."
    assert changed(yes, Fact.PRESENCE) == [no]
    assert changed(no, Fact.PRESENCE) == [yes]
    assert changed("There is a star at the centre.", Fact.PRESENCE) == []


def test_what_is_hedged_is_not_edited() -> None:
    assert not list(edits("There may be a red circle.", 0, SHAPES))


def test_everyday_english() -> None:
    text = "Two dogs are playing, and a man holds a red umbrella."
    made = [e.text for i in range(len(statements(text, COCO))) for e in edits(text, i, COCO)]
    assert "Three dogs are playing, and a man holds a red umbrella." in made
    assert "Two dogs are playing, and a man holds a blue umbrella." in made
    assert "Two cats are playing, and a man holds a red umbrella." in made


def test_a_sentence_can_be_left_out() -> None:
    text = "There is a red circle at the top left. There is a star. It is nice."
    first, second = statements(text, SHAPES)
    assert without(text, first) == "There is a star. It is nice."
    assert without(text, second) == "There is a red circle at the top left. It is nice."


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.data())
def test_an_edit_changes_exactly_one_statement_and_only_its_span(index: int, data: st.DataObject) -> None:
    scene, question = world.draw(3, "train", index)
    text = data.draw(st.sampled_from([question.reference, corrupt(scene, question, random.Random(index))]))
    parts = statements(text, SHAPES)
    at = data.draw(st.integers(0, len(parts) - 1))
    made = [e for e in edits(text, at, SHAPES) if is_single(text, at, e, SHAPES)]
    assert made
    for edit in made:
        kept = len(text) - (len(edit.text) - (edit.end - edit.start)) + edit.start
        assert (edit.text[: edit.start], edit.text[edit.end :]) == (text[: edit.start], text[kept:])
        after = statements(edit.text, SHAPES)
        assert [i for i, (a, b) in enumerate(zip(parts, after, strict=True)) if a.meaning != b.meaning] == [at]


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
def test_what_a_question_asks(question: str, kind: str | None, subjects: set[str]) -> None:
    about = asked(question, SHAPES)
    assert (about.kind, set(about.subjects)) == (kind and ClaimKind(kind), subjects)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_reference_answers_answer(index: int) -> None:
    _, question = world.draw(3, "train", index)
    assert asked(question.text, SHAPES).answered_by(extract_claims(question.reference, SHAPES))


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
def test_a_remark_about_something_else_is_no_answer(question: str, answer: str) -> None:
    assert not asked(question, SHAPES).answered_by(extract_claims(answer, SHAPES))
