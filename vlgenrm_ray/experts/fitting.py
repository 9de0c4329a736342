"""The fitting of a calibration: thresholds, weights of two detectors, and their quality by cross-validation.

    labelled images -> boxes of the detectors (once) -> claims with known truth
        -> for each fold: fit on the other images, check the claims about the fold's images
        -> fit on all images

1. *Fusion*: a logistic regression of presence on the logits of both detectors' best scores.
2. *Thresholds*: `sure_box` is the lowest score, and `absent_box` the highest, at which the verdicts on the fitted
   images are right often enough: the lower end of a one-sided 90 % interval reaches the target. Nouns with enough
   objects have limits of their own, drawn towards those of all nouns.
3. *Kinds*: numbers, places and relations get the least confidence at which their verdicts reach the target; 1, which
   no verdict reaches, if there is none.

Questions of one image are not independent; the intervals count them as if they were.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.engines.contracts import Detector
from vlgenrm_ray.engines.detectors import build_detector
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.experts.calibration import (
    CalibratedThresholds,
    Calibration,
    FusionConfig,
    NounThresholds,
    Reliability,
    verdict_kind,
)
from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.detector import SAME_LABEL_OVERLAP, combine_boxes
from vlgenrm_ray.experts.evidence import ImageEvidence, suppress_overlaps
from vlgenrm_ray.experts.expert import ExpertPipelineConfig
from vlgenrm_ray.experts.label_claims import LabelledClaim, NounFrequency, make_claims
from vlgenrm_ray.experts.labels import LabelledPhoto, open_photo, read_labels
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Box, ClaimKind, Detection, Truth

_MIN_OBJECTS = 30
"""Images with a noun from which it gets limits of its own."""
_PRIOR = 30
"""Weight of all nouns in the limits of one, in claims."""
_MIN_VERDICTS = 10
"""Verdicts on one noun from which its quality is reported."""
_Z90 = 1.2815515655446004
"""Standard normal quantile at 0.9."""
_NEVER_SURE = 1.0
_NEVER = 2.0

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedPhoto:
    """A labelled image with the boxes of each detector and the claims about it."""

    photo: LabelledPhoto
    width: int
    height: int
    boxes: tuple[tuple[Box, ...], ...]
    """For each detector its boxes, in pixels of the image, the weaker of two overlapping ones left out."""
    nouns: tuple[tuple[str, ...], ...]
    """For each detector the nouns that it searched for."""
    claims: tuple[LabelledClaim, ...]


def detect_photos(
    photos: Sequence[LabelledPhoto], detectors: Sequence[Detector], vocabulary: Vocabulary, *, max_side: int, seed: int
) -> list[DetectedPhoto]:
    """Run one or two detectors on labelled images, and make the claims about them.

    Args:
        photos: Labelled images.
        detectors: The detectors of the recipe.
        vocabulary: Vocabulary of the recipe.
        max_side: Larger images are scaled down to this side.
        seed: Seed of the claims.

    Returns:
        One item per image, in order.
    """

    statistics = NounFrequency(photos)
    detected = []
    for photo in photos:
        image = open_photo(photo.path)
        width, height = image.size
        image.thumbnail((max_side, max_side))
        scale = width / image.width, height / image.height
        nouns = tuple(tuple(detector.labels or vocabulary.nouns) for detector in detectors)
        detections = [
            detector.detect([image], of_detector)[0] for detector, of_detector in zip(detectors, nouns, strict=True)
        ]
        boxes = (suppress_overlaps(of_detector, SAME_LABEL_OVERLAP, _NEVER) for of_detector in detections)
        claims = make_claims(photo, (width, height), statistics, vocabulary, seed)
        known = set(nouns[0])
        detected.append(
            DetectedPhoto(
                photo=photo,
                width=width,
                height=height,
                boxes=tuple(tuple(box.scaled(*scale) for box in of_detector) for of_detector in boxes),
                nouns=nouns,
                claims=tuple(c for c in claims if {c.claim.subject, c.claim.other} - {""} <= known),
            )
        )
    return detected


# -- fitting -----------------------------------------------------------------------------------------------------------


def fit(
    photos: Sequence[DetectedPhoto], vocabulary: Vocabulary, *, base: Thresholds, target: float, floor: float
) -> Calibration:
    """Fit fusion and thresholds.

    Args:
        photos: Images to fit on.
        vocabulary: Vocabulary of the claims.
        base: The recipe's thresholds; what is not fitted stays as it is there.
        target: Share of right verdicts that is aimed at.
        floor: Score of a detector without a box.

    Returns:
        A calibration without `reliability` and `source`.

    Raises:
        InputError: The labels have no object, or none that is absent.
    """
    existence = [
        (photo, labelled) for photo in photos for labelled in photo.claims if labelled.claim.kind is ClaimKind.EXISTENCE
    ]
    is_there = np.array([labelled.is_true for _, labelled in existence], dtype=bool)
    if not is_there.any() or is_there.all():
        raise InputError("--truth: the labels need present and absent objects of the detector's nouns")
    fusion = _fit_fusion(existence, is_there, floor)
    fused = {id(photo): _evidence(photo, Calibration(fusion=fusion)) for photo in photos}
    scores = np.array([_best(fused[id(p)].detections, labelled.claim.subject) for p, labelled in existence])
    sure, absent, missed = _fit_limits(scores, is_there, target)
    nouns = _fit_nouns(photos, fused, scores, is_there, target)
    thresholds = CalibratedThresholds.model_validate(
        base.model_dump() | {"sure_box": sure, "absent_box": absent, "both_miss": missed, "nouns": nouns}
    )
    calibration = Calibration(thresholds=thresholds, fusion=fusion)
    min_scores = _fit_kinds(photos, calibration, vocabulary, target)
    return calibration.model_copy(update={"thresholds": thresholds.model_copy(update={"min_scores": min_scores})})


def _fit_fusion(
    existence: Sequence[tuple[DetectedPhoto, LabelledClaim]], is_there: npt.NDArray[np.bool_], floor: float
) -> FusionConfig:
    if len(existence[0][0].boxes) < 2:
        return FusionConfig(floor=floor)
    from sklearn.linear_model import LogisticRegression

    rows = [
        [max(_best_box(boxes, labelled.claim.subject), floor) for boxes in photo.boxes] for photo, labelled in existence
    ]
    table = np.clip(np.array(rows), floor, 1 - 1e-6)
    model = LogisticRegression(C=10.0).fit(np.log(table / (1 - table)), is_there)
    first, second = (max(float(weight), 0.0) for weight in model.coef_[0])
    return FusionConfig(weights=(first, second), offset=float(model.intercept_[0]), floor=floor)


def _fit_limits(scores: Array, is_there: npt.NDArray[np.bool_], target: float) -> tuple[float, float, float]:
    """Return `sure_box`, `absent_box`, and the share of wrong absences."""
    sure = _lowest_threshold(scores, is_there, target)
    absent = -_lowest_threshold(-scores, ~is_there, target, highest=0.0)
    absent = min(float(np.nextafter(absent, 1.0)) if absent > 0 else 0.0, sure)
    below = scores < absent
    wrong = float(is_there[below].mean()) if below.any() else 1.0
    return sure, absent, wrong


def _lowest_threshold(
    scores: Array, is_right: npt.NDArray[np.bool_], target: float, *, highest: float = _NEVER_SURE
) -> float:
    """Return the lowest score from which the verdicts are right often enough; `highest` if there is none.

    Args:
        scores: Scores (N,).
        is_right: Whether a verdict on each is right (N,).
        target: Share of right verdicts that the lower end of a one-sided 90 % interval must reach.
        highest: Returned if no threshold reaches the target.
    """
    order = np.argsort(-scores, kind="stable")
    num = np.arange(1, len(scores) + 1)
    share = np.cumsum(is_right[order]) / num
    spread = _Z90**2 / num
    low = (share + spread / 2 - _Z90 * np.sqrt(share * (1 - share) / num + spread / (4 * num))) / (1 + spread)
    # Equal scores are above a threshold together.
    is_last = np.append(np.diff(scores[order]) < 0, True)
    reaching = np.flatnonzero((low >= target) & is_last)
    return float(scores[order][reaching[-1]]) if len(reaching) else highest


def _fit_nouns(
    photos: Sequence[DetectedPhoto],
    fused: Mapping[int, ImageEvidence],
    scores: Array,
    is_there: npt.NDArray[np.bool_],
    target: float,
) -> dict[str, NounThresholds]:
    """Fit the limits of the nouns that are in many images, on those images and as many others."""
    counts = Counter(noun for photo in photos for noun in photo.photo.present)
    limits = {}
    for noun in sorted(noun for noun, count in counts.items() if count >= _MIN_OBJECTS):
        with_noun = [photo for photo in photos if noun in photo.photo.present]
        without = [photo for photo in photos if noun in photo.photo.nouns - photo.photo.present][: len(with_noun)]
        if len(without) < _MIN_OBJECTS:
            continue
        of_noun = np.array([_best(fused[id(photo)].detections, noun) for photo in (*with_noun, *without)])
        labels = np.array([True] * len(with_noun) + [False] * len(without))
        # Claims about other nouns, thinned to the weight of the prior, draw the limits towards those of all.
        others = np.random.default_rng(0).choice(len(scores), size=min(_PRIOR, len(scores)), replace=False)
        sure, absent, wrong = _fit_limits(
            np.concatenate([of_noun, scores[others]]), np.concatenate([labels, is_there[others]]), target
        )
        limits[noun] = NounThresholds(sure_box=sure, absent_box=absent, both_miss=wrong)
    return limits


def _fit_kinds(
    photos: Sequence[DetectedPhoto], calibration: Calibration, vocabulary: Vocabulary, target: float
) -> dict[str, float]:
    """Fit the least confidence of the verdicts on numbers, places and relations."""
    verdicts: dict[str, list[LabelledVerdict]] = defaultdict(list)
    for verdict in check_photos(photos, calibration, vocabulary):
        if verdict.labelled.claim.kind is not ClaimKind.EXISTENCE and verdict.truth is not Truth.UNKNOWN:
            verdicts[verdict_kind(verdict.labelled.claim, verdict.truth)].append(verdict)
    min_scores = {}
    for kind, of_kind in sorted(verdicts.items()):
        scores = np.array([verdict.score for verdict in of_kind])
        is_right = np.array([verdict.is_right for verdict in of_kind])
        min_scores[kind] = _lowest_threshold(scores, is_right, target)
    return min_scores


# -- checking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LabelledVerdict:
    """The verdict on a claim with known truth."""

    labelled: LabelledClaim
    truth: Truth
    score: float

    @property
    def is_right(self) -> bool:
        """True if the verdict is definite and agrees with the truth."""
        return self.truth is (Truth.SUPPORTED if self.labelled.is_true else Truth.CONTRADICTED)


def check_photos(
    photos: Iterable[DetectedPhoto], calibration: Calibration, vocabulary: Vocabulary
) -> list[LabelledVerdict]:
    """Check the claims about labelled images with a calibration."""
    verdicts = []
    for photo in photos:
        evidence = _evidence(photo, calibration)
        for labelled in photo.claims:
            finding = check_claim(labelled.claim, evidence, vocabulary, calibration.thresholds)
            verdicts.append(LabelledVerdict(labelled, finding.truth, finding.score))
    return verdicts


def cross_validate(
    photos: Sequence[DetectedPhoto],
    vocabulary: Vocabulary,
    *,
    base: Thresholds,
    target: float,
    floor: float,
    folds: int,
    seed: int,
) -> list[LabelledVerdict]:
    """Check the claims about each fold's images with a calibration that is fitted on the other images."""
    order = list(photos)
    random.Random(seed).shuffle(order)
    verdicts = []
    for fold in range(folds):
        calibration = fit(
            [photo for i, photo in enumerate(order) if i % folds != fold],
            vocabulary,
            base=base,
            target=target,
            floor=floor,
        )
        verdicts += check_photos(order[fold::folds], calibration, vocabulary)
    return verdicts


