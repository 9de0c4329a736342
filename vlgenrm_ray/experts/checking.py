"""A claim against what the experts saw: supported, contradicted or unknown. Pure, and the only place that decides it.

The rules, in the order they are asked:

1. A thing is *seen* if the detector is sure of its box and the matcher of every attribute the claim names (each
   among its family on that box's crop). It *may be* if either is unsure. It is *absent* only if it neither is nor may
   be seen, and the matcher holds the phrase unlikely in every window of the image that shows no such thing.
2. Existence: seen, absent, or unknown.
3. Count: right if as many are seen, none more may be, and no window hints at another; wrong if more are seen than
   claimed, or if fewer can be and the windows agree.
4. Attribute: right if all things of the noun have it, wrong if none has, or if there is no such thing.
5. Place: right if such a thing's middle lies there; wrong if one is absent there, or if something else surely is
   where the vocabulary allows one thing only.
6. Relation: right if it holds between all such things, wrong if between none, or if one side is absent.
7. Denied claims swap right and wrong. Hedged ones stay unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from vlgenrm_ray.experts.view import Glance, View, area, shared_area
from vlgenrm_ray.experts.vocabulary import Phrase, Vocabulary
from vlgenrm_ray.records import Box, Claim, ClaimKind, Finding, Truth
from vlgenrm_ray.settings import Settings


class Bands(Settings):
    """Where sure ends and unsure begins. All our choice; between the bands a claim stays unknown."""

    sure_box: float = Field(default=0.5, ge=0, le=1)
    """Score from which a box counts as seen; weaker ones only may be."""
    absent_below: float = Field(default=0.2, ge=0, le=1)
    """A window does not show a phrase if the matcher gives it less."""
    edge: float = Field(default=0.04, ge=0, lt=0.5)
    """A middle so near a place's border, in fractions of the image, may be inside or outside."""
    dead_zone: float = Field(default=0.15, ge=0, lt=1)
    """Middles closer than this along an axis, in fractions of the image, stand in no relation along it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    truth: Truth
    score: float
    boxes: tuple[Box, ...] = ()
    matched: bool = False
    """The matcher had a say."""


@dataclass(frozen=True, slots=True)
class _Thing:
    """A box with what the matcher made of it."""

    box: Box
    attributes: dict[str, float]

    def has(self, attribute: str, vocabulary: Vocabulary) -> float | None:
        """How surely it has an attribute: the matcher's score, 0 if it has another one, None if undecided."""
        for word, score in self.attributes.items():
            if word == attribute:
                return score
            if vocabulary.family(word) == vocabulary.family(attribute):
                return 0.0
        return None


@dataclass(frozen=True, slots=True)
class _Found:
    """The things that fit a phrase, and those that may."""

    sure: tuple[_Thing, ...]
    maybe: tuple[_Thing, ...]
    score: float
    """Confidence that the weakest of the sure ones fits."""


def check(claim: Claim, view: View, vocabulary: Vocabulary, bands: Bands) -> Finding:
    """What the experts say of one claim. Needs no engine: a view can be had from a record's sightings."""
    answer = _Checker(view, vocabulary, bands).answer(claim)
    truth = answer.truth
    if claim.hedged:
        truth = Truth.UNKNOWN
    elif claim.negated:
        truth = _DENIED[truth]
    expert = "detector+matcher" if answer.matched else "detector"
    return Finding(claim=claim, truth=truth, expert=expert, score=answer.score, boxes=answer.boxes)


_DENIED = {
    Truth.SUPPORTED: Truth.CONTRADICTED,
    Truth.CONTRADICTED: Truth.SUPPORTED,
    Truth.UNKNOWN: Truth.UNKNOWN,
}
_UNKNOWN = _Answer(Truth.UNKNOWN, 0.0)


