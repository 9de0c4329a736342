"""The expert pipeline with fake models: its steps, the isolation of failures, and kinds of experts from recipes."""

import hashlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from factories import image, question, response
from fake_experts import CIRCLE, FakeDetector, FakeMatcher, pipeline
from pydantic import ValidationError

from vlgenrm_ray.curation import experts
from vlgenrm_ray.curation.experts import ExpertsConfig, ImageResponses
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.detectors import DetectorConfig, build_detector
from vlgenrm_ray.engines.matchers import MatcherConfig, build_matcher
from vlgenrm_ray.errors import ConfigError, DropReason
from vlgenrm_ray.experts.detector import DetectorExpert
from vlgenrm_ray.experts.expert import ExpertConfig
from vlgenrm_ray.experts.matcher import MatcherExpert
from vlgenrm_ray.experts.pipeline import ExpertPipeline, build_expert, expert_configs
from vlgenrm_ray.records import ImageRef, Response, Truth

CONFIG = ExpertsConfig(
    vocabulary="shapes", detector=DetectorConfig(model="none"), matcher=MatcherConfig(model="none"), max_side=60
)
PIPELINE = pipeline(CONFIG)


def write_image(folder: Path, colour: str = "white", size: tuple[int, int] = (120, 60)) -> ImageRef:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    data = buffer.getvalue()
    path = folder / f"{colour}.png"
    path.write_bytes(data)
    return image(uri=str(path), sha256=hashlib.sha256(data).hexdigest(), width=size[0], height=size[1])


def responses_about(ref: ImageRef, *texts: str) -> list[Response]:
    return [response(f"q0/r{i}", question=question(image=ref), text=text) for i, text in enumerate(texts)]


def open_row(folder: Path, *texts: str, colour: str = "white") -> ImageResponses:
    ref = write_image(folder, colour)
    return experts.open_image(ref.sha256, responses_about(ref, *texts), PIPELINE, CONFIG.images)


def detector_only(detector: FakeDetector) -> ExpertPipeline:
    return ExpertPipeline(CONFIG, [DetectorExpert(CONFIG, detector=detector)])


def test_an_image_is_opened_once_scaled_down_and_its_phrases_collected(tmp_path: Path) -> None:
    task = open_row(tmp_path, "There is a red circle.", "The star is blue.", "Hello.").task
    assert (task.width, task.height) == (60, 30)
    assert len(task.pixels) == 60 * 30 * 3
    assert task.phrases == ("red circle", "star")
    assert task.scale == (2.0, 2.0)


def test_a_missing_image_drops_every_response_with_the_reason() -> None:
    ref = image(uri="/nowhere/x.png")
    row = experts.open_image(ref.sha256, responses_about(ref, "There is a circle.", "No."), PIPELINE, CONFIG.images)
    (examined,) = experts.examine_images([row], PIPELINE)
    unit = experts.check_responses(examined, PIPELINE)
    assert unit.id == ref.sha256
    assert unit.records == ()
    assert [(d.id, d.reason, d.stage) for d in unit.dropped] == [
        ("q0/r0", DropReason.IMAGE_MISSING, "experts"),
        ("q0/r1", DropReason.IMAGE_MISSING, "experts"),
    ]


def test_evidence_is_in_pixels_of_the_original_image(tmp_path: Path) -> None:
    task = open_row(tmp_path, "There is a red circle.").task
    (task,) = PIPELINE.examine([task])
    assert task.boxes == (CIRCLE,), "in pixels of the scaled image"
    (detection,) = task.detections
    assert (detection.box.x0, detection.box.x1) == (10.0, 30.0)
    assert detection.attribute == "red"
    assert max(window.box.x1 for window in task.window_matches) == 120
    assert max(window.box.x1 for window in task.window_scores) == 120


def test_every_response_is_checked_and_one_without_claims_is_not_dropped(tmp_path: Path) -> None:
    row = open_row(tmp_path, "There is a red circle.", "The circle is blue.", "Hello.")
    (row,) = experts.examine_images([row], PIPELINE)
    unit = experts.check_responses(row, PIPELINE)
    assert [[f.truth for f in record.findings] for record in unit.records] == [
        [Truth.SUPPORTED],
        [Truth.CONTRADICTED],
        [],
    ]
    assert all(record.detections == row.task.detections for record in unit.records)
    assert unit.dropped == ()


