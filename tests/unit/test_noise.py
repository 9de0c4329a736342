"""Errors added to experts: their rates, their determinism, and how the evidence of an image changes as a whole."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import PIL.Image
import pytest
from fake_experts import CIRCLE, FakeDetector, FakeMatcher
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.experts.detector import DetectorExpert, SecondDetectorExpert
from vlgenrm_ray.experts.evidence import WindowMatch
from vlgenrm_ray.experts.expert import ImageTask, MatchingConfig
from vlgenrm_ray.experts.matcher import MatcherExpert
from vlgenrm_ray.experts.noise import NoiseConfig, NoiseExpert
from vlgenrm_ray.experts.pipeline import ExpertPipeline, expert_configs
from vlgenrm_ray.records import Box, Detection, Truth, WindowScore

NOUNS = ("circle", "square", "triangle", "star")
NUM_OBJECTS = 4000


def config(**noise: Any) -> ExpertsConfig:
    return ExpertsConfig(
        vocabulary="shapes",
        detector=DetectorConfig(model="none"),
        matcher=MatcherConfig(model="none"),
        noise=NoiseConfig(**noise) if noise else None,
    )


def task(pixels: bytes = b"image", num_objects: int = NUM_OBJECTS, side: float = 10.0) -> ImageTask:
    """An image with many red circles in a row, each in a window of its own, scaled down by two."""
    boxes = tuple(
        Box(label="circle", score=0.9, x0=20.0 * i, y0=0.0, x1=20.0 * i + side, y1=side) for i in range(num_objects)
    )
    # Comparing windows with objects is quadratic; a photograph has dozens of each.
    windows = [replace(box.scaled(2, 2), label="", score=1.0) for box in boxes] if num_objects <= 100 else []
    return ImageTask(
        id="a",
        original_width=40 * num_objects,
        original_height=40,
        width=20 * num_objects,
        height=20,
        pixels=pixels,
        boxes=boxes,
        searched_nouns=NOUNS,
        detections=tuple(Detection(box=box.scaled(2, 2), attribute="red", attribute_score=0.95) for box in boxes),
        window_matches=tuple(WindowMatch(w, {"red circle": 0.99, "blue circle": 0.01, "star": 0.01}) for w in windows),
        window_scores=tuple(WindowScore(box=w, anything=0.98) for w in windows),
    )


def degrade(given: ImageTask, **noise: Any) -> ImageTask:
    (degraded,) = NoiseExpert(config(**noise)).examine([given])
    return degraded


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_errors_occur_at_their_rates(rate: float) -> None:
    close = pytest.approx(NUM_OBJECTS * rate, rel=0.15)
    assert NUM_OBJECTS - len(degrade(task(), missed=rate).boxes) == close
    confused = degrade(task(), confused=rate)
    assert sum(box.label != "circle" for box in confused.boxes) == close
    assert sum(detection.attribute != "red" for detection in confused.detections) == close
    assert sum(box.score < 0.5 for box in degrade(task(), unsure=rate).boxes) == close


def test_small_objects_are_missed_more() -> None:
    noise = {"missed": 0.1, "small_missed": 0.4, "small_area": 0.5 / NUM_OBJECTS}
    small, large = task(side=10.0), task(side=20.0)
    assert NUM_OBJECTS - len(degrade(small, **noise).boxes) == pytest.approx(0.4 * NUM_OBJECTS, rel=0.1)
    assert NUM_OBJECTS - len(degrade(large, **noise).boxes) == pytest.approx(0.1 * NUM_OBJECTS, rel=0.15)


def test_errors_follow_from_seed_and_image() -> None:
    rates = {"missed": 0.2, "confused": 0.2, "unsure": 0.2}
    assert degrade(task(), **rates) == degrade(task(), **rates)
    assert degrade(task(), **rates).boxes != degrade(task(), **rates, seed=1).boxes
    assert degrade(task(), **rates).boxes != degrade(task(b"another image"), **rates).boxes


def test_what_is_missed_at_one_rate_is_missed_at_every_higher_rate() -> None:
    low, high = (set(degrade(task(), missed=rate).boxes) for rate in (0.1, 0.3))
    assert high < low


@given(st.randoms(use_true_random=False))
def test_errors_depend_neither_on_the_order_of_boxes_nor_on_the_batch(rng: random.Random) -> None:
    expert = NoiseExpert(config(missed=0.3, confused=0.3, unsure=0.3))
    original = task(num_objects=30)
    order = rng.sample(range(30), 30)
    shuffled = replace(
        original,
        boxes=tuple(original.boxes[i] for i in order),
        detections=tuple(original.detections[i] for i in order),
    )
    alone, batched = expert.examine([original])[0], expert.examine([task(b"other", 5), shuffled])[1]
    assert set(alone.boxes) == set(batched.boxes)
    assert set(alone.detections) == set(batched.detections)
    assert alone.window_matches == batched.window_matches


def test_the_matcher_misses_what_the_detector_misses() -> None:
    degraded = degrade(task(num_objects=50), missed=1.0)
    assert not degraded.boxes
    assert not degraded.detections
    assert {score.anything for score in degraded.window_scores} == {0.0}
    assert {match.scores["red circle"] for match in degraded.window_matches} == {0.0}
    assert {match.scores["star"] for match in degraded.window_matches} == {0.01}


def test_the_matcher_confuses_what_the_detector_confuses() -> None:
    degraded = degrade(task(num_objects=50), confused=1.0, similar={"red": ("blue",), "circle": ("circle",)})
    assert {(d.box.label, d.attribute) for d in degraded.detections} == {("circle", "blue")}
    assert {(m.scores["red circle"], m.scores["blue circle"]) for m in degraded.window_matches} == {(0.0, 0.98)}
    assert {score.anything for score in degraded.window_scores} == {0.98}


def test_an_error_that_is_not_shared_leaves_the_windows_as_they_are() -> None:
    original, degraded = task(num_objects=50), degrade(task(num_objects=50), missed=0.5, confused=0.5, shared=0.0)
    assert degraded.boxes != original.boxes
    assert degraded.window_matches == original.window_matches
    assert degraded.window_scores == original.window_scores
    partly = degrade(task(num_objects=100), missed=1.0, shared=0.4)
    assert sum(score.anything == 0.0 for score in partly.window_scores) == pytest.approx(40, abs=15)


def test_boxes_and_detections_stay_of_one_kind() -> None:
    degraded = degrade(task(), missed=0.3, confused=0.3, unsure=0.3)
    assert {box.scaled(2, 2) for box in degraded.boxes} == {d.box for d in degraded.detections}
    assert [box.score for box in degraded.boxes] == sorted((box.score for box in degraded.boxes), reverse=True)


def test_without_rates_nothing_changes() -> None:
    assert degrade(task(num_objects=50), seed=3) == task(num_objects=50)


class EverywhereMatcher(FakeMatcher):
    """Sees a red circle in every crop and window."""

    def match(self, images: Sequence[PIL.Image.Image], texts: Sequence[str]) -> list[list[float]]:
        row = [1.0 if text == "a red circle" else 0.001 for text in texts]
        return [[w / sum(row) for w in row] for _ in images]


def truths(text: str, **noise: Any) -> list[Truth]:
    settings = config(**noise).model_copy(update={"matching": MatchingConfig(grids=(1,))})
    experts = [
        DetectorExpert(settings, detector=FakeDetector()),
        MatcherExpert(settings, matcher=EverywhereMatcher()),
        NoiseExpert(settings),
    ]
    report = ExpertPipeline(settings, experts).report(PIL.Image.new("RGB", (20, 20), "white"), [text])
    return [finding.truth for finding in report.findings[0]]


def test_each_error_has_its_effect_on_findings() -> None:
    text = "There is a red circle."
    assert truths(text, seed=0, missed=0.0) == [Truth.SUPPORTED]
    assert truths(text, missed=1.0) == [Truth.CONTRADICTED]
    assert truths(text, confused=1.0) == [Truth.CONTRADICTED]
    assert truths(text, unsure=1.0) == [Truth.UNKNOWN]


def test_two_detectors_miss_an_object_together() -> None:
    settings = config(missed=1.0).model_copy(update={"matcher": None, "second_detector": DetectorConfig(model="none")})
    assert [expert.kind for expert in expert_configs(settings)] == ["detector", "second_detector", "noise"]
    experts = [
        DetectorExpert(settings, detector=FakeDetector((CIRCLE,))),
        SecondDetectorExpert(settings, detector=FakeDetector((CIRCLE,))),
        NoiseExpert(settings),
    ]
    report = ExpertPipeline(settings, experts).report(PIL.Image.new("RGB", (20, 20), "white"), ["There is a circle."])
    assert report.findings[0][0].truth is Truth.CONTRADICTED


def test_an_experiment_without_noise_has_no_further_expert_nor_actors() -> None:
    assert [expert.kind for expert in expert_configs(config())] == ["detector", "matcher"]
    assert [expert.kind for expert in expert_configs(config(missed=0.1))] == ["detector", "matcher", "noise"]
    assert len(config(missed=0.1).actor_pools()) == len(config().actor_pools()) + 1
