"""Evidence about one image, as `checking` uses it: detections and the phrases matched in its windows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vlgenrm_ray.records import Box, Detection, ImageRef, WindowScore

ANYTHING = ""
"""Pseudo-phrase that every noun of the vocabulary satisfies."""


@dataclass(frozen=True, slots=True)
class WindowMatch:
    """One window of the image with the matcher's probability of each phrase in it."""

    box: Box
    scores: dict[str, float]
    """Noun phrase ("red circle"), or `ANYTHING` -> probability in [0, 1]."""

    def score(self, phrase: str) -> float | None:
        """Return an upper bound of the phrase's probability; None if neither it nor `ANYTHING` was matched."""
        return self.scores.get(phrase, self.scores.get(ANYTHING))


@dataclass(frozen=True, slots=True)
class ImageEvidence:
    """Everything the experts know about one image. All boxes are in pixels of the original image."""

    width: int
    height: int
    detections: tuple[Detection, ...]
    """Best score first. A box occurs once per family of attributes that was matched on it."""
    window_matches: tuple[WindowMatch, ...] = ()
    """Scores of the matcher, if there is one."""
    nouns_searched_twice: frozenset[str] = frozenset()
    """Nouns that two detectors searched for. Without them or the matcher nothing is ever found absent."""

    @classmethod
    def from_records(
        cls,
        image: ImageRef,
        detections: tuple[Detection, ...],
        window_scores: Sequence[WindowScore] = (),
        nouns_searched_twice: Iterable[str] = (),
    ) -> "ImageEvidence":
        """Rebuild the evidence that a `CheckedResponse` or `Preference` carries."""
        matches = tuple(WindowMatch(score.box, {ANYTHING: score.anything}) for score in window_scores)
        return cls(image.width, image.height, detections, matches, frozenset(nouns_searched_twice))

    def centre(self, box: Box) -> tuple[float, float]:
        """Return the centre of a box in fractions of the image's width and height."""
        return (box.x0 + box.x1) / 2 / self.width, (box.y0 + box.y1) / 2 / self.height


def suppress_overlaps(boxes: Sequence[Box], same_label: float, any_label: float) -> tuple[Box, ...]:
    """Drop the boxes that overlap a better one (greedy non-maximum suppression).

    Args:
        boxes: Boxes of one image, in any order.
        same_label: Intersection over union from which a box is dropped for a better one with its label.
        any_label: The same for a better one with any label.

    Returns:
        The remaining boxes, best score first.
    """
    remaining: list[Box] = []
    for box in sorted(boxes, key=lambda b: -b.score):
        limits = ((same_label if box.label == other.label else any_label, other) for other in remaining)
        if all(box.iou(other) < limit for limit, other in limits):
            remaining.append(box)
    return tuple(remaining)


def window_shows(window: Box, box: Box) -> bool:
    """Return True if box and window overlap so much that the matcher's score of the window may be due to the box."""
    return window.intersection(box) > 0.1 * min(window.area, box.area)


def cut_windows(width: int, height: int, grids: Sequence[int]) -> Iterator[Box]:
    """Cut an image into n x n equal windows for each n of `grids`, row by row. 1 is the whole image."""
    for n in grids:
        for row in range(n):
            for column in range(n):
                yield Box(
                    label="",
                    score=1.0,
                    x0=column * width / n,
                    y0=row * height / n,
                    x1=(column + 1) * width / n,
                    y1=(row + 1) * height / n,
                )
