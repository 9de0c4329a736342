"""What the experts saw of one image, as the checks take it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vlgenrm_ray.records import Box, Detection, ImageRef, WindowScore

ANYTHING = ""
"""The phrase that any noun of the vocabulary fits."""


@dataclass(frozen=True, slots=True)
class Glance:
    """A window of the image, with the matcher's probability that each phrase ("red circle") is what it shows."""

    window: Box
    scores: Mapping[str, float]

    def score(self, phrase: str) -> float | None:
        """How likely it shows the phrase, at most; None if the matcher was asked neither this nor for anything."""
        return self.scores.get(phrase, self.scores.get(ANYTHING))


@dataclass(frozen=True, slots=True)
class View:
    """One image through the experts' eyes. Without glances nothing can be found absent: that takes both experts."""

    width: int
    height: int
    sightings: tuple[Detection, ...]
    """Best score first; several of one box where more than one family of attributes was matched on it."""
    glances: tuple[Glance, ...] = field(default=())

    @classmethod
    def of(cls, image: ImageRef, sightings: tuple[Detection, ...], windows: Sequence[WindowScore] = ()) -> "View":
        """The view that a record's sightings and windows give."""
        glances = tuple(Glance(window.box, {ANYTHING: window.anything}) for window in windows)
        return cls(image.width, image.height, sightings, glances)

    def middle(self, box: Box) -> tuple[float, float]:
        """A box's middle, in fractions of the image."""
        return (box.x0 + box.x1) / 2 / self.width, (box.y0 + box.y1) / 2 / self.height


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    common = shared_area(a, b)
    return common / (area(a) + area(b) - common) if common else 0.0


def shared_area(a: Box, b: Box) -> float:
    """Area of the intersection of two boxes, in pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def area(box: Box) -> float:
    """Area of a box, in pixels."""
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def distinct(boxes: Sequence[Box], same_label: float, any_label: float) -> tuple[Box, ...]:
    """Boxes, best score first, without those that overlap a better one too much: of its label, or of any."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda b: -b.score):
        limits = ((same_label if box.label == other.label else any_label, other) for other in kept)
        if all(overlap(box, other) < limit for limit, other in limits):
            kept.append(box)
    return tuple(kept)


def windows(width: int, height: int, grids: Sequence[int]) -> Iterator[Box]:
    """The image cut into n x n equal windows for each n of `grids`; 1 is the whole image."""
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
