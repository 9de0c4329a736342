"""Ground truth of the hard world: truth of single claims and of whole responses about a scene.

It is used to measure and to build the pack. No stage of the training loop may select by it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes.hard.prior import COLOURS, SHAPES, TEXTURES, WORDS
from vlgenrm_ray.shapes.hard.scenes import ClutteredScene
from vlgenrm_ray.shapes.language import NUMBERS, RELATIONS
from vlgenrm_ray.shapes.questions import related
from vlgenrm_ray.shapes.scenes import CELLS

_COLOUR = rf"(?:{'|'.join(COLOURS)})"
_TEXTURE = rf"(?:{'|'.join(TEXTURES)})"
_NOUN = rf"(?:{_TEXTURE} )?(?:{_COLOUR} )?(?:{'|'.join(SHAPES)}|shape)"
_PLACE = "|".join(sorted(CELLS, key=len, reverse=True))
_RELATION = "|".join(RELATIONS)
_SENTENCE = re.compile(r"\s*(?:(?:yes|no), )?(?P<clause>[^.]*)\.", re.IGNORECASE)
_FORMS = (
    re.compile(rf"there is an? (?P<is>{_NOUN})(?: at the (?P<place>{_PLACE}))?"),
    re.compile(rf"there is an? (?P<here>{_NOUN}) (?P<side>{_RELATION}) the (?P<there>{_NOUN})"),
    re.compile(rf"there is no (?P<no>{_NOUN})"),
    re.compile(rf"there (?:is|are) (?P<number>{'|'.join(NUMBERS)}) (?P<counted>{_NOUN})s?"),
    re.compile(rf"the (?P<the>{_NOUN}) is (?P<attribute>{_COLOUR}|{_TEXTURE})"),
    re.compile(rf"the (?P<one>{_NOUN}) is (?P<relation>{_RELATION}) the (?P<two>{_NOUN})"),
    re.compile(rf"the sign says \"(?P<word>{'|'.join(WORDS).lower()})\""),
)
_QUESTIONS = (
    ("describe", re.compile(r"describe the image\.()()()")),
    ("existence", re.compile(rf"is there an? ({_NOUN})\?()()")),
    ("count", re.compile(rf"how many ({_NOUN})s are there\?()()")),
    ("attribute", re.compile(rf"what colour is the ({_NOUN})\?()()")),
    ("attribute", re.compile(rf"is the ({_NOUN}) solid, striped or dotted\?()()")),
    ("spatial", re.compile(rf"is the ({_NOUN}) (?:left of or right of|above or below) the ({_NOUN})\?()")),
    ("compare", re.compile(rf"are there more ({_NOUN})s or more ({_NOUN})s\?()")),
    ("two_step", re.compile(rf"what colour is the (shape) (?={_RELATION})(?:\S+(?: of)?) the ({_NOUN})\?()")),
    ("text", re.compile(r"what does the sign say\?()()()")),
)
_TWO_STEP_RELATION = re.compile(rf"the shape ({_RELATION}) the")


@dataclass(frozen=True, slots=True)
class ParsedSentence:
    """One sentence of a response: what it says, by the names of its form, and where it stands."""

    parts: dict[str, str]
    text: str
    start: int

    def claims(self) -> tuple[Claim, ...]:
        """Return the claims of the statement."""
        return tuple(self._claims())

    def _claims(self) -> Iterator[Claim]:
        parts = self.parts
        claim = Claim(
            kind=ClaimKind.EXISTENCE, subject="", text=self.text, start=self.start, end=self.start + len(self.text)
        )
        if "is" in parts:
            yield replace(claim, subject=parts["is"])
            if parts["place"]:
                yield replace(claim, kind=ClaimKind.SPATIAL, subject=parts["is"], value=parts["place"])
        elif "here" in parts:
            yield replace(claim, subject=parts["here"])
            yield replace(
                claim, kind=ClaimKind.SPATIAL, subject=parts["here"], value=parts["side"], other=parts["there"]
            )
        elif "no" in parts:
            yield replace(claim, subject=parts["no"], negated=True)
        elif "number" in parts:
            number = str(NUMBERS.index(parts["number"]))
            yield replace(claim, kind=ClaimKind.COUNT, subject=parts["counted"], value=number)
        elif "attribute" in parts:
            yield replace(claim, kind=ClaimKind.ATTRIBUTE, subject=parts["the"], value=parts["attribute"])
        elif "relation" in parts:
            yield replace(
                claim, kind=ClaimKind.SPATIAL, subject=parts["one"], value=parts["relation"], other=parts["two"]
            )
        elif "word" in parts:
            yield replace(claim, kind=ClaimKind.TEXT, subject="sign", value=parts["word"].upper())


@dataclass(frozen=True, slots=True)
class ParsedQuestion:
    """A question: its kind and the noun phrases and relation that it names."""

    kind: str
    subject: str = ""
    other: str = ""
    relation: str = ""
    is_about_texture: bool = False


def statements(text: str) -> tuple[ParsedSentence, ...] | None:
    """Parse every sentence of a text in the world's language; return None if any part of it is foreign."""
    parsed: list[ParsedSentence] = []
    end = 0
    for sentence in _SENTENCE.finditer(text):
        if sentence.start() != end:
            return None
        end = sentence.end()
        clause = sentence["clause"]
        match = next((m for form in _FORMS if (m := form.fullmatch(clause.lower()))), None)
        if match is None:
            return None
        parsed.append(ParsedSentence(match.groupdict(), clause, sentence.start("clause")))
    return tuple(parsed) if not text[end:].strip() else None