def test_phrases_the_detector_does_not_know_are_never_absent(tmp_path: Path) -> None:
    (row,) = experts.examine_images([open_row(tmp_path, "There is a blue square.", "There is a blue star.")], PIPELINE)
    square, star = experts.check_responses(row, PIPELINE).records
    assert square.findings[0].truth is Truth.UNKNOWN, "this detector knows no squares"
    assert star.findings[0].truth is Truth.CONTRADICTED


def test_an_open_vocabulary_detector_searches_for_the_nouns_of_the_claims(tmp_path: Path) -> None:
    detector = FakeDetector()
    detector.labels = ()
    first = open_row(tmp_path, "There is a star.").task
    tasks = [first, replace(first, id="b", phrases=("red circle",)), replace(first, id="c")]
    assert [task.id for task in detector_only(detector).examine(tasks)] == [first.id, "b", "c"]
    assert sorted(detector.calls) == [(1, ("circle",)), (2, ("star",))], "equal nouns in one batch"


def test_an_image_that_an_expert_fails_on_does_not_affect_the_others(tmp_path: Path) -> None:
    good = open_row(tmp_path, "There is a circle.").task
    bad = open_row(tmp_path, "There is a circle.", colour="black").task
    examined = detector_only(FakeDetector()).examine([bad, good])
    assert [task.drop_reason for task in examined] == [DropReason.ENGINE_ERROR, ""]
    assert examined[0].detail == "RuntimeError: black"
    assert examined[1].boxes == (CIRCLE,)


def test_an_expert_that_fails_on_every_image_is_broken(tmp_path: Path) -> None:
    bad = open_row(tmp_path, "There is a circle.", colour="black").task
    with pytest.raises(RuntimeError, match="black"):
        detector_only(FakeDetector()).examine([bad, replace(bad, id="again")])


def test_overlapping_boxes_are_one_object(tmp_path: Path) -> None:
    boxes = [CIRCLE, replace(CIRCLE, score=0.6, x0=6.0), replace(CIRCLE, label="star", score=0.5)]
    task = open_row(tmp_path, "There is one circle.").task
    assert detector_only(FakeDetector(boxes)).examine([task])[0].boxes == (CIRCLE,)


def test_image_limits_are_those_of_the_configuration(tmp_path: Path) -> None:
    ref = write_image(tmp_path)
    row = experts.open_image(ref.sha256, responses_about(ref, "A star."), PIPELINE, ImageLimits(max_pixels=100))
    assert row.task.drop_reason == DropReason.IMAGE_TOO_LARGE


def test_a_report_on_one_image_equals_the_result_of_the_stage(tmp_path: Path) -> None:
    texts = ("There is a red circle.", "The circle is blue.", "There is a blue square. There is a blue star.", "Hello.")
    row = open_row(tmp_path, *texts)
    (examined,) = experts.examine_images([row], PIPELINE)
    records = experts.check_responses(examined, PIPELINE).records
    with PIL.Image.open(row.responses[0].question.image.uri) as image:
        report = PIPELINE.report(image, texts)
    assert report.findings == tuple(record.findings for record in records)
    assert (report.detections, report.window_scores) == (records[0].detections, records[0].window_scores)
    assert (report.width, report.height) == (120, 60)


# -- extension points --------------------------------------------------------------------------------------------------

