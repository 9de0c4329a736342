"""The detector experts: find the objects that the claims of an image name.

With a second detector every object has one score, a logistic combination of both (`FusionConfig`), and the nouns that
both searched for can be found absent.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from vlgenrm_ray.engines.contracts import Detector
from vlgenrm_ray.engines.detectors import build_detector
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.calibration import FusionConfig
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.evidence import suppress_overlaps
from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Box, Claim

_NEVER = 2.0
"""Overlap that no two boxes reach."""

SAME_LABEL_OVERLAP = 0.5
"""Intersection over union from which the weaker of two boxes of one noun is dropped."""
ANY_LABEL_OVERLAP = 0.8
"""The same for boxes of different nouns."""


class DetectorExpert:
    """Runs an object detector. Images in which the same nouns are searched for form one batch."""

    def __init__(self, config: ExpertPipelineConfig, *, detector: Detector | None = None) -> None:
        """Load the detector of `config`, unless one is given. Raises InputError if it cannot be loaded."""
        self.detector = detector or build_detector(config.detector)
        self._config = config
        self._vocabulary = load_vocabulary(config.vocabulary)

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Add `boxes`, and remove the `phrases` whose nouns the detector does not know. See `Expert`."""
        labels = self.detector.labels
        tasks = [replace(task, phrases=detectable_phrases(task.phrases, self._vocabulary, labels)) for task in tasks]
        groups: dict[tuple[str, ...], list[ImageTask]] = {}
        for task in tasks:
            groups.setdefault(nouns_to_detect(task.phrases, self._vocabulary, labels), []).append(task)
        examined = {task.id: task for nouns, group in groups.items() for task in self._detect(group, nouns)}
        return [examined[task.id] for task in tasks]

    def _detect(self, tasks: Sequence[ImageTask], nouns: tuple[str, ...]) -> list[ImageTask]:
        has_second = self._config.second_detector is not None
        # Boxes of different nouns compete when they have the scores of both detectors.
        overlaps = SAME_LABEL_OVERLAP, _NEVER if has_second else ANY_LABEL_OVERLAP
        boxes_of_images = self.detector.detect([task.image() for task in tasks], nouns)
        examined = []
        for task, boxes in zip(tasks, boxes_of_images, strict=True):
            remaining = suppress_overlaps(boxes, *overlaps)
            # With a second detector the score that counts is that of both.
            counted = remaining if has_second else filter(self._config.fitted_thresholds().counts, remaining)
            examined.append(replace(task, searched_nouns=nouns).with_boxes(tuple(counted)))
        return examined