def measure(verdicts: Sequence[LabelledVerdict]) -> dict[str, tuple[Reliability, ...]]:
    """Compute the quality of the verdicts by kind of claim, by way of making questions, and by noun."""
    groups: dict[str, list[LabelledVerdict]] = defaultdict(list)
    for verdict in verdicts:
        claim = verdict.labelled.claim
        kind = claim.kind.value
        groups[kind].append(verdict)
        if verdict.labelled.group != kind:
            groups[f"{kind}/{verdict.labelled.group}"].append(verdict)
        if claim.kind is ClaimKind.EXISTENCE:
            groups[f"noun/{claim.subject}"].append(verdict)
    return {
        name: tuple(_reliability(of_group, truth) for truth in (Truth.SUPPORTED, Truth.CONTRADICTED))
        for name, of_group in sorted(groups.items())
        if not name.startswith("noun/") or sum(v.truth is not Truth.UNKNOWN for v in of_group) >= _MIN_VERDICTS
    }


def _reliability(verdicts: Sequence[LabelledVerdict], truth: Truth) -> Reliability:
    given = [verdict for verdict in verdicts if verdict.truth is truth]
    relevant = [verdict for verdict in verdicts if verdict.labelled.is_true is (truth is Truth.SUPPORTED)]
    num_right = sum(verdict.is_right for verdict in given)
    right, right_interval = _share(num_right, len(given))
    recall, recall_interval = _share(num_right, len(relevant))
    return Reliability(
        truth=truth.value,
        num=len(given),
        right=right,
        right_ci95=right_interval,
        recall=recall,
        recall_ci95=recall_interval,
    )