class _Checker:
    def __init__(self, view: View, vocabulary: Vocabulary, bands: Bands) -> None:
        self.view = view
        self.vocabulary = vocabulary
        self.bands = bands
        merged: dict[Box, dict[str, float]] = {}
        for sighting in view.sightings:
            named = merged.setdefault(sighting.box, {})
            if sighting.attribute:
                named[sighting.attribute] = sighting.attribute_score
        self.things = tuple(_Thing(box, attributes) for box, attributes in merged.items())

    def answer(self, claim: Claim) -> _Answer:
        phrase = self.vocabulary.phrase(claim.subject)
        if phrase is None:
            return _UNKNOWN
        if claim.kind is ClaimKind.EXISTENCE:
            return self._existence(claim.subject, phrase)
        if claim.kind is ClaimKind.COUNT:
            return self._count(claim.subject, phrase, int(claim.value))
        if claim.kind is ClaimKind.ATTRIBUTE:
            return self._attribute(claim.subject, phrase, claim.value)
        if claim.other:
            return self._relation(claim, phrase)
        return self._place(claim.subject, phrase, claim.value)

    # -- finding things ------------------------------------------------------------------------------------------

    def _find(self, phrase: Phrase) -> _Found:
        sure, maybe, scores = [], [], [1.0]
        families = [self.vocabulary.family(a) for a in phrase.attributes]
        unclear = phrase.narrower or len(set(families)) < len(families)
        for thing in self.things:
            if phrase.noun not in ("", thing.box.label):
                continue
            fits = [thing.has(attribute, self.vocabulary) for attribute in phrase.attributes]
            if 0.0 in fits:
                continue
            if unclear or None in fits or thing.box.score < self.bands.sure_box:
                maybe.append(thing)
            else:
                sure.append(thing)
                scores.append(min([thing.box.score, *(f for f in fits if f is not None)]))
        return _Found(tuple(sure), tuple(maybe), min(scores))

    def _hint(self, subject: str, apart_from: Sequence[_Thing], glances: Sequence[Glance]) -> float | None:
        """The likeliest the phrase gets in any window that shows none of some things; None if no window can tell."""
        scores = [
            score
            for glance in glances
            if (score := glance.score(subject)) is not None
            and not any(_shows(glance.window, thing.box) for thing in apart_from)
        ]
        return max(scores) if scores else None

    def _absence(self, subject: str, found: _Found, glances: Sequence[Glance] | None = None) -> _Answer:
        """The answer where nothing fits for sure: contradicted if the matcher agrees, else unknown."""
        hint = self._hint(subject, (), self.view.glances if glances is None else glances)
        if found.maybe or hint is None or hint >= self.bands.absent_below:
            return _Answer(Truth.UNKNOWN, 0.0, _boxes(found.maybe), hint is not None)
        return _Answer(Truth.CONTRADICTED, 1.0 - hint, (), matched=True)

    # -- the kinds -----------------------------------------------------------------------------------------------

    def _existence(self, subject: str, phrase: Phrase) -> _Answer:
        found = self._find(phrase)
        if found.sure:
            return _Answer(Truth.SUPPORTED, found.score, _boxes(found.sure), bool(phrase.attributes))
        return self._absence(subject, found)

    def _count(self, subject: str, phrase: Phrase, number: int) -> _Answer:
        found = self._find(phrase)
        least, most = len(found.sure), len(found.sure) + len(found.maybe)
        boxes = _boxes(found.sure)
        if number < least:
            return _Answer(Truth.CONTRADICTED, found.score, boxes, bool(phrase.attributes))
        if number <= most and found.maybe:
            return _Answer(Truth.UNKNOWN, 0.0, boxes)
        hint = self._hint(subject, (*found.sure, *found.maybe), self.view.glances)
        if hint is not None and hint >= self.bands.absent_below:
            return _Answer(Truth.UNKNOWN, 0.0, boxes, matched=True)
        if number == most and number > 0:
            return _Answer(Truth.SUPPORTED, found.score, boxes, hint is not None or bool(phrase.attributes))
        if hint is None:
            return _Answer(Truth.UNKNOWN, 0.0, boxes)
        truth = Truth.SUPPORTED if number == most else Truth.CONTRADICTED
        return _Answer(truth, min(found.score, 1.0 - hint), boxes, matched=True)

    def _attribute(self, subject: str, phrase: Phrase, value: str) -> _Answer:
        found = self._find(phrase)
        if not found.sure:
            return self._absence(subject, found)
        fits = [thing.has(value, self.vocabulary) for thing in found.sure]
        boxes = _boxes(found.sure)
        if all(fits):
            return _Answer(Truth.SUPPORTED, min([found.score, *(f or 0.0 for f in fits)]), boxes, matched=True)
        if set(fits) == {0.0}:
            rivals = [score for thing in found.sure for score in thing.attributes.values()]
            return _Answer(Truth.CONTRADICTED, min(found.score, *rivals), boxes, matched=True)
        return _Answer(Truth.UNKNOWN, 0.0, boxes, matched=True)

    def _place(self, subject: str, phrase: Phrase, place: str) -> _Answer:
        if place not in self.vocabulary.places:
            return _UNKNOWN
        found = self._find(phrase)
        inside = [thing for thing in found.sure if self._within(thing, place) > 0]
        if inside:
            scores = [thing.box.score for thing in inside]
            return _Answer(Truth.SUPPORTED, min(found.score, *scores), _boxes(inside), bool(phrase.attributes))
        unsure = [t for t in (*found.sure, *found.maybe) if self._within(t, place) == 0 or t in found.maybe]
        nearby = [thing for thing in unsure if self._within(thing, place) >= 0]
        if nearby:
            return _Answer(Truth.UNKNOWN, 0.0, _boxes(nearby))
        others = [t for t in self.things if self._within(t, place) > 0 and t.box.score >= self.bands.sure_box]
        if others and self.vocabulary.exclusive_places:
            return _Answer(Truth.CONTRADICTED, others[0].box.score, _boxes(others), bool(phrase.attributes))
        there = [g for g in self.view.glances if self._within(_Thing(g.window, {}), place) > 0]
        return self._absence(subject, replace(found, maybe=()), there)

    def _within(self, thing: _Thing, place: str) -> int:
        """1 if a thing's middle lies in a place, -1 if outside, 0 if too near the border to say."""
        x, y = self.view.middle(thing.box)
        x0, y0, x1, y1 = self.vocabulary.places[place].region
        # The image's own border is no border to another place.
        inner = [(x - x0, x0 > 0), (y - y0, y0 > 0), (x1 - x, x1 < 1), (y1 - y, y1 < 1)]
        gap = min((distance for distance, has_neighbour in inner if has_neighbour), default=1.0)
        return 1 if gap > self.bands.edge else -1 if gap < -self.bands.edge else 0

    def _relation(self, claim: Claim, phrase: Phrase) -> _Answer:
        other = self.vocabulary.phrase(claim.other)
        if other is None:
            return _UNKNOWN
        subjects, others = self._find(phrase), self._find(other)
        for name, found in ((claim.subject, subjects), (claim.other, others)):
            if not found.sure:
                return self._absence(name, found)
        if subjects.maybe or others.maybe:
            return _Answer(Truth.UNKNOWN, 0.0, _boxes((*subjects.sure, *others.sure)))
        held = {self._related(a.box, claim.value, b.box) for a in subjects.sure for b in others.sure if a != b}
        boxes = _boxes((*subjects.sure, *others.sure))
        if len(held) != 1 or held == {None}:
            return _Answer(Truth.UNKNOWN, 0.0, boxes)
        truth = Truth.SUPPORTED if held == {True} else Truth.CONTRADICTED
        return _Answer(truth, min(subjects.score, others.score), boxes, bool(phrase.attributes or other.attributes))

    def _related(self, a: Box, relation: str, b: Box) -> bool | None:
        """Whether `a` stands in a relation to `b`; None if too close to call, or a relation no boxes can show."""
        (ax, ay), (bx, by) = self.view.middle(a), self.view.middle(b)
        ahead = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
        if relation == "on top of":
            beside = min(a.x1, b.x1) <= max(a.x0, b.x0)
            return False if beside or ay - by > self.bands.dead_zone else None
        if relation not in ahead or abs(ahead[relation]) < self.bands.dead_zone:
            return None
        return ahead[relation] > 0


def _shows(window: Box, box: Box) -> bool:
    """Whether a window shows so much of a box, or is so full of it, that the matcher may have meant it."""
    return shared_area(window, box) > 0.1 * min(area(window), area(box))


def _boxes(things: Sequence[_Thing]) -> tuple[Box, ...]:
    return tuple(thing.box for thing in things)