def holds(scene: ClutteredScene, claim: Claim) -> bool:
    """Return whether one claim is true of the scene.

    "The star is red" requires a star and no star of another colour. "The star is left of the circle" requires both
    shapes, and the relation between all of them. Hedges are ignored.
    """
    subjects = scene.matching(claim.subject) if claim.kind is not ClaimKind.TEXT else ()
    if claim.kind is ClaimKind.TEXT:
        true = scene.sign is not None and scene.sign.word == claim.value.upper()
    elif claim.kind is ClaimKind.COUNT:
        true = len(subjects) == int(claim.value)
    elif claim.kind is ClaimKind.ATTRIBUTE:
        true = bool(subjects) and all(claim.value in (o.colour, o.texture) for o in subjects)
    elif claim.kind is ClaimKind.SPATIAL and claim.value in CELLS:
        true = any(CELLS[o.cell] == claim.value for o in subjects)
    elif claim.kind is ClaimKind.SPATIAL:
        others = scene.matching(claim.other)
        true = bool(subjects and others) and all(related(a, claim.value, b) for a in subjects for b in others)
    else:
        true = bool(subjects)
    return true != claim.negated


def is_statement_true(scene: ClutteredScene, statement: ParsedSentence) -> bool:
    """Return whether one sentence is true of the scene."""
    return all(holds(scene, claim) for claim in statement.claims())


def parse_question(question: str) -> ParsedQuestion:
    """Parse a question. Raises ValueError for a foreign one."""
    text = question.strip().lower()
    for kind, form in _QUESTIONS:
        if match := form.fullmatch(text):
            relation = _TWO_STEP_RELATION.search(text) if kind == "two_step" else None
            return ParsedQuestion(kind, match[1], match[2], relation[1] if relation else "", "striped or" in text)
    raise ValueError(f"not a question of the hard world: {question!r}")


def answers(question: ParsedQuestion, response: tuple[ParsedSentence, ...]) -> bool:
    """Return whether the sentences of a response answer a question."""
    if question.kind == "describe":
        return True
    if question.kind == "compare":
        # Two numbers say which of two kinds is more numerous.
        return {question.subject, question.other} <= {s.parts.get("counted") for s in response}
    return any(_is_answer(question, statement) for statement in response)


def _is_answer(question: ParsedQuestion, statement: ParsedSentence) -> bool:
    parts = statement.parts
    if question.kind == "text":
        return "word" in parts
    if question.kind == "two_step":
        is_coloured = any(word in COLOURS for word in parts.get("here", "").split())
        return is_coloured and (parts.get("side"), parts.get("there")) == (question.relation, question.other)
    if question.kind == "attribute":
        values = TEXTURES if question.is_about_texture else COLOURS
        return parts.get("the") == question.subject and parts["attribute"] in values
    return any(
        claim.kind == question.kind and claim.subject == question.subject and claim.other == question.other
        for claim in statement.claims()
    )


def is_sentence_true(scene: ClutteredScene, sentence: str) -> bool:
    """Return whether a sentence is in the world's language and true of the scene."""
    parsed = statements(sentence)
    return bool(parsed) and all(is_statement_true(scene, statement) for statement in parsed or ())


def is_true(scene: ClutteredScene, question: str, response: str) -> bool:
    """Return whether a response answers the question in the world's language and states only what is true."""
    parsed = statements(response)
    if not parsed:
        return False
    return answers(parse_question(question), parsed) and all(is_statement_true(scene, s) for s in parsed)
