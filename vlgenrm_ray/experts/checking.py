"""Decides claims: a claim and the evidence about its image -> supported, contradicted or unknown.

Pure and free of engines, so that the verdicts of a run can be recomputed from its records. The rules, in order:

1. An object is *sure* if its box scores at least `sure_box` and the matcher gives it every attribute that the phrase
   names. It is *possible* if either is undecided; a box that does not count (`counts`) is ignored. A phrase is *absent*
   only if no object is sure or possible and a second expert agrees: the matcher gives the phrase less than
   `absent_below` in every window that could show another object of it, or another detector searched for its noun as
   well. With both, both must agree; with neither, nothing is absent.
2. Existence: supported by a sure object, contradicted by absence.
3. Count: supported if the number of sure objects agrees, none is only possible and no window suggests one more;
   contradicted if there are more sure objects, or if even the possible ones are fewer and no window suggests one more.
4. Attribute: supported if every sure object of the phrase has it; contradicted if every one has another word of its
   family, or if the phrase is absent.
5. Position ("at the top left"): supported if the centre of a sure object lies in the region; contradicted by absence
   in the region, or by another object there if the vocabulary allows one object per region.
6. Relation: supported if it holds for all pairs of sure objects, contradicted if it holds for none, or if either phrase
   is absent.
7. A verdict whose confidence is below `min_score` is unknown.
8. A negated claim swaps supported and contradicted. A hedged claim stays unknown.

Everything else is unknown. `unknown` never produces a negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from vlgenrm_ray.experts.evidence import ImageEvidence, WindowMatch, window_shows
from vlgenrm_ray.experts.vocabulary import Phrase, Vocabulary
from vlgenrm_ray.records import Box, Claim, ClaimKind, Finding, Truth
from vlgenrm_ray.settings import Settings


class Thresholds(Settings):
    """Limits between definite and unknown verdicts. The values are our choice."""

    sure_box: float = Field(default=0.5, ge=0, le=1)
    """Detector score from which an object is sure. A weaker box is only possible."""
    absent_below: float = Field(default=0.2, ge=0, le=1)
    """A window does not show a phrase if the matcher gives it a lower probability."""
    edge: float = Field(default=0.04, ge=0, lt=0.5)
    """Distance from a region's border within which a centre counts as neither inside nor outside, in fractions of the
    image's side."""
    dead_zone: float = Field(default=0.15, ge=0, lt=1)
    """Distance along an axis below which two centres are in no relation, in fractions of the image's side."""

    def is_sure(self, box: Box) -> bool:
        """Return True if a box proves its object."""
        return box.score >= self.sure_box

    def counts(self, box: Box) -> bool:
        """Return True if a box makes its object at least possible."""
        return True

    def p_both_miss(self, noun: str) -> float:
        """Return the probability that an object is there although two detectors find no box of it."""
        return 0.1

    def min_score(self, claim: Claim, truth: Truth) -> float:
        """Return the confidence that a verdict on a claim, as if it were not negated, requires."""
        return 0.0


@dataclass(frozen=True, slots=True)
class _Decision:
    truth: Truth
    score: float
    boxes: tuple[Box, ...] = ()
    used_matcher: bool = False
    used_second_detector: bool = False


