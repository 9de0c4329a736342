"""Checks of critiques: parsing, and contradiction by the experts' detections."""

import random

import factories
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.evidence import cut_windows
from vlgenrm_ray.records import Box, Detection, Preference, WindowScore
from vlgenrm_ray.rewards.critique_checks import CritiqueChecker, CritiqueStep, cut_after_verdict, parse_steps
from vlgenrm_ray.shapes.corruption import corrupt_answer
from vlgenrm_ray.shapes.language import object_phrase
from vlgenrm_ray.shapes.questions import KINDS, draw_question
from vlgenrm_ray.shapes.reference_critiques import reference_critique
from vlgenrm_ray.shapes.render import SIDE, boxes
from vlgenrm_ray.shapes.scenes import CELLS, Scene, draw_scene

CHECKER = CritiqueChecker.from_vocabulary("shapes", Thresholds())


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Claim: x.\nVerdict: Yes", "Claim: x.\nVerdict: Yes"),
        ("Verdict: Right.\nVerdict: Yes", None),
        ("Verdict: Yes, but the verdict was hard.", "Verdict: Yes"),
        ("**Verdict:** Yes**\n", "**Verdict:** Yes"),
        ("verdict : no.", "verdict : no"),
        ("Verdict: Nothing", None),
        ("Verdict:", None),
        ("Yes", None),
    ],
)
def test_a_critique_ends_with_its_one_verdict(text: str, cut: str | None) -> None:
    assert cut_after_verdict(text) == cut


def test_a_step_has_a_claim_a_statement_about_the_image_and_an_assessment() -> None:
    text = (
        "Claim: a red circle at the top left. Image: a blue star at the top left. Wrong.\n"
        "Claim: there are no dogs. Image: a dog on the right, two cats. Right.\n"
        "- **Claim:** x. **Image:** nothing at the right\n"
        "Claim: y. Image: a cup. Wrong. Verdict: No\n"
        "Image: a spoon."
    )
    assert parse_steps(text) == (
        CritiqueStep("a red circle at the top left", "a blue star at the top left", False),
        CritiqueStep("there are no dogs", "a dog on the right, two cats", True),
        CritiqueStep("x", "nothing at the right", None),
        CritiqueStep("y", "a cup", False),
        CritiqueStep("", "a spoon", None),
    )


@pytest.mark.parametrize(
    ("text", "contradicted"),
    [
        ("Claim: a blue star at the top left. Image: a red circle at the top left. Wrong.", False),
        ("Claim: a red circle at the top left. Image: a blue star at the top left. Wrong.", True),
        ("Claim: there are two circles. Image: no circles. Wrong.", True),
        # One detector that missed it is no proof of absence: that takes both experts.
        ("Claim: there is a green star. Image: a green star at the bottom right. Right.", False),
        # The experts saw the red circle: to call it wrong is as false as to see something else.
        ("Claim: a red circle at the top left. Image: something. Wrong.", True),
        ("Claim: a red circle at the top left. Image: something. Right.", False),
        ("Claim: a blue star at the top left. Image: something. Right.", True),
        ("Claim: a blue star at the top left. Image: something. Wrong.", False),
        ("Claim: a blue star at the top left. Image: something.", False),
        # One red circle was detected, so a list of two circles, or of none, contradicts the detections.
        ("Claim: there are no circles. Image: a red circle at the top left. Wrong.", False),
        ("Claim: there are no circles. Image: a blue star at the centre. Wrong.", True),
        ("The picture is lovely.", False),
    ],
)
def test_only_false_steps_of_its_own_contradict_a_critique(text: str, contradicted: bool) -> None:
    preference = factories.preference(detections=(factories.detection(),))
    critique = factories.critique(text=f"{text}\nVerdict: Yes")
    assert CHECKER.is_contradicted(critique, preference) is contradicted


@pytest.mark.parametrize(("p_object", "contradicted"), [(0.01, True), (0.6, False), (1.0, False)])
def test_an_object_stated_in_an_empty_window_is_false(p_object: float, contradicted: bool) -> None:
    middle = WindowScore(box=Box(label="", score=1.0, x0=80, y0=80, x1=160, y1=160), anything=p_object)
    preference = factories.preference(detections=(factories.detection(),), window_scores=(middle,))
    text = "Claim: x. Image: a green star at the centre. Right.\nVerdict: Yes"
    assert CHECKER.is_contradicted(factories.critique(text=text), preference) is contradicted


def test_without_detections_nothing_is_contradicted() -> None:
    text = "Claim: x. Image: a red circle at the top left. Right.\nVerdict: Yes"
    assert not CHECKER.is_contradicted(factories.critique(text=text), factories.preference(detections=()))


def with_true_detections(scene: Scene) -> Preference:
    """A preference with the detections of perfect experts."""
    things = zip(scene.objects, boxes(scene), strict=True)
    cells = enumerate(cut_windows(SIDE, SIDE, (3,)))
    return factories.preference(
        question=factories.question(image=factories.image(width=SIDE, height=SIDE)),
        detections=tuple(Detection(box=b, attribute=t.colour, attribute_score=0.99) for t, b in things),
        window_scores=tuple(WindowScore(box=w, anything=0.99 if scene.at(i) else 0.01) for i, w in cells),
    )


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_a_perfect_critique_is_never_contradicted_and_a_moved_object_always(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng)
    kind = rng.choice(KINDS)
    while (question := draw_question(scene, kind, rng)) is None:
        scene = draw_scene(rng)
    response = rng.choice((question.reference, corrupt_answer(scene, question, rng)))
    text = reference_critique(scene, question.text, response)
    preference = with_true_detections(scene)
    assert not CHECKER.is_contradicted(factories.critique(text=text), preference)
    thing = rng.choice(scene.objects)
    elsewhere = rng.choice([c for c in range(len(CELLS)) if (t := scene.at(c)) is None or t.name != thing.name])
    false = f"Claim: x. Image: {object_phrase(thing.name, elsewhere)}. Right.\n{text}"
    assert CHECKER.is_contradicted(factories.critique(text=false), preference)
