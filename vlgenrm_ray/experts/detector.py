"""The detector expert: finds the objects that the claims of an image name."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vlgenrm_ray.engines.contracts import Detector
from vlgenrm_ray.engines.detectors import build_detector
from vlgenrm_ray.experts.evidence import suppress_overlaps
from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Claim

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
        searched_all = set(self._vocabulary.nouns) <= set(nouns)
        boxes_of_images = self.detector.detect([task.image() for task in tasks], nouns)
        return [
            replace(
                task,
                boxes=suppress_overlaps(boxes, SAME_LABEL_OVERLAP, ANY_LABEL_OVERLAP),
                searched_all_nouns=searched_all,
            )
            for task, boxes in zip(tasks, boxes_of_images, strict=True)
        ]


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
