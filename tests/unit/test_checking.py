"""Claims against what was seen: three-valued, two experts for an absence, unknown rather than wrong."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.checking import Bands, check
from vlgenrm_ray.experts.claims import extract
from vlgenrm_ray.experts.view import Glance, View, windows
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Box, Claim, ClaimKind, Detection, Finding, Truth
from vlgenrm_ray.shapes.critiques import critique
from vlgenrm_ray.shapes.phrases import counted, sentence
from vlgenrm_ray.shapes.questions import KINDS, ask, describe, existence
from vlgenrm_ray.shapes.render import SIDE, boxes
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, Scene, draw
from vlgenrm_ray.shapes.truth import holds

SHAPES_WORDS = load_vocabulary("shapes")
COCO = load_vocabulary("coco")
BANDS = Bands()
PHRASES = (*SHAPES, *(f"{c} {s}" for c in COLOURS for s in (*SHAPES, "shape")), "shape")


def perfect(scene: Scene, *, glances: bool = True) -> View:
    """What faultless experts would see of a scene."""
    things = zip(scene.things, boxes(scene), strict=True)
    sightings = tuple(Detection(box=box, attribute=thing.colour, attribute_score=0.99) for thing, box in things)
    cells = [
        Glance(window, {p: 0.97 if (held := scene.at(i)) and held in scene.matching(p) else 0.01 for p in PHRASES})
        for i, window in enumerate(windows(SIDE, SIDE, (3,)))
    ]
    return View(SIDE, SIDE, sightings, tuple(cells) if glances else ())


def findings(text: str, view: View) -> list[Finding]:
    """What the experts say of every claim in a text."""
    return [check(claim, view, SHAPES_WORDS, BANDS) for claim in extract(text, SHAPES_WORDS)]


def statements(rng: random.Random) -> str:
    """A random sentence of the world."""
    name, other = (f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}" for _ in range(2))
    noun = rng.choice([*SHAPES, *(f"{c} shape" for c in COLOURS)])
    return rng.choice(
        [
            describe([(name, rng.randrange(9))]),
            existence(name, rng.random() < 0.5),
            sentence(counted(noun, rng.randrange(4))),
            f"The {rng.choice(SHAPES)} is {rng.choice(COLOURS)}.",
            f"The {name} is {rng.choice(('left of', 'right of', 'above', 'below'))} the {other}.",
        ]
    )


def test_with_faultless_experts_no_definite_verdict_is_wrong_and_few_stay_open() -> None:
    rng = random.Random(0)
    open_verdicts = total = 0
    for _ in range(40):
        scene = draw(rng)
        view = perfect(scene)
        asked = [ask(scene, kind, rng) for kind in KINDS]
        for text in [*(a.reference for a in asked if a), *(statements(rng) for _ in range(8))]:
            for finding in findings(text, view):
                total += 1
                open_verdicts += finding.truth is Truth.UNKNOWN
                expected = Truth.SUPPORTED if holds(scene, finding.claim) else Truth.CONTRADICTED
                assert finding.truth in (expected, Truth.UNKNOWN), (scene, finding)
    assert open_verdicts < 0.05 * total


def test_without_the_matcher_nothing_is_found_absent_but_what_is_there_still_counts() -> None:
    rng = random.Random(1)
    definite = 0
    for _ in range(80):
        scene = draw(rng)
        view = perfect(scene, glances=False)
        for text in (statements(rng) for _ in range(8)):
            for claim in extract(text, SHAPES_WORDS):
                finding = check(claim, view, SHAPES_WORDS, BANDS)
                if finding.truth is not Truth.UNKNOWN:
                    definite += 1
                    assert (finding.truth is Truth.SUPPORTED) == holds(scene, claim), (scene, finding)
                if claim.kind is ClaimKind.EXISTENCE and not scene.matching(claim.subject):
                    assert finding.truth is Truth.UNKNOWN
    assert definite > 100


@pytest.mark.parametrize("seed", range(20))
def test_what_a_true_critique_says_of_the_image_is_never_contradicted_by_sightings_alone(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw(rng)
    view = perfect(scene, glances=False)
    for kind in KINDS:
        if asked := ask(scene, kind, rng):
            for line in critique(scene, asked.text, asked.reference).splitlines()[:-1]:
                image = line.split("Image: ")[1]
                found = findings(image, view)
                assert found, image
                assert Truth.CONTRADICTED not in {f.truth for f in found}, image


def box(label: str, x: float, y: float, score: float = 0.9, side: float = 40.0) -> Box:
    return Box(label=label, score=score, x0=x - side / 2, y0=y - side / 2, x1=x + side / 2, y1=y + side / 2)


def seen(label: str, x: float, y: float, colour: str = "red", score: float = 0.9) -> Detection:
    return Detection(box=box(label, x, y, score), attribute=colour, attribute_score=0.95)


def verdict(text: str, *sightings: Detection, hints: dict[str, float] | None = None) -> Truth:
    """The verdict on a one-claim text, in a view of 300 x 300 whose every tile gives `hints`."""
    glances = [Glance(window, hints) for window in windows(300, 300, (3,))] if hints is not None else []
    finding = found(text, View(300, 300, sightings, tuple(glances)))
    return finding.truth


def found(text: str, view: View) -> Finding:
    claim = extract(text, SHAPES_WORDS)[-1]
    return check(claim, view, SHAPES_WORDS, BANDS)


LOW = {"red circle": 0.05, "circle": 0.05, "star": 0.05, "red shape": 0.05, "blue square": 0.05}
HIGH = dict.fromkeys(LOW, 0.6)


def test_absent_takes_both_experts() -> None:
    assert verdict("There is a red circle.", hints=LOW) is Truth.CONTRADICTED
    assert verdict("There is a red circle.", hints=HIGH) is Truth.UNKNOWN
    assert verdict("There is a red circle.") is Truth.UNKNOWN
    assert verdict("There is a red circle.", seen("circle", 50, 50, score=0.2), hints=LOW) is Truth.UNKNOWN
    assert verdict("There is a red circle.", seen("circle", 50, 50, colour=""), hints=LOW) is Truth.UNKNOWN
    assert verdict("There is a red circle.", seen("circle", 50, 50, colour="blue"), hints=LOW) is Truth.CONTRADICTED


def test_a_denial_swaps_right_and_wrong_and_a_hedge_leaves_it_open() -> None:
    assert verdict("There is no red circle.", hints=LOW) is Truth.SUPPORTED
    assert verdict("There is no red circle.", seen("circle", 50, 50)) is Truth.CONTRADICTED
    assert verdict("There is no red circle.", hints=HIGH) is Truth.UNKNOWN
    assert verdict("Perhaps there is a red circle.", seen("circle", 50, 50)) is Truth.UNKNOWN


def test_a_count_stays_open_where_a_weak_box_or_a_window_hints_at_one_more() -> None:
    two = (seen("circle", 50, 50), seen("circle", 150, 150))
    assert verdict("There are two circles.", *two, hints=LOW) is Truth.SUPPORTED
    assert verdict("There is one circle.", *two) is Truth.CONTRADICTED
    assert verdict("There are three circles.", *two, hints=LOW) is Truth.CONTRADICTED
    assert verdict("There are three circles.", *two, hints=HIGH) is Truth.UNKNOWN
    assert verdict("There are three circles.", *two) is Truth.UNKNOWN
    weak = seen("circle", 250, 50, score=0.3)
    assert verdict("There are two circles.", *two, weak, hints=LOW) is Truth.UNKNOWN
    assert verdict("There are three circles.", *two, weak, hints=LOW) is Truth.UNKNOWN
    assert verdict("There are four circles.", *two, weak, hints=LOW) is Truth.CONTRADICTED
    assert verdict("There are no circles.", hints=LOW) is Truth.SUPPORTED
    assert verdict("There are no circles.") is Truth.UNKNOWN


def test_an_attribute_is_right_of_all_wrong_of_none_and_open_between() -> None:
    assert verdict("The star is red.", seen("star", 50, 50)) is Truth.SUPPORTED
    assert verdict("The star is blue.", seen("star", 50, 50)) is Truth.CONTRADICTED
    assert verdict("The star is red.", seen("star", 50, 50, colour="")) is Truth.UNKNOWN
    assert verdict("The star is red.", seen("star", 50, 50), seen("star", 250, 50, "blue")) is Truth.UNKNOWN
    assert verdict("The star is red.", hints=LOW) is Truth.CONTRADICTED, "there is no star to be red"
    assert verdict("The star is red.") is Truth.UNKNOWN


def test_a_place_is_where_the_middle_lies_and_holds_one_thing_where_places_are_exclusive() -> None:
    assert verdict("There is a red circle at the top left.", seen("circle", 50, 50)) is Truth.SUPPORTED
    assert verdict("There is a red circle at the top left.", seen("star", 50, 50)) is Truth.CONTRADICTED
    assert verdict("There is a red circle at the top left.", seen("circle", 50, 50, "blue")) is Truth.CONTRADICTED
    assert verdict("There is a red circle at the top left.", seen("circle", 250, 50), hints=LOW) is Truth.CONTRADICTED
    assert verdict("There is a red circle at the top left.", seen("circle", 250, 50)) is Truth.UNKNOWN
    assert verdict("There is a red circle at the top left.", seen("circle", 99, 50)) is Truth.UNKNOWN, "on the border"
    assert verdict("nothing at the top left", seen("circle", 50, 50)) is Truth.CONTRADICTED
    assert verdict("nothing at the top left", hints={"shape": 0.02}) is Truth.SUPPORTED


def test_a_relation_needs_both_things_and_a_clear_distance() -> None:
    a, b = seen("circle", 50, 50), seen("square", 250, 60, "blue")
    assert verdict("The red circle is left of the blue square.", a, b) is Truth.SUPPORTED
    assert verdict("The red circle is right of the blue square.", a, b) is Truth.CONTRADICTED
    assert verdict("The red circle is above the blue square.", a, b) is Truth.UNKNOWN, "inside the dead zone"
    assert verdict("The red circle is left of the blue square.", a, hints=LOW) is Truth.CONTRADICTED
    assert verdict("The red circle is left of the blue square.", a) is Truth.UNKNOWN
    assert verdict("The red circle is left of the blue square.", a, b, seen("circle", 290, 200)) is Truth.UNKNOWN


def test_the_finding_names_boxes_experts_and_confidence() -> None:
    view = View(300, 300, (seen("circle", 50, 50, score=0.8),))
    finding = found("There is a red circle.", view)
    assert finding.expert == "detector+matcher"
    assert finding.score == 0.8
    assert finding.boxes == (view.sightings[0].box,)
    assert found("There is a circle.", view).expert == "detector"


def test_a_narrower_word_is_not_proven_by_a_box_of_the_noun_but_fails_without_one() -> None:
    claim = extract("There is a woman.", COCO)[0]
    person = Detection(box=box("person", 50, 50), attribute="", attribute_score=0.2)
    empty = tuple(Glance(window, {"woman": 0.01}) for window in windows(300, 300, (3,)))
    assert check(claim, View(300, 300, (person,)), COCO, BANDS).truth is Truth.UNKNOWN
    assert check(claim, View(300, 300, (), empty), COCO, BANDS).truth is Truth.CONTRADICTED


def test_a_noun_outside_the_vocabulary_is_unknown() -> None:
    claim = Claim(kind=ClaimKind.EXISTENCE, subject="unicorn", text="a unicorn", start=0, end=9)
    assert check(claim, View(300, 300, ()), COCO, BANDS).truth is Truth.UNKNOWN


def test_photographs_may_hold_two_things_at_one_place() -> None:
    claim = extract("There is a dog on the left.", COCO)[-1]
    if claim.kind is not ClaimKind.SPATIAL:
        claim = extract("There is a dog on the left.", COCO)[0]
    cat = Detection(box=box("cat", 50, 50), attribute="", attribute_score=0.2)
    assert check(claim, View(300, 300, (cat,)), COCO, BANDS).truth is Truth.UNKNOWN


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(SHAPES), st.sampled_from(COLOURS), st.floats(0, 1), st.integers(0, 8)), max_size=6
    ),
    st.floats(0, 1),
    st.integers(0, 10_000),
)
def test_a_claim_and_its_denial_never_agree(things: list[tuple[str, str, float, int]], hint: float, seed: int) -> None:
    sightings = tuple(
        seen(shape, 50 + 100 * (cell % 3), 50 + 100 * (cell // 3), colour, score)
        for shape, colour, score, cell in things
    )
    glances = tuple(Glance(window, dict.fromkeys(PHRASES, hint)) for window in windows(300, 300, (3,)))
    view = View(300, 300, sightings, glances)
    for claim in extract(statements(random.Random(seed)), SHAPES_WORDS):
        said = check(claim, view, SHAPES_WORDS, BANDS)
        denied = check(replace(claim, negated=not claim.negated), view, SHAPES_WORDS, BANDS)
        swapped = {
            Truth.SUPPORTED: Truth.CONTRADICTED,
            Truth.CONTRADICTED: Truth.SUPPORTED,
            Truth.UNKNOWN: Truth.UNKNOWN,
        }
        assert denied.truth is swapped[said.truth]
        assert 0 <= said.score <= 1


def test_cells_and_places_have_the_same_names() -> None:
    assert tuple(SHAPES_WORDS.places) == CELLS
    for index, cell in enumerate(CELLS):
        assert SHAPES_WORDS.place_at((index % 3 + 0.5) / 3, (index // 3 + 0.5) / 3) == cell
