"""What is asked of a matcher and what is made of its answers."""

from collections.abc import Sequence

import PIL.Image
import pytest

from vlgenrm_ray.experts.claims import extract
from vlgenrm_ray.experts.matching import MatchingConfig, glances_of, known_phrases, nouns_of, phrases_of, sightings_of
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Box

WORDS = load_vocabulary("shapes")
IMAGE = PIL.Image.new("RGB", (90, 60))


class ByWord:
    """A matcher that likes some texts better than others, whatever the image, and remembers what it was asked."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self.calls: list[tuple[list[tuple[int, int]], list[str]]] = []

    def match(self, images: Sequence[PIL.Image.Image], texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(([image.size for image in images], list(texts)))
        weights = [self.weights.get(text, 0.001) for text in texts]
        return [[w / sum(weights) for w in weights] for _ in images]


def box(label: str, *corners: float, score: float = 0.9) -> Box:
    x0, y0, x1, y1 = corners
    return Box(label=label, score=score, x0=x0, y0=y0, x1=x1, y1=y1)


def test_attributes_are_decided_among_paired_prompts_of_the_boxs_noun() -> None:
    matcher = ByWord({"a red circle": 1.0})
    (sightings,) = sightings_of([(IMAGE, [box("circle", 10, 10, 30, 30)])], matcher, WORDS, MatchingConfig())
    assert [(s.attribute, s.attribute_score > 0.9) for s in sightings] == [("red", True)]
    ((sizes, texts),) = matcher.calls
    assert texts == [f"{'an' if c == 'orange' else 'a'} {c} circle" for c in WORDS.attributes["colour"]]
    assert sizes == [(22, 22)], "the crop is a little wider than the box"


def test_a_close_race_leaves_the_attribute_open() -> None:
    matcher = ByWord({"a red circle": 1.0, "an orange circle": 0.9})
    (sightings,) = sightings_of([(IMAGE, [box("circle", 10, 10, 30, 30)])], matcher, WORDS, MatchingConfig())
    assert sightings[0].attribute == ""


def test_sightings_come_best_first_and_stay_with_their_image() -> None:
    seen = [
        (IMAGE, [box("circle", 0, 0, 9, 9, score=0.3), box("star", 20, 20, 40, 40, score=0.8)]),
        (IMAGE, []),
        (IMAGE, [box("star", 1, 1, 5, 5)]),
    ]
    found = sightings_of(seen, ByWord({}), WORDS, MatchingConfig())
    assert [[s.box.label for s in one] for one in found] == [["star", "circle"], [], ["star"]]


def test_boxes_beyond_the_image_are_cropped_to_it() -> None:
    matcher = ByWord({})
    sightings_of(
        [(IMAGE, [box("star", -20, -20, 200, 200), box("star", 89, 59, 90, 60)])], matcher, WORDS, MatchingConfig()
    )
    assert matcher.calls[0][0] == [(90, 60), (1, 1)]


def test_a_glance_weighs_a_phrase_against_every_noun_and_attribute_and_nothing_at_all() -> None:
    matcher = ByWord({"a red circle": 3.0, "a red star": 1.0, "a circle": 4.0})
    config = MatchingConfig(grids=(1, 2))
    phrases = ("circle", "red circle", "red shape", "shape")
    (glances,) = glances_of([IMAGE], [phrases], matcher, WORDS, config)
    assert len(glances) == 5
    assert [(g.window.x0, g.window.y0, g.window.x1, g.window.y1) for g in glances[:2]] == [
        (0, 0, 90, 60),
        (0, 0, 45, 30),
    ]
    scores = glances[0].scores
    assert scores["red circle"] == pytest.approx(0.75, abs=0.01)
    assert scores["red shape"] == pytest.approx(1.0, abs=0.01)
    assert scores["circle"] > 0.99
    assert scores["shape"] == pytest.approx(1.0, abs=0.01)
    plain, coloured = (texts for _, texts in matcher.calls)
    assert len(plain) == 4 + 1
    assert len(coloured) == 4 * 6 + 1
    assert coloured[-1] == "nothing"


def test_images_nobody_speaks_of_are_not_matched() -> None:
    matcher = ByWord({})
    assert glances_of([IMAGE, IMAGE], [(), ()], matcher, WORDS, MatchingConfig()) == [(), ()]
    assert matcher.calls == []
    first, second = glances_of([IMAGE, IMAGE], [(), ("star",)], matcher, WORDS, MatchingConfig(grids=(2,)))
    assert (len(first), len(second)) == (0, 4)


def test_phrases_and_nouns_follow_what_the_detector_knows() -> None:
    claims = extract("The red circle is left of the blue square. There is a star.", WORDS)
    phrases = phrases_of(claims)
    assert phrases == ("blue square", "red circle", "star")
    assert known_phrases(phrases, WORDS, ("circle", "star")) == ("red circle", "star")
    assert known_phrases(phrases, WORDS, ()) == phrases
    assert nouns_of(phrases, WORDS, ("circle", "star")) == ("circle", "star")
    assert nouns_of(phrases, WORDS, ()) == ("circle", "square", "star")
    assert nouns_of(("red shape",), WORDS, ()) == tuple(sorted(WORDS.nouns)), "any noun may be meant"
