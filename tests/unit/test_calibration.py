"""Calibration: reading labels, claims with known truth, fitted limits, and their quality on images not fitted."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from factories import box
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.experts import fitting
from vlgenrm_ray.experts.calibration import load_calibration, write_calibration
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.fitting import DetectedPhoto, LabelledVerdict, calibrate, cross_validate, fit, measure
from vlgenrm_ray.experts.label_claims import WAYS, NounFrequency, make_claims
from vlgenrm_ray.experts.labels import LabelledPhoto, read_labels
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Box, ClaimKind, Truth
from vlgenrm_ray.report.summary import reliability_table

COCO = load_vocabulary("coco")
NOUNS = tuple(COCO.nouns)
SIDE = 100


def write_images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        PIL.Image.new("RGB", (SIDE, SIDE), "white").save(folder / name)
    return folder


# -- labels ------------------------------------------------------------------------------------------------------------


def test_yolo_labels_are_read_with_the_names_of_their_data_file_or_the_vocabulary(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n16 0.1 0.1 0.1 0.1\n")
    with_boxes, without = read_labels(tmp_path, COCO)
    assert [(b.label, round(b.x0), round(b.y0), round(b.x1), round(b.y1)) for b in with_boxes.boxes] == [
        ("person", 40, 30, 60, 70),
        ("dog", 5, 5, 15, 15),
    ]
    assert without.boxes == ()
    assert without.nouns == set(NOUNS)
    (tmp_path / "data.yaml").write_text("names: {0: dog, 1: gnome, 16: cat}")
    named, _ = read_labels(tmp_path, COCO)
    assert named.present == {"dog", "cat"}
    assert named.nouns == {"dog", "cat"}, "a gnome is outside the vocabulary"


def test_coco_labels_are_read_and_crowds_are_no_number(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "missing.png"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40]},
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 90, 90], "iscrowd": 1},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (photo,) = read_labels(tmp_path / "truth.json", COCO, tmp_path / "photos")
    assert [(b.label, b.x0, b.y1) for b in photo.boxes] == [("dog", 10, 60)]
    assert (photo.present, photo.crowds) == ({"dog", "person"}, {"person"})


def test_pope_questions_are_read_as_json_lines(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    rows = [
        {"image": "a.png", "text": "Is there a dog in the image?", "label": "yes"},
        {"image": "a.png", "text": "Is there an airplane in the image?", "label": "no"},
        {"image": "a.png", "text": "Is there a gnome in the image?", "label": "no"},
        {"image": "a.png", "text": "How many dogs are there?", "label": "2"},
    ]
    (tmp_path / "pope.json").write_text("\n".join(map(json.dumps, rows)))
    (photo,) = read_labels(tmp_path / "pope.json", COCO)
    assert photo.answers == {"dog": True, "airplane": False}
    claims = make_claims(photo, (SIDE, SIDE), NounFrequency([photo]), COCO, 0)
    assert {(c.claim.subject, c.is_true, c.group) for c in claims} == {
        ("dog", True, "pope"),
        ("airplane", False, "pope"),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("[1, 2]", "AttributeError|TypeError"),
        ("nonsense", "give COCO JSON, a folder of YOLO labels"),
        ('{"images": [], "annotations": [], "categories": []}', "there are no labels"),
        (
            '{"images": [{"id": 1, "file_name": "x.png"}], "annotations": [], "categories": []}',
            "name the folder .* --images",
        ),
    ],
)
def test_labels_that_cannot_be_read_are_named(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_labels(path, COCO)


# -- claims ------------------------------------------------------------------------------------------------------------


def random_photo(rng: random.Random, number: int) -> LabelledPhoto:
    """A labelled image with objects of frequent and rare nouns."""
    boxes = []
    for noun in rng.sample(NOUNS[:12], rng.randint(1, 4)):
        for _ in range(rng.randint(1, 3)):
            x, y = rng.uniform(0, 80), rng.uniform(0, 80)
            boxes.append(box(noun, score=1.0, x0=x, y0=y, x1=x + 15, y1=y + 15))
    return LabelledPhoto(path=Path(f"{number}.png"), boxes=tuple(boxes), nouns=frozenset(NOUNS))


PHOTOS = [random_photo(random.Random(i), i) for i in range(120)]
STATISTICS = NounFrequency(PHOTOS)


def test_as_many_absent_objects_are_asked_for_as_present_ones_in_every_way() -> None:
    for photo in PHOTOS:
        claims = make_claims(photo, (SIDE, SIDE), STATISTICS, COCO, 0)
        assert claims == make_claims(photo, (SIDE, SIDE), STATISTICS, COCO, 0), "the seed decides"
        for way in WAYS:
            of_way = [labelled for labelled in claims if labelled.group == way]
            assert sum(labelled.is_true for labelled in of_way) * 2 == len(of_way) > 0
        for labelled in claims:
            if labelled.claim.kind is ClaimKind.EXISTENCE:
                assert labelled.is_true == (labelled.claim.subject in photo.present)


def test_popular_objects_are_frequent_and_adversarial_ones_occur_with_those_of_the_image() -> None:
    absent = {way: [] for way in WAYS}
    for photo in PHOTOS:
        for labelled in make_claims(photo, (SIDE, SIDE), STATISTICS, COCO, 0):
            if labelled.group in WAYS and not labelled.is_true:
                absent[labelled.group].append(
                    (STATISTICS.counts[labelled.claim.subject], photo, labelled.claim.subject)
                )
    mean = {way: np.mean([count for count, _, _ in rows]) for way, rows in absent.items()}
    assert mean["popular"] > 2 * mean["random"]
    together = {
        way: np.mean([STATISTICS.num_together(sorted(photo.present), noun) for _, photo, noun in rows])
        for way, rows in absent.items()
    }
    assert together["adversarial"] >= together["popular"] > together["random"]


def test_numbers_places_and_relations_are_true_of_the_boxes() -> None:
    dog, cat = box("dog", x0=0, y0=40, x1=20, y1=60), box("cat", x0=70, y0=45, x1=90, y1=65)
    photo = LabelledPhoto(path=Path("x.png"), boxes=(dog, cat), nouns=frozenset(NOUNS))
    claims = {
        (c.claim.subject, c.claim.value, c.claim.other): c.is_true
        for seed in range(20)
        for c in make_claims(photo, (SIDE, SIDE), NounFrequency([photo]), COCO, seed)
    }
    assert claims["dog", "1", ""]
    assert not claims["dog", "2", ""]
    assert claims["dog", "left", ""]
    assert not claims["dog", "right", ""]
    assert claims["dog", "left of", "cat"]
    assert not claims["dog", "right of", "cat"]
    assert ("dog", "top", "") not in claims, "its centre is on the border"
    assert ("dog", "above", "cat") not in claims, "they are too close to call"


# -- fitting -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60), st.floats(0.5, 0.99))
def test_a_threshold_reaches_the_target_and_is_the_lowest_that_does(
    verdicts: list[tuple[int, bool]], target: float
) -> None:
    scores = np.array([score / 20 for score, _ in verdicts])
    is_right = np.array([right for _, right in verdicts])
    threshold = fitting._lowest_threshold(scores, is_right, target, highest=2.0)

    def reaches(limit: float) -> bool:
        above = is_right[scores >= limit]
        n, p, z2 = len(above), float(above.mean()), fitting._Z90**2
        low = (p + z2 / n / 2 - fitting._Z90 * (p * (1 - p) / n + z2 / n / n / 4) ** 0.5) / (1 + z2 / n)
        return low >= target - 1e-12

    candidates = sorted(set(scores.tolist()))
    reaching = [limit for limit in candidates if reaches(limit)]
    assert threshold == (min(reaching) if reaching else 2.0)


class NoisyDetector:
    """Finds most true objects, with a score that is lower for false alarms."""

    labels: tuple[str, ...] = NOUNS

    def __init__(self, photos: Sequence[LabelledPhoto], seed: int) -> None:
        self.photos = iter(photos)
        self.rng = random.Random(seed)

    def detect(self, images: Sequence[PIL.Image.Image], nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        return [self.detect_in(next(self.photos)) for _ in images]

    def detect_in(self, photo: LabelledPhoto) -> tuple[Box, ...]:
        detected = [
            box(b.label, score=self.rng.betavariate(4, 2), x0=b.x0, y0=b.y0, x1=b.x1, y1=b.y1)
            for b in photo.boxes
            if self.rng.random() < 0.9
        ]
        for noun in self.rng.sample(NOUNS[:12], 5):
            x, y = self.rng.uniform(0, 80), self.rng.uniform(0, 80)
            detected.append(box(noun, score=self.rng.betavariate(2, 6), x0=x, y0=y, x1=x + 15, y1=y + 15))
        return tuple(sorted(detected, key=lambda b: -b.score))


def detected_photos(num_detectors: int) -> list[DetectedPhoto]:
    detectors = [NoisyDetector(PHOTOS, seed) for seed in range(num_detectors)]
    return [
        DetectedPhoto(
            photo=photo,
            width=SIDE,
            height=SIDE,
            boxes=tuple(detector.detect_in(photo) for detector in detectors),
            nouns=(NOUNS,) * num_detectors,
            claims=tuple(make_claims(photo, (SIDE, SIDE), STATISTICS, COCO, 0)),
        )
        for photo in PHOTOS
    ]


def quality(verdicts: list[LabelledVerdict]) -> dict[str, tuple[float, float]]:
    supported, contradicted = measure(verdicts)["existence"]
    return {r.truth: (r.right or 0.0, r.recall or 0.0) for r in (supported, contradicted)}


def test_two_calibrated_detectors_are_right_as_often_as_aimed_at_on_images_not_fitted() -> None:
    photos = detected_photos(2)
    settings = {"base": Thresholds(), "target": 0.93, "floor": 0.02}
    verdicts = cross_validate(photos, COCO, folds=4, seed=0, **settings)
    of_two = quality(verdicts)
    assert of_two["supported"][0] >= 0.9
    assert of_two["supported"][1] >= 0.7
    assert of_two["contradicted"][0] >= 0.9
    assert of_two["contradicted"][1] >= 0.6
    for group in (f"existence/{way}" for way in WAYS):
        assert measure(verdicts)[group][0].num > 0
    assert len(verdicts) == sum(len(photo.claims) for photo in photos), "every image is checked once"


def test_one_calibrated_detector_supports_and_contradicts_nothing() -> None:
    verdicts = cross_validate(detected_photos(1), COCO, base=Thresholds(), target=0.9, floor=0.02, folds=4, seed=0)
    of_one = quality(verdicts)
    assert of_one["supported"][0] >= 0.87
    assert of_one["contradicted"] == (0.0, 0.0)


def test_frequent_nouns_have_limits_of_their_own_and_the_others_those_of_all() -> None:
    calibration = fit(detected_photos(2), COCO, base=Thresholds(edge=0.1), target=0.9, floor=0.02)
    counts = STATISTICS.counts
    assert {noun for noun, count in counts.items() if count >= 30} == set(calibration.thresholds.nouns)
    assert calibration.thresholds.edge == 0.1, "what is not fitted stays"
    assert 0 < calibration.thresholds.absent_box <= calibration.thresholds.sure_box < 1
    assert all(weight > 0 for weight in calibration.fusion.weights)


def test_labels_without_absent_objects_cannot_be_fitted() -> None:
    photos = [
        DetectedPhoto(photo=p.photo, width=p.width, height=p.height, boxes=p.boxes, nouns=p.nouns, claims=present)
        for p in detected_photos(1)
        for present in [tuple(c for c in p.claims if c.is_true)]
    ]
    with pytest.raises(InputError, match="present and absent objects"):
        fit(photos, COCO, base=Thresholds(), target=0.9, floor=0.02)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """A folder of YOLO labels with 40 images."""
    write_images(tmp_path / "images", *(f"{i:03}.png" for i in range(40)))
    (tmp_path / "labels").mkdir()
    for i, photo in enumerate(PHOTOS[:40]):
        lines = [
            f"{NOUNS.index(b.label)} {(b.x0 + b.x1) / 2 / SIDE} {(b.y0 + b.y1) / 2 / SIDE} 0.15 0.15"
            for b in photo.boxes
        ]
        (tmp_path / "labels" / f"{i:03}.txt").write_text("\n".join(lines))
    return tmp_path


def test_a_calibration_is_written_and_read_again(truth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = iter((0, 1))
    monkeypatch.setattr(fitting, "build_detector", lambda config: NoisyDetector(PHOTOS[:40], next(seeds)))
    config = ExpertsConfig(
        detector=DetectorConfig(model="a", min_score=0.02), second_detector=DetectorConfig(model="b", min_score=0.05)
    )
    calibration = calibrate(config, truth, images=None, folds=2, seed=0, target=0.8)
    assert calibration.source["images"] == 40
    assert calibration.fusion.floor == 0.02
    path = truth / "out" / "calibration.yaml"
    write_calibration(calibration, path)
    assert path.read_text().startswith("# Fitted by `vlgenrm experts calibrate`")
    assert load_calibration(str(path)) == calibration
    used = config.model_copy(update={"calibration": str(path)})
    assert used.fitted_thresholds().model_dump() == calibration.thresholds.model_dump()
    table = reliability_table(calibration)
    assert table.row_count >= 8
    assert {r.truth for r in calibration.reliability["existence"]} == {Truth.SUPPORTED, Truth.CONTRADICTED}


def test_more_folds_than_images_are_refused(truth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "build_detector", lambda config: NoisyDetector(PHOTOS, 0))
    config = ExpertsConfig(detector=DetectorConfig(model="a"))
    with pytest.raises(InputError, match="40 images for 41 folds"):
        calibrate(config, truth, images=None, folds=41, seed=0, target=0.9)
