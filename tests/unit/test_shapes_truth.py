"""Truth, corruptions and reference critiques agree with each other on every scene."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes import basic
from vlgenrm_ray.shapes.corruption import corrupt_answer
from vlgenrm_ray.shapes.questions import KINDS, ShapesQuestion
from vlgenrm_ray.shapes.reference_critiques import reference_critique
from vlgenrm_ray.shapes.scenes import CELLS, Scene, SceneObject, draw_scene
from vlgenrm_ray.shapes.truth import claims, holds, is_true, parse

INDEX = st.integers(0, 100_000)


def scene(*things: tuple[str, str]) -> Scene:
    """A scene from (name, cell name) pairs."""
    placed = [(name.split(), CELLS.index(cell)) for name, cell in things]
    return Scene(
        objects=tuple(
            SceneObject(colour=c, shape=s, cell=cell, dx=0.0, dy=0.0, size=0.3, rotation=0.0, brightness=1.0)
            for (c, s), cell in sorted(placed, key=lambda f: f[1])
        ),
        background=(0.0, 0.9, 0.0, 0.05),
    )


SCENE = scene(("red circle", "top left"), ("blue star", "centre"), ("red square", "bottom right"))


@given(INDEX, INDEX)
def test_references_are_true_and_corruptions_false(index: int, chance: int) -> None:
    here, item = basic.draw_item(0, "train", index)
    wrong = corrupt_answer(here, item, random.Random(chance))
    assert is_true(here, item.text, item.reference)
    assert not is_true(here, item.text, wrong)
    assert claims(wrong), "a corruption stays in the language"
    assert reference_critique(here, item.text, item.reference).endswith("\nVerdict: Yes")
    assert reference_critique(here, item.text, wrong).endswith("\nVerdict: No")


@given(INDEX, INDEX)
def test_a_corruption_changes_one_claim(index: int, chance: int) -> None:
    here, item = basic.draw_item(0, "train", index)
    wrong = corrupt_answer(here, item, random.Random(chance))
    sentences, known = wrong.split(". "), item.reference.split(". ")
    assert len(sentences) == len(known)
    assert sum(a != b for a, b in zip(sentences, known, strict=True)) == 1
    assert abs(len(wrong) - len(item.reference)) <= 8


@given(INDEX, INDEX)
def test_verdict_is_truth_for_answers_of_another_scene(index: int, seed: int) -> None:
    """Whatever is answered, the reference critique's verdict is `is_true`, and each line's own says if it holds."""
    _, item = basic.draw_item(0, "train", index)
    there = draw_scene(random.Random(seed))
    text = reference_critique(there, item.text, item.reference)
    assert text.endswith("Verdict: Yes") == is_true(there, item.text, item.reference)
    assert (" Wrong." in text) == (not all(holds(there, c) for c in claims(item.reference) or ()))


@given(INDEX)
def test_questions_can_be_read(index: int) -> None:
    _, item = basic.draw_item(0, "test", index)
    assert parse(item.text) == (item.kind, item.subject, item.other)


@pytest.mark.parametrize(
    ("question", "response", "expected"),
    [
        ("Is there a red circle?", "Yes, there is a red circle.", True),
        ("Is there a red circle?", "Yes, there is a red circle at the top left.", True),
        ("Is there a red circle?", "Yes, there is a red circle at the centre.", False),
        ("Is there a red circle?", "No, there is no red circle.", False),
        ("Is there a red star?", "No, there is no red star.", True),
        ("Is there a red circle?", "Yes, there is a blue star.", False),
        ("Is there a red circle?", "Yes.", False),
        ("Is there a red circle?", "", False),
        ("How many red shapes are there?", "There are two red shapes.", True),
        ("How many red shapes are there?", "There is one red shape.", False),
        ("How many triangles are there?", "There are no triangles.", True),
        ("What colour is the star?", "The star is blue.", True),
        ("What colour is the star?", "The star is blue. The circle is green.", False),
        ("What colour is the star?", "The circle is red.", False),
        ("Is the red circle above or below the blue star?", "The red circle is above the blue star.", True),
        ("Is the red circle above or below the blue star?", "The blue star is below the red circle.", False),
        ("Describe the image.", "There is a blue star at the centre.", True),
        ("Describe the image.", "There is a blue star at the centre. I think so.", False),
        ("Describe the image.", "There is a blue star at the centre", False),
    ],
)
def test_truth_of_responses(question: str, response: str, expected: bool) -> None:
    assert is_true(SCENE, question, response) is expected


@pytest.mark.parametrize(
    ("question", "response", "lines"),
    [
        (
            "Describe the image.",
            "There is a red circle at the top left. There is an orange star at the middle left.",
            "Claim: a red circle at the top left. Image: a red circle at the top left. Right.\n"
            "Claim: an orange star at the middle left. Image: nothing at the middle left. Wrong.\n"
            "Verdict: No",
        ),
        (
            "How many red shapes are there?",
            "There are two red shapes.",
            "Claim: there are two red shapes. Image: a red circle at the top left, a red square at the bottom right."
            " Right.\nVerdict: Yes",
        ),
        (
            "Is there a green star?",
            "No, there is no green star.",
            "Claim: there is no green star. Image: no green star. Right.\nVerdict: Yes",
        ),
        (
            "What colour is the triangle?",
            "The triangle is red.",
            "Claim: the triangle is red. Image: no triangle. Wrong.\nVerdict: No",
        ),
        (
            "Is the red circle left of or right of the blue star?",
            "The red circle is right of the blue star.",
            "Claim: the red circle is right of the blue star. Image: a red circle at the top left, a blue star at the"
            " centre. Wrong.\nVerdict: No",
        ),
    ],
)
def test_reference_critiques(question: str, response: str, lines: str) -> None:
    assert reference_critique(SCENE, question, response) == lines


def test_a_true_answer_to_another_question_is_wrong() -> None:
    assert reference_critique(SCENE, "How many stars are there?", "There is one circle.").endswith(
        "Right.\nVerdict: No"
    )


@pytest.mark.parametrize("text", ["Perhaps a star.", "There is a red dog.", "There is a star at the left."])
def test_foreign_text_has_no_critique(text: str) -> None:
    with pytest.raises(ValueError, match="not a response"):
        reference_critique(SCENE, "Describe the image.", text)


def test_claims_of_other_extractors_can_be_checked() -> None:
    """Claims need not come from `claims`: a negated place, "any shape" and a count of all are understood."""

    def claim(kind: ClaimKind, subject: str, **fields: object) -> Claim:
        return Claim(kind=kind, subject=subject, text="", start=0, end=0, **fields)  # type: ignore[arg-type]

    assert holds(SCENE, claim(ClaimKind.COUNT, "shape", value="3"))
    assert holds(SCENE, claim(ClaimKind.SPATIAL, "red circle", value="centre", negated=True))
    assert holds(SCENE, claim(ClaimKind.ATTRIBUTE, "blue star", value="blue"))
    assert not holds(SCENE, claim(ClaimKind.ATTRIBUTE, "triangle", value="red"))
    assert holds(SCENE, claim(ClaimKind.SPATIAL, "star", value="below", other="circle"))


def test_question_kinds_are_those_of_claims_and_describe() -> None:
    # The world has no written text.
    assert set(KINDS) == {"describe", *ClaimKind} - {ClaimKind.TEXT}
    assert ShapesQuestion(kind="count", text="", reference="").subject == ""
