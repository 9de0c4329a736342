"""Ground truth of the embedded world: truth of single claims and of whole responses about a scene.

It is used to measure and to build the pack. No stage of the training loop may select by it.
"""

import re

from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes.language import NUMBERS, RELATIONS
from vlgenrm_ray.shapes.questions import related
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, Scene

_COLOUR = rf"(?:{'|'.join(COLOURS)})"
_NOUN = rf"(?:{_COLOUR} )?(?:{'|'.join(SHAPES)}|shape)"
_PLACE = "|".join(sorted(CELLS, key=len, reverse=True))
_SENTENCE = re.compile(r"\s*(?:(?:yes|no), )?(?P<clause>[^.]*)\.", re.IGNORECASE)
_FORMS = (
    re.compile(rf"there is an? (?P<is>{_NOUN})(?: at the (?P<place>{_PLACE}))?"),
    re.compile(rf"there is no (?P<no>{_NOUN})"),
    re.compile(rf"there (?:is|are) (?P<number>{'|'.join(NUMBERS)}) (?P<counted>{_NOUN})s?"),
    re.compile(rf"the (?P<the>{_NOUN}) is (?P<colour>{_COLOUR})"),
    re.compile(rf"the (?P<one>{_NOUN}) is (?P<relation>{'|'.join(RELATIONS)}) the (?P<two>{_NOUN})"),
)
_QUESTIONS = (
    ("describe", re.compile(r"describe the image\.()()")),
    ("existence", re.compile(rf"is there an? ({_NOUN})\?()")),
    ("count", re.compile(rf"how many ({_NOUN})s are there\?()")),
    ("attribute", re.compile(rf"what colour is the ({_NOUN})\?()")),
    ("spatial", re.compile(rf"is the ({_NOUN}) (?:left of or right of|above or below) the ({_NOUN})\?")),
)


def claims(text: str) -> tuple[Claim, ...] | None:
    """Parse every claim of a text in the world's language; return None if any part of it is foreign."""
    parsed: list[Claim] = []
    end = 0
    for sentence in _SENTENCE.finditer(text):
        if sentence.start() != end:
            return None
        end = sentence.end()
        of_clause = clause_claims(sentence["clause"], sentence.start("clause"))
        if not of_clause:
            return None
        parsed += of_clause
    return tuple(parsed) if not text[end:].strip() else None


def clause_claims(clause: str, start: int = 0) -> list[Claim]:
    """Parse the claims of one clause (without full stop); spans are shifted by `start`. A foreign clause has none."""
    for form in _FORMS:
        if match := form.fullmatch(clause.lower()):
            parts = match.groupdict()
            break
    else:
        return []

    def claim(kind: ClaimKind, subject: str, value: str = "", other: str = "", negated: bool = False) -> Claim:
        return Claim(
            kind=kind,
            subject=subject,
            value=value,
            other=other,
            negated=negated,
            text=clause,
            start=start,
            end=start + len(clause),
        )

    if "is" in parts:
        place = [claim(ClaimKind.SPATIAL, parts["is"], parts["place"])] if parts["place"] else []
        return [claim(ClaimKind.EXISTENCE, parts["is"]), *place]
    if "no" in parts:
        return [claim(ClaimKind.EXISTENCE, parts["no"], negated=True)]
    if "number" in parts:
        return [claim(ClaimKind.COUNT, parts["counted"], str(NUMBERS.index(parts["number"])))]
    if "colour" in parts:
        return [claim(ClaimKind.ATTRIBUTE, parts["the"], parts["colour"])]
    return [claim(ClaimKind.SPATIAL, parts["one"], parts["relation"], parts["two"])]


def holds(scene: Scene, claim: Claim) -> bool:
    """Return whether one claim is true of the scene.

    "The star is red" requires a star and no star of another colour. "The star is left of the circle" requires both
    shapes, and the relation between all of them. Hedges are ignored.
    """
    subjects = scene.matching(claim.subject)
    if claim.kind == ClaimKind.COUNT:
        true = len(subjects) == int(claim.value)
    elif claim.kind == ClaimKind.ATTRIBUTE:
        true = bool(subjects) and all(o.colour == claim.value for o in subjects)
    elif claim.kind == ClaimKind.SPATIAL and claim.value in CELLS:
        true = any(CELLS[o.cell] == claim.value for o in subjects)
    elif claim.kind == ClaimKind.SPATIAL:
        others = scene.matching(claim.other)
        true = bool(subjects and others) and all(related(a, claim.value, b) for a in subjects for b in others)
    else:
        true = bool(subjects)
    return true != claim.negated


def answers(question: str, response: tuple[Claim, ...]) -> bool:
    """Return whether one of the claims addresses the question. Raises ValueError for a foreign question."""
    kind, subject, other = parse(question)
    return any(about(kind, subject, other, claim) for claim in response)


def about(kind: str, subject: str, other: str, claim: Claim) -> bool:
    """Return whether a claim answers a question of `kind` about `subject` (and `other`)."""
    return kind == "describe" or (claim.kind == kind and claim.subject == subject and claim.other == other)


def parse(question: str) -> tuple[str, str, str]:
    """Parse a question into kind, subject and second subject. Raises ValueError for a foreign question."""
    for kind, form in _QUESTIONS:
        if match := form.fullmatch(question.strip().lower()):
            return kind, match[1], match[2]
    raise ValueError(f"not a question of the embedded world: {question!r}")


def is_sentence_true(scene: Scene, sentence: str) -> bool:
    """Return whether a sentence is in the world's language and true of the scene."""
    parsed = claims(sentence)
    return bool(parsed) and all(holds(scene, claim) for claim in parsed or ())


def is_true(scene: Scene, question: str, response: str) -> bool:
    """Return whether a response answers the question in the world's language and makes only true claims."""
    parsed = claims(response)
    if not parsed:
        return False
    return answers(question, parsed) and all(holds(scene, claim) for claim in parsed)
