"""Claims with known truth, made from labelled images: existence as POPE asks, numbers, places and relations.

POPE (Li et al., arXiv 2305.10355) asks for as many absent objects as present ones, and chooses the absent ones at
random, among the most frequent (popular), or among those that most often occur together with the objects of the image
(adversarial).
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlgenrm_ray.experts.labels import LabelledPhoto
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Box, Claim, ClaimKind

WAYS = ("random", "popular", "adversarial")
"""Ways of choosing absent objects."""
_MAX_PRESENT = 3
"""Present objects of an image that are asked for, in each way."""
_MIN_DISTANCE = 0.15
"""Distance of two centres, in fractions of the image, from which a relation is beyond doubt."""
_MIN_MARGIN = 0.05
"""Distance of a centre from a region's border, in fractions of the image, from which a place is beyond doubt."""


@dataclass(frozen=True, slots=True)
class LabelledClaim:
    """A claim with its truth."""

    claim: Claim
    is_true: bool
    group: str
    """One of `WAYS` ("pope" for given questions) for existence, else the kind of the claim."""


class NounFrequency:
    """Frequency of the nouns in labelled images, alone and together."""

    def __init__(self, photos: Sequence[LabelledPhoto]) -> None:
        """Count the nouns of the photos."""
        self.counts = Counter(noun for photo in photos for noun in photo.present)
        self._pairs = Counter((a, b) for photo in photos for a in photo.present for b in photo.present if a != b)

    def num_together(self, nouns: Sequence[str], other: str) -> int:
        """Return how often `other` occurs together with each of the nouns, summed."""
        return sum(self._pairs[noun, other] for noun in nouns)


def make_claims(
    photo: LabelledPhoto, size: tuple[int, int], statistics: NounFrequency, vocabulary: Vocabulary, seed: int
) -> list[LabelledClaim]:
    """Make the claims about one labelled image.

    Args:
        photo: Labels.
        size: Width and height of the image.
        statistics: Statistics of all labelled images.
        vocabulary: Vocabulary with the places.
        seed: Seed of random choices, which also depend on the image's name.

    Returns:
        True and false claims, in about equal numbers for each group.
    """
    rng = random.Random(f"{seed}/{photo.path.name}")
    if photo.answers is not None:
        return [LabelledClaim(_claim(noun), is_there, "pope") for noun, is_there in sorted(photo.answers.items())]
    claims = list(_existence_claims(photo, statistics, rng))
    claims += _count_claims(photo, rng)
    claims += _place_claims(photo, size, vocabulary, rng)
    claims += _relation_claims(photo, size, rng)
    return claims


def _existence_claims(photo: LabelledPhoto, statistics: NounFrequency, rng: random.Random) -> Iterator[LabelledClaim]:
    present = sorted(photo.present)
    asked = rng.sample(present, min(_MAX_PRESENT, len(present)))
    absent = sorted(photo.nouns - photo.present)
    rng.shuffle(absent)
    by_way = {
        "random": absent,
        "popular": sorted(absent, key=lambda noun: -statistics.counts[noun]),
        "adversarial": sorted(
            absent, key=lambda noun: (-statistics.num_together(present, noun), -statistics.counts[noun])
        ),
    }
    for way in WAYS:
        yield from (LabelledClaim(_claim(noun), True, way) for noun in asked)
        yield from (LabelledClaim(_claim(noun), False, way) for noun in by_way[way][: len(asked)])


def _count_claims(photo: LabelledPhoto, rng: random.Random) -> Iterator[LabelledClaim]:
    counts = Counter(box.label for box in photo.boxes if box.label not in photo.crowds)
    for noun, number in sorted(counts.items()):
        wrong = number + rng.choice([-1, 1]) if number > 1 else 2
        for value, is_true in ((number, True), (wrong, False)):
            claim = _claim(noun, ClaimKind.COUNT, str(value))
            yield LabelledClaim(claim, is_true, ClaimKind.COUNT.value)


def _place_claims(
    photo: LabelledPhoto, size: tuple[int, int], vocabulary: Vocabulary, rng: random.Random
) -> Iterator[LabelledClaim]:
    boxes_of = _boxes_of(photo)
    for noun, boxes in sorted(boxes_of.items()):
        places: dict[bool, list[str]] = {True: [], False: []}
        for name, place in vocabulary.places.items():
            margins = [_margin(_centre(box, size), place.region) for box in boxes]
            if max(margins) > _MIN_MARGIN:
                places[True].append(name)
            elif max(margins) < -_MIN_MARGIN:
                places[False].append(name)
        for is_true, names in places.items():
            if names:
                yield LabelledClaim(_claim(noun, ClaimKind.SPATIAL, rng.choice(names)), is_true, "place")


def _relation_claims(photo: LabelledPhoto, size: tuple[int, int], rng: random.Random) -> Iterator[LabelledClaim]:
    single = [boxes[0] for boxes in _boxes_of(photo).values() if len(boxes) == 1]
    pairs = [(a, b) for i, a in enumerate(single) for b in single[i + 1 :]]
    for a, b in rng.sample(pairs, min(_MAX_PRESENT, len(pairs))):
        (ax, ay), (bx, by) = _centre(a, size), _centre(b, size)
        relations = [("left of", bx - ax), ("right of", ax - bx), ("above", by - ay), ("below", ay - by)]
        for name, distance in relations:
            if abs(distance) > _MIN_DISTANCE:
                claim = _claim(a.label, ClaimKind.SPATIAL, name, b.label)
                yield LabelledClaim(claim, distance > 0, "relation")


def _boxes_of(photo: LabelledPhoto) -> dict[str, list[Box]]:
    boxes_of: dict[str, list[Box]] = {}
    for box in photo.boxes:
        if box.label not in photo.crowds:
            boxes_of.setdefault(box.label, []).append(box)
    return boxes_of


def _claim(noun: str, kind: ClaimKind = ClaimKind.EXISTENCE, value: str = "", other: str = "") -> Claim:
    return Claim(kind=kind, subject=noun, text=noun, start=0, end=len(noun), value=value, other=other)


def _centre(box: Box, size: tuple[int, int]) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2 / size[0], (box.y0 + box.y1) / 2 / size[1]


def _margin(point: tuple[float, float], region: tuple[float, float, float, float]) -> float:
    """Return how far a point lies inside a region; negative outside of it."""
    (x, y), (x0, y0, x1, y1) = point, region
    gaps = [(x - x0, x0 > 0), (y - y0, y0 > 0), (x1 - x, x1 < 1), (y1 - y, y1 < 1)]
    return min((gap for gap, has_neighbour in gaps if has_neighbour), default=1.0)