PACKAGE = '''
from dataclasses import replace

from vlgenrm_ray.records import Box, ClaimKind, Finding, Truth


class CornerDetector:
    labels = ()

    def __init__(self, config):
        self.side = config.options["side"]

    def detect(self, images, nouns):
        return [tuple(Box(label=n, score=0.9, x0=0, y0=0, x1=self.side, y1=self.side) for n in nouns) for _ in images]


class UniformMatcher:
    def __init__(self, config):
        pass

    def match(self, images, texts):
        return [[1 / len(texts) for _ in texts] for _ in images]


class PositionExpert:
    """Supports every claim about a position."""

    def __init__(self, config, *, score):
        self.score = score

    def examine(self, tasks):
        return [replace(task, findings=(*task.findings, *self.find(task))) for task in tasks]

    def find(self, task):
        for claims in task.claims:
            for claim in claims:
                if claim.kind is ClaimKind.SPATIAL:
                    yield Finding(claim=claim, truth=Truth.SUPPORTED, expert="position", score=self.score)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a temporary package with experts of a user."""
    (tmp_path / "user_experts.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_experts", raising=False)
    return "user_experts"


def test_a_detector_and_a_matcher_of_a_users_package_are_loaded_by_import_path(package: str) -> None:
    detector = build_detector(DetectorConfig(kind=f"{package}:CornerDetector", model="", options={"side": 9}))
    ((box,),) = detector.detect([PIL.Image.new("RGB", (20, 20))], ["star"])
    assert (box.label, box.x1) == ("star", 9)
    matcher = build_matcher(MatcherConfig(kind=f"{package}:UniformMatcher", model=""))
    assert matcher.match([PIL.Image.new("RGB", (20, 20))], ["a", "b"]) == [[0.5, 0.5]]


def test_an_additional_expert_decides_only_claims_that_are_otherwise_unknown(package: str) -> None:
    expert = ExpertConfig(kind=f"{package}:PositionExpert", options={"score": 0.75})
    config = CONFIG.model_copy(update={"additional_experts": (expert,)})
    texts = ("There is a red square at the top left.", "There is a red circle at the bottom right.", "A red square.")
    image = PIL.Image.new("RGB", (120, 60), "white")
    before = PIPELINE.report(image, texts)
    builtin = [DetectorExpert(config, detector=FakeDetector()), MatcherExpert(config, matcher=FakeMatcher())]
    after = ExpertPipeline(config, [*builtin, build_expert(expert_configs(config)[-1], config)]).report(image, texts)
    for old, new in zip(sum(before.findings, ()), sum(after.findings, ()), strict=True):
        if old.truth is Truth.UNKNOWN and old.claim.value:
            assert (new.truth, new.expert, new.score, new.claim) == (Truth.SUPPORTED, "position", 0.75, old.claim)
        else:
            assert new == old
    assert {f.expert for of_text in after.findings for f in of_text} >= {"position", "detector+matcher"}


def test_every_expert_has_a_pool_in_the_stage(package: str) -> None:
    expert = ExpertConfig(kind=f"{package}:PositionExpert")
    config = CONFIG.model_copy(update={"additional_experts": (expert,)})
    assert [e.kind for e in expert_configs(config)] == ["detector", "matcher", f"{package}:PositionExpert"]
    assert config.actor_pools() == (config.detector_actors, config.matcher_actors, expert.actors)


def test_an_unknown_kind_names_the_known_ones_and_an_import_error_the_setting() -> None:
    with pytest.raises(ValidationError, match="'yolo9' is unknown; choose from ultralytics, zero_shot, or give an"):
        DetectorConfig(kind="yolo9", model="x")
    with pytest.raises(ValidationError, match="'ultralytics' has no options; remove them"):
        DetectorConfig(model="x", options={"side": 9})
    with pytest.raises(ValidationError, match="detector, second_detector, matcher, noise have sections of their own"):
        ExpertsConfig(**CONFIG.model_dump() | {"additional_experts": [{"kind": "matcher"}]})
    with pytest.raises(ConfigError, match=r"detector\.kind: 'no_such_package:Detector' cannot be imported"):
        build_detector(DetectorConfig(kind="no_such_package:Detector", model="x"))
    with pytest.raises(ConfigError, match=r"additional_experts\.kind: 'json:Nothing' cannot be imported"):
        build_expert(ExpertConfig(kind="json:Nothing"), CONFIG)


def test_the_former_name_of_the_thresholds_is_still_read() -> None:
    values = CONFIG.model_dump()
    values["bands"] = values.pop("thresholds") | {"sure_box": 0.6}
    with pytest.warns(FutureWarning, match="setting 'bands' is now 'thresholds'"):
        assert ExpertsConfig.model_validate(values).thresholds.sure_box == 0.6
