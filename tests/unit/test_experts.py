"""The experts' four steps on one image, with engines of straw; and how one bad image is kept from the others."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from factories import image, question, response
from straw_experts import CIRCLE, Finder, Redmatcher

from vlgenrm_ray.curation import experts
from vlgenrm_ray.curation.experts import ExpertsConfig, Look
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.detector import DetectorConfig
from vlgenrm_ray.engines.matcher import MatcherConfig
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.experts.witness import Witness
from vlgenrm_ray.records import ImageRef, Response, Truth

WORDS = load_vocabulary("shapes")
CONFIG = ExpertsConfig(
    vocabulary="shapes", detector=DetectorConfig(model="none"), matcher=MatcherConfig(model="none"), max_side=60
)


def stored(folder: Path, colour: str = "white", size: tuple[int, int] = (120, 60)) -> ImageRef:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    data = buffer.getvalue()
    path = folder / f"{colour}.png"
    path.write_bytes(data)
    return image(uri=str(path), sha256=hashlib.sha256(data).hexdigest(), width=size[0], height=size[1])


def answers(ref: ImageRef, *texts: str) -> list[Response]:
    return [response(f"q0/r{i}", question=question(image=ref), text=text) for i, text in enumerate(texts)]


def looked(folder: Path, *texts: str, colour: str = "white") -> Look:
    ref = stored(folder, colour)
    return experts.opened(ref.sha256, answers(ref, *texts), WORDS, CONFIG)


def test_an_image_is_opened_once_scaled_down_and_its_claims_phrases_collected(tmp_path: Path) -> None:
    look = looked(tmp_path, "There is a red circle.", "The star is blue.", "Hello.")
    assert (look.width, look.height) == (60, 30)
    assert len(look.pixels) == 60 * 30 * 3
    assert look.phrases == ("red circle", "star")
    assert look.scale == (2.0, 2.0)


def test_a_vanished_image_drops_every_response_with_the_reason() -> None:
    ref = image(uri="/nowhere/x.png")
    look = experts.opened(ref.sha256, answers(ref, "There is a circle.", "No."), WORDS, CONFIG)
    (after,) = experts.matched(experts.detected([look], Finder(), WORDS, CONFIG), Redmatcher(), WORDS, CONFIG)
    unit = experts.checked(after, WORDS, CONFIG.bands)
    assert unit.id == ref.sha256
    assert unit.records == ()
    assert [(d.id, d.reason, d.stage) for d in unit.dropped] == [
        ("q0/r0", DropReason.IMAGE_MISSING, "experts"),
        ("q0/r1", DropReason.IMAGE_MISSING, "experts"),
    ]


def test_boxes_come_back_in_the_originals_pixels_and_pixels_are_let_go(tmp_path: Path) -> None:
    look = looked(tmp_path, "There is a red circle.")
    (boxed,) = experts.detected([look], Finder(), WORDS, CONFIG)
    assert boxed.boxes == (CIRCLE,)
    (seen,) = experts.matched([boxed], Redmatcher(), WORDS, CONFIG)
    assert seen.pixels == b""
    (sighting,) = seen.sightings
    assert (sighting.box.x0, sighting.box.x1) == (10.0, 30.0)
    assert sighting.attribute == "red"
    assert max(w.box.x1 for w in seen.windows) == 120


def test_every_response_is_checked_and_one_without_claims_is_kept(tmp_path: Path) -> None:
    look = looked(tmp_path, "There is a red circle.", "The circle is blue.", "Hello.")
    (seen,) = experts.matched(experts.detected([look], Finder(), WORDS, CONFIG), Redmatcher(), WORDS, CONFIG)
    unit = experts.checked(seen, WORDS, CONFIG.bands)
    assert [[f.truth for f in record.findings] for record in unit.records] == [
        [Truth.SUPPORTED],
        [Truth.CONTRADICTED],
        [],
    ]
    assert all(record.sightings == seen.sightings for record in unit.records)
    assert unit.dropped == ()


def test_phrases_the_detector_cannot_know_are_never_found_absent(tmp_path: Path) -> None:
    look = looked(tmp_path, "There is a blue square.", "There is a blue star.")
    (seen,) = experts.matched(experts.detected([look], Finder(), WORDS, CONFIG), Redmatcher(), WORDS, CONFIG)
    square, star = experts.checked(seen, WORDS, CONFIG.bands).records
    assert square.findings[0].truth is Truth.UNKNOWN, "this detector knows no squares"
    assert star.findings[0].truth is Truth.CONTRADICTED


def test_an_open_detector_is_asked_for_the_nouns_of_the_claims_and_like_images_go_together(tmp_path: Path) -> None:
    detector = Finder()
    detector.labels = ()
    first = looked(tmp_path, "There is a star.")
    looks = [first, replace(first, id="b", phrases=("red circle",)), replace(first, id="c")]
    assert [look.id for look in experts.detected(looks, detector, WORDS, CONFIG)] == [first.id, "b", "c"]
    assert sorted(detector.calls) == [(1, ("circle",)), (2, ("star",))]


def test_one_image_an_engine_fails_on_harms_no_other(tmp_path: Path) -> None:
    good = looked(tmp_path, "There is a circle.")
    bad = looked(tmp_path, "There is a circle.", colour="black")
    after = experts.detected([bad, good], Finder(), WORDS, CONFIG)
    assert [look.reason for look in after] == [DropReason.ENGINE_ERROR, ""]
    assert after[0].detail == "RuntimeError: black"
    assert after[1].boxes == (CIRCLE,)


def test_an_engine_that_fails_on_everything_is_not_taken_for_bad_images(tmp_path: Path) -> None:
    bad = looked(tmp_path, "There is a circle.", colour="black")
    with pytest.raises(RuntimeError, match="black"):
        experts.detected([bad, replace(bad, id="again")], Finder(), WORDS, CONFIG)


def test_overlapping_boxes_are_one_thing(tmp_path: Path) -> None:
    doubled = [CIRCLE, replace(CIRCLE, score=0.6, x0=6.0), replace(CIRCLE, label="star", score=0.5)]
    look = looked(tmp_path, "There is one circle.")
    assert experts.detected([look], Finder(doubled), WORDS, CONFIG)[0].boxes == (CIRCLE,)


def test_limits_are_the_configurations_own(tmp_path: Path) -> None:
    ref = stored(tmp_path)
    strict = CONFIG.model_copy(update={"limits": ImageLimits(max_pixels=100)})
    assert experts.opened(ref.sha256, answers(ref, "A star."), WORDS, strict).reason == DropReason.IMAGE_TOO_LARGE


def test_a_witness_says_of_one_image_what_the_stage_says(tmp_path: Path) -> None:
    texts = ("There is a red circle.", "The circle is blue.", "There is a blue square. There is a blue star.", "Hello.")
    look = looked(tmp_path, *texts)
    (seen,) = experts.matched(experts.detected([look], Finder(), WORDS, CONFIG), Redmatcher(), WORDS, CONFIG)
    records = experts.checked(seen, WORDS, CONFIG.bands).records
    with PIL.Image.open(look.responses[0].question.image.uri) as picture:
        told = Witness(CONFIG, WORDS, Finder(), Redmatcher()).testify(picture, texts)
    assert told.findings == tuple(record.findings for record in records)
    assert told.sightings == records[0].sightings
    assert (told.width, told.height) == (120, 60)
