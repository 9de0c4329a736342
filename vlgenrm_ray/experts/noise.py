"""Errors added to the reports of detectors and matcher, for experiments with experts of a chosen quality.

A detector that was trained on the world it sees is nearly always right; one on photographs is not. `NoiseExpert` runs
after detectors and matcher, whichever they are, and makes three kinds of errors on single objects:

    missed      the detector does not see the object: its box is removed
    confused    the object is taken for a similar one: another noun, or another attribute
    unsure      the detector is not sure of the object: its score is too low to prove anything

For a `shared` part of the missed and confused objects the matcher makes the same error in its windows, so that both
experts agree on a wrong answer. In the others the windows show the object as it is, and a claim that takes both experts
is unknown. Shared misses cause wrong contradictions, confusions wrong findings of every kind, the rest unknowns.

An error follows from the seed, the image's pixels and the object alone. It is the same in every batch, shard and
resumed run, and what is missed at one rate is missed at every higher rate.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.evidence import WindowMatch, window_shows
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Box, WindowScore
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask

_UNSURE_FACTOR = 0.9
"""The score of an unsure object is multiplied by this until it proves nothing."""


class NoiseConfig(Settings):
    """Rates of the errors that are added to detectors and matcher. An experiment's setting; leave it out otherwise."""

    missed: float = Field(default=0.0, ge=0, le=1)
    """Probability that the detector does not see an object, in [0, 1]."""
    small_missed: float = Field(default=0.0, ge=0, le=1)
    """The same for small objects, where it is higher than `missed`."""
    small_area: float = Field(default=0.01, ge=0, le=1)
    """Area of a box below which its object is small, as a share of the image's area."""
    confused: float = Field(default=0.0, ge=0, le=1)
    """Probability that an object is taken for another noun, and of each of its attributes for another of its family."""
    unsure: float = Field(default=0.0, ge=0, le=1)
    """Probability that the detector is not sure of an object, so that claims about it are unknown."""
    shared: float = Field(default=1.0, ge=0, le=1)
    """Probability that the matcher misses or confuses an object in its windows as well, if the detector does."""
    similar: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Noun or attribute -> those it is confused with (red: [orange]). Others are confused with any of their kind."""
    seed: int = Field(default=0, ge=0)
    """Seed of all errors."""


@dataclass(frozen=True, slots=True)
class _SeenObject:
    """One object as the experts report it."""

    box: Box
    """In pixels of `ImageTask.image()`."""
    attributes: Mapping[str, str]
    """Family -> attribute; without the families that are undecided."""

    def fits(self, phrase: str, vocabulary: Vocabulary) -> bool:
        """Return whether the object may be one that a noun phrase names. An undecided attribute may be any."""
        parsed = vocabulary.phrase(phrase)
        if parsed is None or parsed.noun not in ("", self.box.label):
            return False
        return all(self.attributes.get(vocabulary.family(word), word) == word for word in parsed.attributes)


class NoiseExpert:
    """Adds the errors of `ExpertPipelineConfig.noise` to the evidence of detectors and matcher."""

    def __init__(self, config: "ExpertPipelineConfig") -> None:
        """Read vocabulary and thresholds of `config`. Raises InputError if they cannot be read."""
        self._noise = config.noise or NoiseConfig()
        self._vocabulary = load_vocabulary(config.vocabulary)
        self._thresholds = config.fitted_thresholds()

    def examine(self, tasks: "Sequence[ImageTask]") -> "list[ImageTask]":
        """Return the tasks with errors in boxes, detections, and scores of windows. See `Expert`."""
        return [self._degrade(task) for task in tasks]

    def _degrade(self, task: "ImageTask") -> "ImageTask":
        image = hashlib.sha256(task.pixels).hexdigest()
        before = _objects(task, self._vocabulary)
        after = [self._reported(item, task, image) for item in before]
        pairs = list(zip(before, after, strict=True))
        reported = {item.box.scaled(*task.scale): new for item, new in pairs}
        detections = []
        for detection in task.detections:
            new = reported[detection.box]
            if new is not None:
                attribute = detection.attribute and new.attributes[self._vocabulary.family(detection.attribute)]
                detections.append(replace(detection, box=new.box.scaled(*task.scale), attribute=attribute))
        in_windows = [new if self._is_shared(item, image) else item for item, new in pairs]
        matches, scores = self._report_windows(task, before, [new for new in in_windows if new is not None])
        return replace(
            task,
            boxes=_best_first([new.box for new in after if new is not None]),
            detections=tuple(sorted(detections, key=lambda d: -d.box.score)),
            window_matches=matches,
            window_scores=scores,
        )

    def _reported(self, item: _SeenObject, task: "ImageTask", image: str) -> _SeenObject | None:
        """Return the object with its errors; None if it is missed."""
        noise, box, place = self._noise, item.box, self._place(item, image)
        is_small = box.area < noise.small_area * task.width * task.height
        if _draw(place, "missed") < (max(noise.missed, noise.small_missed) if is_small else noise.missed):
            return None
        label, score, attributes = box.label, box.score, dict(item.attributes)
        if _draw(place, "label") < noise.confused:
            nouns = [noun for noun in self._vocabulary.nouns if noun in task.searched_nouns]
            label = self._confuse(label, nouns, place)
        for family, word in item.attributes.items():
            if _draw(place, family) < noise.confused:
                attributes[family] = self._confuse(word, list(self._vocabulary.attributes[family]), place)
        new = replace(box, label=label, score=score)
        if _draw(place, "unsure") < noise.unsure:
            new = _unsure(new, self._thresholds)
        return _SeenObject(new, attributes)

    def _place(self, item: _SeenObject, image: str) -> str:
        """Return the text that identifies an object in an image, from which its errors follow."""
        box = item.box
        # Whole pixels: the corners of one object may differ by rounding between batches.
        return f"{self._noise.seed}/{image}/{box.label}/{round(box.x0 + box.x1)}/{round(box.y0 + box.y1)}"

    def _is_shared(self, item: _SeenObject, image: str) -> bool:
        return _draw(self._place(item, image), "shared") < self._noise.shared

    def _confuse(self, word: str, words: Sequence[str], place: str) -> str:
        """Return the word that `word` is taken for; itself if there is no other."""
        similar = self._noise.similar.get(word, words)
        others = [other for other in words if other in similar and other != word]
        return others[int(_draw(place, f"{word} taken for") * len(others))] if others else word

    def _report_windows(
        self, task: "ImageTask", before: Sequence[_SeenObject], after: Sequence[_SeenObject]
    ) -> tuple[tuple[WindowMatch, ...], tuple[WindowScore, ...]]:
        """Return the scores of a matcher that sees the objects `after` where it saw `before`.

        A phrase of a lost object gets the probability 0 in the windows that show no other, one of a new object the
        probability that the window shows anything.
        """
        matches, scores = [], []
        for match, score in zip(task.window_matches, task.window_scores, strict=True):
            was = [item for item in before if window_shows(match.box, item.box.scaled(*task.scale))]
            now = [item for item in after if window_shows(match.box, item.box.scaled(*task.scale))]
            phrases = {}
            for phrase, probability in match.scores.items():
                fitted, fits = (any(item.fits(phrase, self._vocabulary) for item in items) for items in (was, now))
                phrases[phrase] = 0.0 if fitted and not fits else score.anything if fits and not fitted else probability
            matches.append(WindowMatch(match.box, phrases))
            scores.append(replace(score, anything=0.0) if was and not now else score)
        return tuple(matches), tuple(scores)


def _objects(task: "ImageTask", vocabulary: Vocabulary) -> list[_SeenObject]:
    attributes: dict[Box, dict[str, str]] = {}
    for detection in task.detections:
        of_box = attributes.setdefault(detection.box, {})
        if detection.attribute:
            of_box[vocabulary.family(detection.attribute)] = detection.attribute
    return [_SeenObject(box, attributes.get(box.scaled(*task.scale), {})) for box in task.boxes]


def _unsure(box: Box, thresholds: Thresholds) -> Box:
    """Return the box with a score from which its object is possible, but not sure."""
    while box.score > 0 and thresholds.is_sure(box):
        box = replace(box, score=box.score * _UNSURE_FACTOR)
    return box


def _best_first(boxes: Sequence[Box]) -> tuple[Box, ...]:
    return tuple(sorted(boxes, key=lambda box: -box.score))


def _draw(place: str, error: str) -> float:
    """Return a number in [0, 1) that is fixed for an object and an error."""
    return int.from_bytes(hashlib.sha256(f"{place}/{error}".encode()).digest()[:8], "big") / 2**64
