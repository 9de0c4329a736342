"""The matcher expert: attributes of boxes and phrases in windows, from the scores of a fake matcher."""

from collections.abc import Sequence

import PIL.Image
import pytest

from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.detector import detectable_phrases, nouns_to_detect, phrases_of
from vlgenrm_ray.experts.expert import MatchingConfig
from vlgenrm_ray.experts.matcher import match_attributes, match_windows
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Box

WORDS = load_vocabulary("shapes")
IMAGE = PIL.Image.new("RGB", (90, 60))


class WeightedMatcher:
    """A fake matcher with a fixed weight per text, for every image; it records its calls."""

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


def test_attributes_compete_on_the_crop_with_the_noun_of_the_box() -> None:
    matcher = WeightedMatcher({"a red circle": 1.0})
    (detections,) = match_attributes([(IMAGE, [box("circle", 10, 10, 30, 30)])], matcher, WORDS, MatchingConfig())
    assert [(d.attribute, d.attribute_score > 0.9) for d in detections] == [("red", True)]
    ((sizes, texts),) = matcher.calls
    assert texts == [f"{'an' if c == 'orange' else 'a'} {c} circle" for c in WORDS.attributes["colour"]]
    assert sizes == [(22, 22)], "the crop is a little wider than the box"


def test_an_attribute_within_the_margin_of_the_second_best_is_undecided() -> None:
    matcher = WeightedMatcher({"a red circle": 1.0, "an orange circle": 0.9})
    (detections,) = match_attributes([(IMAGE, [box("circle", 10, 10, 30, 30)])], matcher, WORDS, MatchingConfig())
    assert detections[0].attribute == ""


def test_detections_are_sorted_by_score_within_their_image() -> None:
    images = [
        (IMAGE, [box("circle", 0, 0, 9, 9, score=0.3), box("star", 20, 20, 40, 40, score=0.8)]),
        (IMAGE, []),
        (IMAGE, [box("star", 1, 1, 5, 5)]),
    ]
    detections = match_attributes(images, WeightedMatcher({}), WORDS, MatchingConfig())
    assert [[d.box.label for d in of_image] for of_image in detections] == [["star", "circle"], [], ["star"]]


def test_boxes_beyond_the_image_are_clipped_to_it() -> None:
    matcher = WeightedMatcher({})
    match_attributes(
        [(IMAGE, [box("star", -20, -20, 200, 200), box("star", 89, 59, 90, 60)])], matcher, WORDS, MatchingConfig()
    )
    assert matcher.calls[0][0] == [(90, 60), (1, 1)]


def test_a_phrase_competes_with_every_noun_and_attribute_and_the_background() -> None:
    matcher = WeightedMatcher({"a red circle": 3.0, "a red star": 1.0, "a circle": 4.0})
    config = MatchingConfig(grids=(1, 2))
    phrases = ("circle", "red circle", "red shape", "shape")
    (windows,) = match_windows([IMAGE], [phrases], matcher, WORDS, config)
    assert len(windows) == 5
    assert [(w.box.x0, w.box.y0, w.box.x1, w.box.y1) for w in windows[:2]] == [
        (0, 0, 90, 60),
        (0, 0, 45, 30),
    ]
    scores = windows[0].scores
    assert scores["red circle"] == pytest.approx(0.75, abs=0.01)
    assert scores["red shape"] == pytest.approx(1.0, abs=0.01)
    assert scores["circle"] > 0.99
    assert scores["shape"] == pytest.approx(1.0, abs=0.01)
    plain, coloured = (texts for _, texts in matcher.calls)
    assert len(plain) == 4 + 1
    assert len(coloured) == 4 * 6 + 1
    assert coloured[-1] == "nothing"


def test_images_without_phrases_are_not_matched() -> None:
    matcher = WeightedMatcher({})
    assert match_windows([IMAGE, IMAGE], [(), ()], matcher, WORDS, MatchingConfig()) == [(), ()]
    assert matcher.calls == []
    first, second = match_windows([IMAGE, IMAGE], [(), ("star",)], matcher, WORDS, MatchingConfig(grids=(2,)))
    assert (len(first), len(second)) == (0, 4)


def test_phrases_and_nouns_depend_on_the_labels_of_the_detector() -> None:
    claims = extract_claims("The red circle is left of the blue square. There is a star.", WORDS)
    phrases = phrases_of(claims)
    assert phrases == ("blue square", "red circle", "star")
    assert detectable_phrases(phrases, WORDS, ("circle", "star")) == ("red circle", "star")
    assert detectable_phrases(phrases, WORDS, ()) == phrases
    assert nouns_to_detect(phrases, WORDS, ("circle", "star")) == ("circle", "star")
    assert nouns_to_detect(phrases, WORDS, ()) == ("circle", "square", "star")
    assert nouns_to_detect(("red shape",), WORDS, ()) == tuple(sorted(WORDS.nouns)), "any noun may be meant"