class SecondDetectorExpert:
    """Runs another detector for the same nouns, and combines its boxes with those of the first."""

    def __init__(self, config: ExpertPipelineConfig, *, detector: Detector | None = None) -> None:
        """Load `config.second_detector`, unless a detector is given. Raises InputError if it cannot be loaded."""
        if detector is None and config.second_detector is None:
            raise ConfigError("second_detector: there is none; set experts.second_detector")
        self.detector = detector or build_detector(config.second_detector or config.detector)
        self._fusion = config.fusion()
        self._thresholds = config.fitted_thresholds()

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Replace `boxes` by those of both detectors, and add `nouns_searched_twice`. See `Expert`."""
        labels = set(self.detector.labels)
        groups: dict[tuple[str, ...], list[ImageTask]] = {}
        for task in tasks:
            nouns = tuple(noun for noun in task.searched_nouns if not labels or noun in labels)
            groups.setdefault(nouns, []).append(task)
        examined = {task.id: task for nouns, group in groups.items() for task in self._detect(group, nouns)}
        return [examined[task.id] for task in tasks]

    def _detect(self, tasks: Sequence[ImageTask], nouns: tuple[str, ...]) -> list[ImageTask]:
        boxes_of_images = self.detector.detect([task.image() for task in tasks], nouns)
        examined = []
        for task, boxes in zip(tasks, boxes_of_images, strict=True):
            second = suppress_overlaps([box for box in boxes if box.label in nouns], SAME_LABEL_OVERLAP, _NEVER)
            combined, twice = combine_boxes(task.boxes, second, nouns, self._fusion, self._thresholds)
            examined.append(replace(task, nouns_searched_twice=twice).with_boxes(combined))
        return examined


def combine_boxes(
    first: Sequence[Box], second: Sequence[Box], nouns: Sequence[str], fusion: FusionConfig, thresholds: Thresholds
) -> tuple[tuple[Box, ...], tuple[str, ...]]:
    """Combine the boxes of two detectors, and drop those that do not count or overlap a better one.

    Returns:
        The boxes, best score first, and the nouns that are absent if they have no box.
    """
    counted = tuple(filter(thresholds.counts, fuse_boxes(first, second, nouns, fusion)))
    remaining = suppress_overlaps(counted, SAME_LABEL_OVERLAP, ANY_LABEL_OVERLAP)
    # A noun whose boxes gave way to another noun's is not absent.
    lost = {box.label for box in counted} - {box.label for box in remaining}
    return remaining, tuple(noun for noun in nouns if noun not in lost)


def fuse_boxes(
    first: Sequence[Box], second: Sequence[Box], nouns: Collection[str], config: FusionConfig
) -> tuple[Box, ...]:
    """Combine the boxes of two detectors on one image.

    Args:
        first: Boxes of the first detector.
        second: Boxes of the second detector.
        nouns: Nouns that both searched for. Boxes of others keep their score.
        config: Weights of the two.

    Returns:
        One box per object, best score first: that of the detector with the higher score, with the score of both.
    """
    fused = [box for box in first if box.label not in nouns]
    unmatched = list(second)
    for box in sorted((box for box in first if box.label in nouns), key=lambda b: -b.score):
        others = [other for other in unmatched if other.label == box.label and other.iou(box) >= SAME_LABEL_OVERLAP]
        other = max(others, key=box.iou, default=None)
        if other is not None:
            unmatched.remove(other)
        better = other if other is not None and other.score > box.score else box
        score = fuse_scores(box.score, other.score if other is not None else 0.0, config)
        fused.append(replace(better, score=score))
    fused += [replace(other, score=fuse_scores(0.0, other.score, config)) for other in unmatched]
    return tuple(sorted(fused, key=lambda b: -b.score))


def fuse_scores(first: float, second: float, config: FusionConfig) -> float:
    """Return the score of an object that two detectors gave these scores; 0 for no box. See `FusionConfig`."""
    pairs = zip(config.weights, (first, second), strict=True)
    logit = config.offset + sum(weight * _logit(max(score, config.floor)) for weight, score in pairs)
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def _logit(p: float) -> float:
    p = min(p, 1 - 1e-6)
    return math.log(p / (1 - p))


def phrases_of(claims: Iterable[Claim]) -> tuple[str, ...]:
    """Return the noun phrases that claims are about, sorted."""
    return tuple(sorted({phrase for claim in claims for phrase in (claim.subject, claim.other) if phrase}))


def detectable_phrases(phrases: Sequence[str], vocabulary: Vocabulary, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the phrases a detector can search for. `labels`: the nouns it knows; () if it can search for any."""
    parsed = ((phrase, vocabulary.phrase(phrase)) for phrase in phrases)
    return tuple(phrase for phrase, part in parsed if part and (not labels or part.noun in ("", *labels)))


def nouns_to_detect(phrases: Sequence[str], vocabulary: Vocabulary, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the nouns to search for: all of `labels`, or without labels those that the phrases name.

    A general noun ("thing") stands for every noun of the vocabulary.
    """
    if labels:
        return tuple(labels)
    parsed = [vocabulary.phrase(phrase) for phrase in phrases]
    nouns = {part.noun for part in parsed if part}
    return tuple(sorted(vocabulary.nouns if "" in nouns else nouns))