def _share(num: int, total: int) -> tuple[float | None, tuple[float, float] | None]:
    if not total:
        return None, None
    from scipy.stats import binomtest

    interval: Any = binomtest(num, total).proportion_ci(method="wilson")
    return round(num / total, 4), (round(float(interval.low), 4), round(float(interval.high), 4))


def _evidence(photo: DetectedPhoto, calibration: Calibration) -> ImageEvidence:
    """Return the evidence of the detectors about a labelled image."""
    if len(photo.boxes) == 1:
        boxes = tuple(filter(calibration.thresholds.counts, photo.boxes[0]))
        twice: tuple[str, ...] = ()
    else:
        shared = tuple(noun for noun in photo.nouns[0] if noun in photo.nouns[1])
        first, second = photo.boxes
        boxes, twice = combine_boxes(first, second, shared, calibration.fusion, calibration.thresholds)
    detections = tuple(Detection(box=box, attribute="", attribute_score=0.0) for box in boxes)
    return ImageEvidence(photo.width, photo.height, detections, (), frozenset(twice))


def _best(detections: Iterable[Detection], noun: str) -> float:
    return max((detection.box.score for detection in detections if detection.box.label == noun), default=0.0)


def _best_box(boxes: Iterable[Box], noun: str) -> float:
    return max((box.score for box in boxes if box.label == noun), default=0.0)


