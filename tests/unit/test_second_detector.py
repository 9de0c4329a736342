"""Two detectors: combined scores, absence without a matcher, and pipelines in which one of the experts is missing."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import yaml
from factories import box
from fake_experts import CIRCLE, FakeDetector, FakeMatcher
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.errors import ConfigError, InputError
from vlgenrm_ray.experts.calibration import CalibratedThresholds, Calibration, FusionConfig, NounThresholds
from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.detector import DetectorExpert, SecondDetectorExpert, fuse_boxes, fuse_scores
from vlgenrm_ray.experts.evidence import ImageEvidence
from vlgenrm_ray.experts.matcher import MatcherExpert
from vlgenrm_ray.experts.pipeline import ExpertPipeline, expert_configs
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Box, Detection, ImageRef, Truth

ONE = ExpertsConfig(vocabulary="shapes", detector=DetectorConfig(model="none"))
TWO = ONE.model_copy(update={"second_detector": DetectorConfig(model="none")})
SHAPES = load_vocabulary("shapes")
PLAIN_IMAGE = PIL.Image.new("RGB", (60, 60), "white")
ALL_NOUNS = ("circle", "square", "triangle", "star")


def detector(*boxes: Box, labels: tuple[str, ...] = ALL_NOUNS) -> FakeDetector:
    fake = FakeDetector(boxes)
    fake.labels = labels
    return fake


class StarMatcher(FakeMatcher):
    """Sees a star in every window."""

    def match(self, images: Sequence[PIL.Image.Image], texts: Sequence[str]) -> list[list[float]]:
        row = [1.0 if "star" in text else 0.001 for text in texts]
        return [[w / sum(row) for w in row] for _ in images]


def truths(
    config: ExpertsConfig, text: str, *detectors: FakeDetector, matcher: FakeMatcher | None = None
) -> list[Truth]:
    """The verdicts on a text by one or two detectors, with or without a matcher."""
    experts: list[object] = [DetectorExpert(config, detector=detectors[0])]
    experts += [SecondDetectorExpert(config, detector=one) for one in detectors[1:]]
    experts += [MatcherExpert(config, matcher=matcher)] if matcher else []
    pipeline = ExpertPipeline(config, experts)  # type: ignore[arg-type]
    return [finding.truth for finding in pipeline.report(PLAIN_IMAGE, [text]).findings[0]]


def test_without_a_matcher_one_detector_supports_but_never_finds_anything_absent() -> None:
    assert [e.kind for e in expert_configs(ONE)] == ["detector"]
    assert ONE.actor_pools() == (ONE.detector_actors,)
    assert truths(ONE, "There is a circle.", detector(CIRCLE)) == [Truth.SUPPORTED]
    assert truths(ONE, "There is a star.", detector(CIRCLE)) == [Truth.UNKNOWN]
    assert truths(ONE, "There are two circles.", detector(CIRCLE)) == [Truth.UNKNOWN]
    assert truths(ONE, "The circle is red.", detector(CIRCLE)) == [Truth.UNKNOWN]


def test_two_detectors_decide_absence_without_a_matcher() -> None:
    assert [e.kind for e in expert_configs(TWO)] == ["detector", "second_detector"]
    assert TWO.actor_pools() == (TWO.detector_actors, TWO.second_detector_actors)
    both = (detector(CIRCLE), detector(CIRCLE))
    assert truths(TWO, "There is a circle.", *both) == [Truth.SUPPORTED]
    assert truths(TWO, "There is a star.", *both) == [Truth.CONTRADICTED]
    assert truths(TWO, "There is no star.", *both) == [Truth.SUPPORTED]
    assert truths(TWO, "There are two circles.", *both) == [Truth.CONTRADICTED]
    assert truths(TWO, "There is one circle.", *both) == [Truth.SUPPORTED]


def test_an_object_that_one_of_two_detectors_sees_is_neither_sure_nor_absent() -> None:
    star = replace(CIRCLE, label="star", score=0.8, x0=30.0, x1=40.0)
    assert truths(TWO, "There is a star.", detector(star), detector(CIRCLE)) == [Truth.UNKNOWN]
    assert truths(TWO, "There is a star.", detector(CIRCLE), detector(star)) == [Truth.UNKNOWN]


def test_an_object_whose_box_is_taken_for_another_noun_is_not_absent() -> None:
    both = (detector(CIRCLE), detector(CIRCLE, replace(CIRCLE, label="star", score=0.8)))
    assert truths(TWO, "There is a star.", *both) == [Truth.UNKNOWN]
    assert truths(TWO, "There is a square.", *both) == [Truth.CONTRADICTED]


def test_a_noun_that_the_second_detector_does_not_know_is_not_absent() -> None:
    second = detector(CIRCLE, labels=("circle",))
    assert truths(TWO, "There is a star.", detector(CIRCLE), second) == [Truth.UNKNOWN]


def test_with_two_detectors_and_a_matcher_all_three_must_agree_on_an_absence() -> None:
    both = (detector(), detector())
    assert truths(TWO, "There is a star.", *both, matcher=StarMatcher()) == [Truth.UNKNOWN]
    assert truths(TWO, "There is a square.", *both, matcher=StarMatcher()) == [Truth.CONTRADICTED]
    one = detector()
    assert truths(ONE, "There is a square.", one, matcher=StarMatcher()) == [Truth.CONTRADICTED], "a detector and it"


def test_the_finding_names_the_experts_that_decided() -> None:
    (claim,) = extract_claims("There is a star.", SHAPES)
    evidence = ImageEvidence(60, 60, (), (), frozenset(ALL_NOUNS))
    finding = check_claim(claim, evidence, SHAPES, CalibratedThresholds(both_miss=0.05))
    assert (finding.expert, finding.score) == ("detector+second_detector", 0.95)


def test_absence_by_two_detectors_is_found_again_in_the_records() -> None:
    image = ImageRef(uri="x", sha256="0", width=60, height=60)
    (claim,) = extract_claims("There is a star.", SHAPES)
    seen = (Detection(box=CIRCLE, attribute="", attribute_score=0.0),)
    with_nouns = ImageEvidence.from_records(image, seen, (), ALL_NOUNS)
    assert check_claim(claim, with_nouns, SHAPES, Thresholds()).truth is Truth.CONTRADICTED
    assert check_claim(claim, ImageEvidence.from_records(image, seen), SHAPES, Thresholds()).truth is Truth.UNKNOWN


def test_an_expert_without_its_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"set experts\.second_detector"):
        SecondDetectorExpert(ONE)
    with pytest.raises(ConfigError, match=r"set experts\.matcher"):
        MatcherExpert(ONE)


# -- scores of two detectors -------------------------------------------------------------------------------------------

scores = st.floats(0, 1)


@given(scores, scores, scores)
def test_a_score_rises_with_that_of_each_detector_and_stays_in_range(low: float, high: float, other: float) -> None:
    low, high = sorted((low, high))
    config = FusionConfig()
    assert 0 <= fuse_scores(low, other, config) <= fuse_scores(high, other, config) <= 1
    assert fuse_scores(other, low, config) == pytest.approx(fuse_scores(low, other, config)), "equal weights"


def test_the_score_is_the_logistic_combination() -> None:
    config = FusionConfig(weights=(1.0, 2.0), offset=0.5, floor=0.2)
    logit = 0.5 + math.log(0.6 / 0.4) + 2 * math.log(0.2 / 0.8)
    assert fuse_scores(0.6, 0.0, config) == pytest.approx(1 / (1 + math.exp(-logit)))


def test_boxes_of_one_noun_that_overlap_are_one_object() -> None:
    first = [box("star", x0=0, y0=0, x1=10, y1=10, score=0.6), box("circle", x0=20, y0=20, x1=30, y1=30, score=0.9)]
    second = [box("star", x0=1, y0=0, x1=11, y1=10, score=0.8), box("star", x0=40, y0=40, x1=50, y1=50, score=0.7)]
    fused = fuse_boxes(first, second, ("star",), FusionConfig())
    assert sorted((b.label, b.x0) for b in fused) == [("circle", 20), ("star", 1), ("star", 40)]
    by_place = {b.x0: b.score for b in fused}
    assert by_place[20] == 0.9, "the second detector does not know circles"
    assert by_place[1] > by_place[40]
    assert list(fused) == sorted(fused, key=lambda b: -b.score)


@given(
    st.lists(st.tuples(scores, st.integers(0, 5)), max_size=5),
    st.lists(st.tuples(scores, st.integers(0, 5)), max_size=5),
)
def test_no_object_is_lost_and_none_is_counted_twice(a: list[tuple[float, int]], b: list[tuple[float, int]]) -> None:
    def boxes(items: list[tuple[float, int]]) -> list[Box]:
        return [box("star", x0=20.0 * i, x1=20.0 * i + 10, score=s) for i, s in {i: (i, s) for s, i in items}.values()]

    fused = fuse_boxes(boxes(a), boxes(b), ("star",), FusionConfig())
    assert sorted(f.x0 for f in fused) == sorted({x.x0 for x in (*boxes(a), *boxes(b))})


# -- thresholds of nouns and kinds -------------------------------------------------------------------------------------


def calibrated_by(folder: Path, calibration: Calibration, config: ExpertsConfig = TWO) -> ExpertsConfig:
    """The configuration with a calibration file."""
    path = folder / "calibration.yaml"
    path.write_text(yaml.safe_dump(calibration.model_dump(mode="json", exclude_unset=True)))
    return config.model_copy(update={"calibration": str(path)})


def test_boxes_below_the_limit_of_their_noun_count_for_nothing(tmp_path: Path) -> None:
    limits = {"star": NounThresholds(sure_box=0.3, absent_box=0.2, both_miss=0.1)}
    thresholds = CalibratedThresholds(absent_box=0.05, nouns=limits)
    config = calibrated_by(tmp_path, Calibration(thresholds=thresholds))
    weak, weaker = (replace(CIRCLE, label="star", score=s) for s in (0.5, 0.2))
    assert truths(config, "There is a star.", detector(weak), detector(weak)) == [Truth.SUPPORTED]
    assert truths(config, "There is a star.", detector(weaker), detector()) == [Truth.CONTRADICTED]
    assert truths(TWO, "There is a star.", detector(weaker), detector()) == [Truth.UNKNOWN]


def test_a_verdict_with_too_little_confidence_for_its_kind_is_unknown(tmp_path: Path) -> None:
    thresholds = CalibratedThresholds(min_scores={"count/supported": 0.95})
    strict = calibrated_by(tmp_path, Calibration(thresholds=thresholds), ONE)
    assert truths(strict, "There is one circle.", detector(CIRCLE)) == [Truth.UNKNOWN]
    assert truths(strict, "There is a circle.", detector(CIRCLE)) == [Truth.SUPPORTED]


def test_a_calibration_replaces_only_the_thresholds_it_states(tmp_path: Path) -> None:
    own = TWO.model_copy(update={"thresholds": Thresholds(edge=0.3, sure_box=0.9)})
    fusion = FusionConfig(weights=(2.0, 1.0), offset=-1.0)
    config = calibrated_by(tmp_path, Calibration(thresholds=CalibratedThresholds(sure_box=0.4), fusion=fusion), own)
    assert (config.fitted_thresholds().edge, config.fitted_thresholds().sure_box) == (0.3, 0.4)
    assert config.fusion() == fusion
    assert own.fusion() == FusionConfig()


def test_an_unreadable_calibration_is_named(tmp_path: Path) -> None:
    missing = ONE.model_copy(update={"calibration": str(tmp_path / "none.yaml")})
    with pytest.raises(InputError, match=r"experts\.calibration: .*cannot be read.*vlgenrm experts calibrate"):
        ExpertPipeline(missing)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("thresholds: {min_scores: {nonsense: 0.5}}")
    with pytest.raises(InputError, match="is no calibration"):
        ONE.model_copy(update={"calibration": str(wrong)}).fitted_thresholds()


def test_without_a_matcher_the_service_and_a_recipe_are_valid() -> None:
    assert ExpertsConfig.model_validate({"detector": {"model": "x"}}).matcher is None
    both = ExpertsConfig(detector=DetectorConfig(model="x"), matcher=MatcherConfig(model="y"))
    assert [e.kind for e in expert_configs(both)] == ["detector", "matcher"]
