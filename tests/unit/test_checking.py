"""Checking claims: three-valued, two experts for an absence, unknown rather than wrong."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.evidence import ImageEvidence, WindowMatch, cut_windows
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Box, Claim, ClaimKind, Detection, Finding, Truth
from vlgenrm_ray.shapes.language import count_clause, sentence
from vlgenrm_ray.shapes.questions import KINDS, describe, draw_question, existence
from vlgenrm_ray.shapes.reference_critiques import reference_critique
from vlgenrm_ray.shapes.render import SIDE, boxes
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, Scene, draw_scene
from vlgenrm_ray.shapes.truth import holds

SHAPES_WORDS = load_vocabulary("shapes")
COCO = load_vocabulary("coco")
THRESHOLDS = Thresholds()
PHRASES = (*SHAPES, *(f"{c} {s}" for c in COLOURS for s in (*SHAPES, "shape")), "shape")


def perfect_evidence(scene: Scene, *, with_windows: bool = True) -> ImageEvidence:
    """The evidence of faultless experts about a scene."""
    things = zip(scene.objects, boxes(scene), strict=True)
    detections = tuple(Detection(box=box, attribute=thing.colour, attribute_score=0.99) for thing, box in things)
    matches = [
        WindowMatch(window, {p: 0.97 if (item := scene.at(i)) and item in scene.matching(p) else 0.01 for p in PHRASES})
        for i, window in enumerate(cut_windows(SIDE, SIDE, (3,)))
    ]
    return ImageEvidence(SIDE, SIDE, detections, tuple(matches) if with_windows else ())


def findings(text: str, evidence: ImageEvidence) -> list[Finding]:
    """The findings on every claim of a text."""
    return [check_claim(claim, evidence, SHAPES_WORDS, THRESHOLDS) for claim in extract_claims(text, SHAPES_WORDS)]


def statements(rng: random.Random) -> str:
    """A random sentence of the world."""
    name, other = (f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}" for _ in range(2))
    noun = rng.choice([*SHAPES, *(f"{c} shape" for c in COLOURS)])
    return rng.choice(
        [
            describe([(name, rng.randrange(9))]),
            existence(name, rng.random() < 0.5),
            sentence(count_clause(noun, rng.randrange(4))),
            f"The {rng.choice(SHAPES)} is {rng.choice(COLOURS)}.",
            f"The {name} is {rng.choice(('left of', 'right of', 'above', 'below'))} the {other}.",
        ]
    )


def test_with_faultless_experts_no_definite_verdict_is_wrong_and_few_are_unknown() -> None:
    rng = random.Random(0)
    num_unknown = total = 0
    for _ in range(40):
        scene = draw_scene(rng)
        evidence = perfect_evidence(scene)
        questions = [draw_question(scene, kind, rng) for kind in KINDS]
        for text in [*(q.reference for q in questions if q), *(statements(rng) for _ in range(8))]:
            for finding in findings(text, evidence):
                total += 1
                num_unknown += finding.truth is Truth.UNKNOWN
                expected = Truth.SUPPORTED if holds(scene, finding.claim) else Truth.CONTRADICTED
                assert finding.truth in (expected, Truth.UNKNOWN), (scene, finding)
    assert num_unknown < 0.05 * total


def test_without_windows_nothing_is_absent_but_detected_objects_still_support_claims() -> None:
    rng = random.Random(1)
    definite = 0
    for _ in range(80):
        scene = draw_scene(rng)
        evidence = perfect_evidence(scene, with_windows=False)
        for text in (statements(rng) for _ in range(8)):
            for claim in extract_claims(text, SHAPES_WORDS):
                finding = check_claim(claim, evidence, SHAPES_WORDS, THRESHOLDS)
                if finding.truth is not Truth.UNKNOWN:
                    definite += 1
                    assert (finding.truth is Truth.SUPPORTED) == holds(scene, claim), (scene, finding)
                if claim.kind is ClaimKind.EXISTENCE and not scene.matching(claim.subject):
                    assert finding.truth is Truth.UNKNOWN
    assert definite > 100


@pytest.mark.parametrize("seed", range(20))
def test_true_statements_of_a_critique_are_never_contradicted_by_detections_alone(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng)
    evidence = perfect_evidence(scene, with_windows=False)
    for kind in KINDS:
        if question := draw_question(scene, kind, rng):
            for line in reference_critique(scene, question.text, question.reference).splitlines()[:-1]:
                image = line.split("Image: ")[1]
                on_image = findings(image, evidence)
                assert on_image, image
                assert Truth.CONTRADICTED not in {f.truth for f in on_image}, image


def box(label: str, x: float, y: float, score: float = 0.9, side: float = 40.0) -> Box:
    return Box(label=label, score=score, x0=x - side / 2, y0=y - side / 2, x1=x + side / 2, y1=y + side / 2)


def seen(label: str, x: float, y: float, colour: str = "red", score: float = 0.9) -> Detection:
    return Detection(box=box(label, x, y, score), attribute=colour, attribute_score=0.95)


def verdict(text: str, *detections: Detection, scores: dict[str, float] | None = None) -> Truth:
    """The verdict on a one-claim text, with evidence of 300 x 300 pixels whose every window has the scores `scores`."""
    matches = [WindowMatch(window, scores) for window in cut_windows(300, 300, (3,))] if scores is not None else []
    finding = finding_on(text, ImageEvidence(300, 300, detections, tuple(matches)))
    return finding.truth


def finding_on(text: str, evidence: ImageEvidence) -> Finding:
    claim = extract_claims(text, SHAPES_WORDS)[-1]
    return check_claim(claim, evidence, SHAPES_WORDS, THRESHOLDS)


LOW = {"red circle": 0.05, "circle": 0.05, "star": 0.05, "red shape": 0.05, "blue square": 0.05}
HIGH = dict.fromkeys(LOW, 0.6)


def test_absence_takes_both_experts() -> None:
    assert verdict("There is a red circle.", scores=LOW) is Truth.CONTRADICTED
    assert verdict("There is a red circle.", scores=HIGH) is Truth.UNKNOWN
    assert verdict("There is a red circle.") is Truth.UNKNOWN
    assert verdict("There is a red circle.", seen("circle", 50, 50, score=0.2), scores=LOW) is Truth.UNKNOWN
    assert verdict("There is a red circle.", seen("circle", 50, 50, colour=""), scores=LOW) is Truth.UNKNOWN
    assert verdict("There is a red circle.", seen("circle", 50, 50, colour="blue"), scores=LOW) is Truth.CONTRADICTED


def test_a_negated_claim_swaps_the_verdict_and_a_hedged_claim_is_unknown() -> None:
    assert verdict("There is no red circle.", scores=LOW) is Truth.SUPPORTED
    assert verdict("There is no red circle.", seen("circle", 50, 50)) is Truth.CONTRADICTED
    assert verdict("There is no red circle.", scores=HIGH) is Truth.UNKNOWN
    assert verdict("Perhaps there is a red circle.", seen("circle", 50, 50)) is Truth.UNKNOWN


def test_a_count_is_unknown_if_a_weak_box_or_a_window_suggests_one_more() -> None:
    two = (seen("circle", 50, 50), seen("circle", 150, 150))
    assert verdict("There are two circles.", *two, scores=LOW) is Truth.SUPPORTED
    assert verdict("There is one circle.", *two) is Truth.CONTRADICTED
    assert verdict("There are three circles.", *two, scores=LOW) is Truth.CONTRADICTED
    assert verdict("There are three circles.", *two, scores=HIGH) is Truth.UNKNOWN
    assert verdict("There are three circles.", *two) is Truth.UNKNOWN
    weak = seen("circle", 250, 50, score=0.3)
    assert verdict("There are two circles.", *two, weak, scores=LOW) is Truth.UNKNOWN
    assert verdict("There are three circles.", *two, weak, scores=LOW) is Truth.UNKNOWN
    assert verdict("There are four circles.", *two, weak, scores=LOW) is Truth.CONTRADICTED
    assert verdict("There are no circles.", scores=LOW) is Truth.SUPPORTED
    assert verdict("There are no circles.") is Truth.UNKNOWN


def test_an_attribute_is_supported_by_all_contradicted_by_none_and_unknown_otherwise() -> None:
    assert verdict("The star is red.", seen("star", 50, 50)) is Truth.SUPPORTED
    assert verdict("The star is blue.", seen("star", 50, 50)) is Truth.CONTRADICTED
    assert verdict("The star is red.", seen("star", 50, 50, colour="")) is Truth.UNKNOWN
    assert verdict("The star is red.", seen("star", 50, 50), seen("star", 250, 50, "blue")) is Truth.UNKNOWN
    assert verdict("The star is red.", scores=LOW) is Truth.CONTRADICTED, "there is no star to be red"
    assert verdict("The star is red.") is Truth.UNKNOWN


def test_a_position_is_decided_by_the_centre_and_by_other_objects_in_exclusive_places() -> None:
    assert verdict("There is a red circle at the top left.", seen("circle", 50, 50)) is Truth.SUPPORTED
    assert verdict("There is a red circle at the top left.", seen("star", 50, 50)) is Truth.CONTRADICTED
    assert verdict("There is a red circle at the top left.", seen("circle", 50, 50, "blue")) is Truth.CONTRADICTED
    assert verdict("There is a red circle at the top left.", seen("circle", 250, 50), scores=LOW) is Truth.CONTRADICTED
    assert verdict("There is a red circle at the top left.", seen("circle", 250, 50)) is Truth.UNKNOWN
    assert verdict("There is a red circle at the top left.", seen("circle", 99, 50)) is Truth.UNKNOWN, "on the border"
    assert verdict("nothing at the top left", seen("circle", 50, 50)) is Truth.CONTRADICTED
    assert verdict("nothing at the top left", scores={"shape": 0.02}) is Truth.SUPPORTED


def test_a_relation_needs_both_objects_and_a_clear_distance() -> None:
    a, b = seen("circle", 50, 50), seen("square", 250, 60, "blue")
    assert verdict("The red circle is left of the blue square.", a, b) is Truth.SUPPORTED
    assert verdict("The red circle is right of the blue square.", a, b) is Truth.CONTRADICTED
    assert verdict("The red circle is above the blue square.", a, b) is Truth.UNKNOWN, "inside the dead zone"
    assert verdict("The red circle is left of the blue square.", a, scores=LOW) is Truth.CONTRADICTED
    assert verdict("The red circle is left of the blue square.", a) is Truth.UNKNOWN
    assert verdict("The red circle is left of the blue square.", a, b, seen("circle", 290, 200)) is Truth.UNKNOWN


def test_the_finding_names_boxes_experts_and_confidence() -> None:
    evidence = ImageEvidence(300, 300, (seen("circle", 50, 50, score=0.8),))
    finding = finding_on("There is a red circle.", evidence)
    assert finding.expert == "detector+matcher"
    assert finding.score == 0.8
    assert finding.boxes == (evidence.detections[0].box,)
    assert finding_on("There is a circle.", evidence).expert == "detector"


def test_a_narrower_word_is_unknown_with_a_box_of_the_noun_and_absent_without() -> None:
    claim = extract_claims("There is a woman.", COCO)[0]
    person = Detection(box=box("person", 50, 50), attribute="", attribute_score=0.2)
    empty = tuple(WindowMatch(window, {"woman": 0.01}) for window in cut_windows(300, 300, (3,)))
    assert check_claim(claim, ImageEvidence(300, 300, (person,)), COCO, THRESHOLDS).truth is Truth.UNKNOWN
    assert check_claim(claim, ImageEvidence(300, 300, (), empty), COCO, THRESHOLDS).truth is Truth.CONTRADICTED


def test_a_noun_outside_the_vocabulary_is_unknown() -> None:
    claim = Claim(kind=ClaimKind.EXISTENCE, subject="unicorn", text="a unicorn", start=0, end=9)
    assert check_claim(claim, ImageEvidence(300, 300, ()), COCO, THRESHOLDS).truth is Truth.UNKNOWN


def test_two_objects_may_share_a_place_in_photographs() -> None:
    claim = extract_claims("There is a dog on the left.", COCO)[-1]
    if claim.kind is not ClaimKind.SPATIAL:
        claim = extract_claims("There is a dog on the left.", COCO)[0]
    cat = Detection(box=box("cat", 50, 50), attribute="", attribute_score=0.2)
    assert check_claim(claim, ImageEvidence(300, 300, (cat,)), COCO, THRESHOLDS).truth is Truth.UNKNOWN


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(SHAPES), st.sampled_from(COLOURS), st.floats(0, 1), st.integers(0, 8)), max_size=6
    ),
    st.floats(0, 1),
    st.integers(0, 10_000),
)
def test_a_claim_and_its_negation_never_agree(
    things: list[tuple[str, str, float, int]], score: float, seed: int
) -> None:
    detections = tuple(
        seen(shape, 50 + 100 * (cell % 3), 50 + 100 * (cell // 3), colour, box_score)
        for shape, colour, box_score, cell in things
    )
    matches = tuple(WindowMatch(window, dict.fromkeys(PHRASES, score)) for window in cut_windows(300, 300, (3,)))
    evidence = ImageEvidence(300, 300, detections, matches)
    for claim in extract_claims(statements(random.Random(seed)), SHAPES_WORDS):
        finding = check_claim(claim, evidence, SHAPES_WORDS, THRESHOLDS)
        negated = check_claim(replace(claim, negated=not claim.negated), evidence, SHAPES_WORDS, THRESHOLDS)
        swapped = {
            Truth.SUPPORTED: Truth.CONTRADICTED,
            Truth.CONTRADICTED: Truth.SUPPORTED,
            Truth.UNKNOWN: Truth.UNKNOWN,
        }
        assert negated.truth is swapped[finding.truth]
        assert 0 <= finding.score <= 1


def test_cells_of_the_world_are_places_of_its_vocabulary() -> None:
    assert tuple(SHAPES_WORDS.places) == CELLS
    for index, cell in enumerate(CELLS):
        assert SHAPES_WORDS.place_at((index % 3 + 0.5) / 3, (index // 3 + 0.5) / 3) == cell