def calibrate(
    config: ExpertPipelineConfig, truth: Path, *, images: Path | None, folds: int, seed: int, target: float
) -> Calibration:
    """Calibrate the detectors of a recipe on labelled images.

    The matcher and additional experts are not run: their verdicts are as in the recipe.

    Args:
        config: Experts of the recipe; a calibration that it names is ignored.
        truth: Labels, see `labels.read_labels`.
        images: Folder of the images, if it is not beside the labels.
        folds: Parts of the cross-validation, at least 2.
        seed: Seed of claims and folds.
        target: Share of right verdicts that is aimed at.

    Returns:
        Thresholds fitted on all images, with their quality by cross-validation.

    Raises:
        InputError: A model or the labels cannot be read, or there are fewer images than folds.
    """
    vocabulary = load_vocabulary(config.vocabulary)
    photos = read_labels(truth, vocabulary, images)
    if len(photos) < folds:
        raise InputError(f"--truth {truth}: {len(photos)} images for {folds} folds; label more, or lower --folds")
    configs = [config.detector, *([config.second_detector] if config.second_detector else [])]
    detectors = [build_detector(detector) for detector in configs]
    detected = detect_photos(photos, detectors, vocabulary, max_side=config.max_side, seed=seed)
    settings: dict[str, Any] = {
        "base": config.thresholds,
        "target": target,
        "floor": min(detector.min_score for detector in configs),
    }
    verdicts = cross_validate(detected, vocabulary, folds=folds, seed=seed, **settings)
    calibration = fit(detected, vocabulary, **settings)
    source: dict[str, str | int | float] = {
        f"detector_{i}": f"{detector.model} (min_score {detector.min_score:g})" for i, detector in enumerate(configs, 1)
    }
    source |= {
        "truth": str(truth),
        "images": len(detected),
        "claims": len(verdicts),
        "folds": folds,
        "seed": seed,
        "target": target,
    }
    return calibration.model_copy(update={"reliability": measure(verdicts), "source": source})