@dataclass(frozen=True, slots=True)
class _Object:
    """A detected box with the attributes matched on it."""

    box: Box
    attributes: dict[str, float]

    def attribute_score(self, attribute: str, vocabulary: Vocabulary) -> float | None:
        """Return the matcher's score of an attribute ("red") for this object.

        0 if another attribute of the same family ("blue") was matched; None if none of the family was.
        """
        for word, score in self.attributes.items():
            if word == attribute:
                return score
            if vocabulary.family(word) == vocabulary.family(attribute):
                return 0.0
        return None


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The objects that satisfy a phrase."""

    sure: tuple[_Object, ...]
    possible: tuple[_Object, ...]
    score: float
    """Confidence of the least confident sure object."""


def check_claim(claim: Claim, evidence: ImageEvidence, vocabulary: Vocabulary, thresholds: Thresholds) -> Finding:
    """Decide one claim by the rules above.

    Args:
        claim: Claim of a text about the image.
        evidence: Evidence from the experts, or rebuilt with `ImageEvidence.from_records`.
        vocabulary: Vocabulary that the claim was read with. A subject outside of it is unknown.
        thresholds: Limits of definite verdicts.

    Returns:
        The verdict with its confidence, the experts that decided and the boxes it rests on.
    """
    verdict = _Checker(evidence, vocabulary, thresholds).decide(claim)
    truth = verdict.truth
    if claim.hedged or verdict.score < thresholds.min_score(claim, truth):
        truth = Truth.UNKNOWN
    elif claim.negated:
        truth = _NEGATED[truth]
    experts = ["detector"]
    experts += ["second_detector"] if verdict.used_second_detector else []
    experts += ["matcher"] if verdict.used_matcher else []
    expert = "+".join(experts)
    return Finding(claim=claim, truth=truth, expert=expert, score=verdict.score, boxes=verdict.boxes)


_NEGATED = {
    Truth.SUPPORTED: Truth.CONTRADICTED,
    Truth.CONTRADICTED: Truth.SUPPORTED,
    Truth.UNKNOWN: Truth.UNKNOWN,
}
_UNKNOWN = _Decision(Truth.UNKNOWN, 0.0)


class _Checker:
    """The rules, on the evidence of one image."""

    def __init__(self, evidence: ImageEvidence, vocabulary: Vocabulary, thresholds: Thresholds) -> None:
        self.evidence = evidence
        self.vocabulary = vocabulary
        self.thresholds = thresholds
        attributes_of: dict[Box, dict[str, float]] = {}
        for detection in evidence.detections:
            attributes = attributes_of.setdefault(detection.box, {})
            if detection.attribute:
                attributes[detection.attribute] = detection.attribute_score
        self.objects = tuple(_Object(box, of_box) for box, of_box in attributes_of.items() if thresholds.counts(box))

    def decide(self, claim: Claim) -> _Decision:
        """Decide the claim as if it were neither negated nor hedged."""
        phrase = self.vocabulary.phrase(claim.subject)
        if phrase is None:
            return _UNKNOWN
        if claim.kind is ClaimKind.EXISTENCE:
            return self._check_existence(claim.subject, phrase)
        if claim.kind is ClaimKind.COUNT:
            return self._check_count(claim.subject, phrase, int(claim.value))
        if claim.kind is ClaimKind.ATTRIBUTE:
            return self._check_attribute(claim.subject, phrase, claim.value)
        if claim.other:
            return self._check_relation(claim, phrase)
        return self._check_position(claim.subject, phrase, claim.value)

    # -- objects and windows -------------------------------------------------------------------------------------

    def _find_candidates(self, phrase: Phrase) -> _Candidates:
        sure, possible, scores = [], [], [1.0]
        families = [self.vocabulary.family(a) for a in phrase.attributes]
        # A narrower word, or two attributes of one family ("red and white"), cannot be proved by a box.
        unprovable = phrase.narrower or len(set(families)) < len(families)
        for item in self.objects:
            if phrase.noun not in ("", item.box.label):
                continue
            attribute_scores = [item.attribute_score(attribute, self.vocabulary) for attribute in phrase.attributes]
            # The matcher names one attribute of a family: a truck that it calls red may be red and white.
            best = dict.fromkeys(families, 0.0)
            for family, score in zip(families, attribute_scores, strict=True):
                best[family] = max(best[family], 1.0 if score is None else score)
            if 0.0 in best.values():
                continue
            if unprovable or None in attribute_scores or not self.thresholds.is_sure(item.box):
                possible.append(item)
            else:
                sure.append(item)
                scores.append(min([item.box.score, *(s for s in attribute_scores if s is not None)]))
        return _Candidates(tuple(sure), tuple(possible), min(scores))

    def _max_probability(self, subject: str, known: Sequence[_Object], windows: Sequence[WindowMatch]) -> float | None:
        """Return the phrase's highest probability in the windows that show none of the known objects.

        None if the phrase was not matched in any of these windows.
        """
        scores = [
            score
            for window in windows
            if (score := window.score(subject)) is not None
            and not any(window_shows(window.box, item.box) for item in known)
        ]
        return max(scores) if scores else None

    def _were_searched_twice(self, phrase: Phrase) -> bool:
        """Return True if two detectors searched for every noun that satisfies the phrase."""
        nouns = {phrase.noun} if phrase.noun else set(self.vocabulary.nouns)
        return nouns <= self.evidence.nouns_searched_twice

    def _check_absence(
        self, subject: str, candidates: _Candidates, windows: Sequence[WindowMatch] | None = None
    ) -> _Decision:
        """Decide a claim without sure candidates: contradicted if the second experts find no object, else unknown."""
        windows = self.evidence.window_matches if windows is None else windows
        return self._decide_absence(subject, self._max_probability(subject, (), windows), candidates.possible)

    def _decide_absence(self, subject: str, matched: float | None, possible: Sequence[_Object] = ()) -> _Decision:
        """Combine the matcher's probability of a phrase, None if it has none, with the search of two detectors."""
        phrase = self.vocabulary.phrase(subject)
        searched_twice = phrase is not None and self._were_searched_twice(phrase)
        used = {"used_matcher": matched is not None, "used_second_detector": searched_twice}
        missed = self.thresholds.p_both_miss(phrase.noun) if phrase and searched_twice else None
        probabilities = [p for p in (matched, missed) if p is not None]
        if possible or not probabilities or max(probabilities) >= self.thresholds.absent_below:
            return _Decision(Truth.UNKNOWN, 0.0, _boxes(possible), **used)
        return _Decision(Truth.CONTRADICTED, 1.0 - max(probabilities), (), **used)

    # -- one rule per kind of claim ------------------------------------------------------------------------------

    def _check_existence(self, subject: str, phrase: Phrase) -> _Decision:
        candidates = self._find_candidates(phrase)
        if candidates.sure:
            return _Decision(Truth.SUPPORTED, candidates.score, _boxes(candidates.sure), bool(phrase.attributes))
        return self._check_absence(subject, candidates)

    def _check_count(self, subject: str, phrase: Phrase, number: int) -> _Decision:
        candidates = self._find_candidates(phrase)
        at_least = len(candidates.sure)
        at_most = at_least + len(candidates.possible)
        boxes = _boxes(candidates.sure)
        if number < at_least:
            return _Decision(Truth.CONTRADICTED, candidates.score, boxes, bool(phrase.attributes))
        if number <= at_most and candidates.possible:
            return _Decision(Truth.UNKNOWN, 0.0, boxes)
        objects = (*candidates.sure, *candidates.possible)
        probability = self._max_probability(subject, objects, self.evidence.window_matches)
        if probability is not None and probability >= self.thresholds.absent_below:
            return _Decision(Truth.UNKNOWN, 0.0, boxes, used_matcher=True)
        if number == at_most and number > 0:
            used_matcher = probability is not None or bool(phrase.attributes)
            return _Decision(Truth.SUPPORTED, candidates.score, boxes, used_matcher, self._were_searched_twice(phrase))
        absence = self._decide_absence(subject, probability)
        if absence.truth is Truth.UNKNOWN:
            return replace(absence, boxes=boxes)
        truth = Truth.SUPPORTED if number == at_most else Truth.CONTRADICTED
        return replace(absence, truth=truth, score=min(candidates.score, absence.score), boxes=boxes)

    def _check_attribute(self, subject: str, phrase: Phrase, attribute: str) -> _Decision:
        candidates = self._find_candidates(phrase)
        if not candidates.sure:
            return self._check_absence(subject, candidates)
        scores = [item.attribute_score(attribute, self.vocabulary) for item in candidates.sure]
        boxes = _boxes(candidates.sure)
        if all(scores):
            score = min([candidates.score, *(s or 0.0 for s in scores)])
            return _Decision(Truth.SUPPORTED, score, boxes, used_matcher=True)
        if set(scores) == {0.0}:
            matched = [score for item in candidates.sure for score in item.attributes.values()]
            return _Decision(Truth.CONTRADICTED, min(candidates.score, *matched), boxes, used_matcher=True)
        return _Decision(Truth.UNKNOWN, 0.0, boxes, used_matcher=True)

    def _check_position(self, subject: str, phrase: Phrase, place: str) -> _Decision:
        if place not in self.vocabulary.places:
            return _UNKNOWN
        candidates = self._find_candidates(phrase)
        inside = [item for item in candidates.sure if self._side_of_border(item.box, place) > 0]
        if inside:
            scores = [item.box.score for item in inside]
            return _Decision(Truth.SUPPORTED, min(candidates.score, *scores), _boxes(inside), bool(phrase.attributes))
        undecided = [
            item
            for item in (*candidates.sure, *candidates.possible)
            if self._side_of_border(item.box, place) == 0 or item in candidates.possible
        ]
        nearby = [item for item in undecided if self._side_of_border(item.box, place) >= 0]
        if nearby:
            return _Decision(Truth.UNKNOWN, 0.0, _boxes(nearby))
        others = [
            item
            for item in self.objects
            if self._side_of_border(item.box, place) > 0 and self.thresholds.is_sure(item.box)
        ]
        if others and self.vocabulary.exclusive_places:
            return _Decision(Truth.CONTRADICTED, others[0].box.score, _boxes(others), bool(phrase.attributes))
        windows = [w for w in self.evidence.window_matches if self._side_of_border(w.box, place) > 0]
        return self._check_absence(subject, replace(candidates, possible=()), windows)

    def _side_of_border(self, box: Box, place: str) -> int:
        """Return 1 if a box's centre lies in a region, -1 if outside, 0 if within `edge` of its border."""
        x, y = self.evidence.centre(box)
        x0, y0, x1, y1 = self.vocabulary.places[place].region
        # The image's own border has no region behind it, so a centre near it is not ambiguous.
        distances = [(x - x0, x0 > 0), (y - y0, y0 > 0), (x1 - x, x1 < 1), (y1 - y, y1 < 1)]
        gap = min((distance for distance, has_neighbour in distances if has_neighbour), default=1.0)
        return 1 if gap > self.thresholds.edge else -1 if gap < -self.thresholds.edge else 0

    def _check_relation(self, claim: Claim, phrase: Phrase) -> _Decision:
        other_phrase = self.vocabulary.phrase(claim.other)
        if other_phrase is None:
            return _UNKNOWN
        subjects, others = self._find_candidates(phrase), self._find_candidates(other_phrase)
        for name, candidates in ((claim.subject, subjects), (claim.other, others)):
            if not candidates.sure:
                return self._check_absence(name, candidates)
        boxes = _boxes((*subjects.sure, *others.sure))
        if subjects.possible or others.possible:
            return _Decision(Truth.UNKNOWN, 0.0, boxes)
        holds = {self._relation_holds(a.box, claim.value, b.box) for a in subjects.sure for b in others.sure if a != b}
        if len(holds) != 1 or holds == {None}:
            return _Decision(Truth.UNKNOWN, 0.0, boxes)
        truth = Truth.SUPPORTED if holds == {True} else Truth.CONTRADICTED
        used_matcher = bool(phrase.attributes or other_phrase.attributes)
        return _Decision(truth, min(subjects.score, others.score), boxes, used_matcher)

    def _relation_holds(self, a: Box, relation: str, b: Box) -> bool | None:
        """Decide if `a` stands in a relation to `b`. None: too close to call, or not decidable from boxes."""
        (ax, ay), (bx, by) = self.evidence.centre(a), self.evidence.centre(b)
        distances = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
        if relation == "on top of":
            side_by_side = min(a.x1, b.x1) <= max(a.x0, b.x0)
            return False if side_by_side or ay - by > self.thresholds.dead_zone else None
        if relation not in distances or abs(distances[relation]) < self.thresholds.dead_zone:
            return None
        return distances[relation] > 0


def _boxes(objects: Sequence[_Object]) -> tuple[Box, ...]:
    return tuple(item.box for item in objects)
