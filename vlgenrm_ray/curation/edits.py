"""Texts that differ from a text in one fact, worded as the text words it.

The same small changes serve twice: one that makes a true statement false gives a negative, one that makes a false
statement true gives a repair. Whether a change does either is not known here; the experts' evidence decides.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from vlgenrm_ray.curation.witness import claims_of
from vlgenrm_ray.experts.claims import claim_key
from vlgenrm_ray.experts.lexicon import Lexicon, Word, WordKind
from vlgenrm_ray.experts.vocabulary import Vocabulary, with_article
from vlgenrm_ray.records import Claim, ClaimKind


class Fact(StrEnum):
    """Which fact an edit changes."""

    ATTRIBUTE = "attribute"
    NUMBER = "number"
    RELATION = "relation"
    PLACE = "place"
    PRESENCE = "presence"
    OBJECT = "object"


KIND_OF = {
    Fact.ATTRIBUTE: ClaimKind.ATTRIBUTE,
    Fact.NUMBER: ClaimKind.COUNT,
    Fact.RELATION: ClaimKind.SPATIAL,
    Fact.PLACE: ClaimKind.SPATIAL,
    Fact.PRESENCE: ClaimKind.EXISTENCE,
    Fact.OBJECT: ClaimKind.EXISTENCE,
}
"""The kind of claim that a changed fact belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A changed text."""

    text: str
    start: int
    end: int
    """Span [start, end) of the new words in `text`, in characters."""
    fact: Fact
    new: str
    """What the fact now is: a canonical word, a number as digits, "yes" or "no"."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Claims of a text that overlap: "a red circle" and "a red circle at the top left" are one statement."""

    claims: tuple[Claim, ...]

    @property
    def start(self) -> int:
        return min(c.start for c in self.claims)

    @property
    def end(self) -> int:
        return max(c.end for c in self.claims)

    @property
    def meaning(self) -> frozenset[tuple[ClaimKind, str, str, str, bool, bool]]:
        """What it says, however it is worded."""
        return frozenset(map(claim_key, self.claims))


@lru_cache(maxsize=8192)
def statements(text: str, vocabulary: Vocabulary) -> tuple[Statement, ...]:
    """The statements of a text, in its order."""
    groups: list[list[Claim]] = []
    for claim in claims_of(text, vocabulary):
        if groups and claim.start < max(c.end for c in groups[-1]):
            groups[-1].append(claim)
        else:
            groups.append([claim])
    return tuple(Statement(tuple(group)) for group in groups)


def edits(text: str, at: int, vocabulary: Vocabulary) -> Iterator[Edit]:
    """Every text that changes one fact of statement number `at`. Cheap to list; `is_single` tells the good ones."""
    statement = statements(text, vocabulary)[at]
    if any(c.hedged for c in statement.claims):
        return
    words = [w for w in _lexicon(vocabulary).read(text) if statement.start <= w.start and w.end <= statement.end]
    yield from _edits(text, statement, words, vocabulary)


def is_single(text: str, at: int, edit: Edit, vocabulary: Vocabulary) -> bool:
    """Whether statement number `at` says something else after the edit, plainly, and every other one what it said."""
    before, after = (statements(t, vocabulary) for t in (text, edit.text))
    if len(before) != len(after) or any(c.hedged for c in after[at].claims):
        return False
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a.meaning != b.meaning] == [at]


def without(text: str, statement: Statement) -> str:
    """The text without the sentence a statement stands in."""
    start = max(text.rfind(mark, 0, statement.start) for mark in ".!?\n") + 1
    ends = [end for mark in ".!?\n" if (end := text.find(mark, statement.end)) >= 0]
    end = min(ends, default=len(text) - 1) + 1
    return f"{text[:start].rstrip()} {text[end:].lstrip()}".strip()


@lru_cache(maxsize=8)
def _lexicon(vocabulary: Vocabulary) -> Lexicon:
    return Lexicon(vocabulary)


def _edits(text: str, statement: Statement, words: Sequence[Word], vocabulary: Vocabulary) -> Iterator[Edit]:
    for i, word in enumerate(words):
        old = text[word.start : word.end]
        if word.kind is WordKind.ATTRIBUTE:
            for new in vocabulary.attributes[vocabulary.family(word.value)]:
                if new != word.value:
                    yield _replaced(text, words, i, new, Fact.ATTRIBUTE, new)
        elif word.kind in (WordKind.NOUN, WordKind.NOUNS) and word.value in vocabulary.nouns:
            for new in vocabulary.nouns:
                if new != word.value:
                    name = vocabulary.plural(new) if word.kind is WordKind.NOUNS else new
                    yield _replaced(text, words, i, name, Fact.OBJECT, new)
        elif word.kind is WordKind.PLACE:
            for new in vocabulary.places:
                if new != word.value:
                    yield _spliced(text, word.start, word.end, f"{_preposition(old)}{new}", Fact.PLACE, new)
        elif word.kind is WordKind.RELATION and word.value in OPPOSITE:
            new = OPPOSITE[word.value]
            yield _spliced(text, word.start, word.end, _opposite(old, word.value), Fact.RELATION, new)
    if [c.kind for c in statement.claims] == [ClaimKind.COUNT]:
        yield from _recounted(text, statement.claims[0], words, vocabulary)
    if [c.kind for c in statement.claims] == [ClaimKind.EXISTENCE]:
        yield from _denied(text, statement, words)


def _spliced(text: str, start: int, end: int, said: str, fact: Fact, new: str) -> Edit:
    if text[start : start + 1].isupper():
        said = said[:1].upper() + said[1:]
    return Edit(text=text[:start] + said + text[end:], start=start, end=start + len(said), fact=fact, new=new)


def _replaced(text: str, words: Sequence[Word], i: int, said: str, fact: Fact, new: str) -> Edit:
    """One word for another; an article right before it is made to suit."""
    word = words[i]
    before = words[i - 1] if i else None
    if before is None or before.value not in ("a", "an"):
        return _spliced(text, word.start, word.end, said, fact, new)
    return _spliced(text, before.start, word.end, with_article(said), fact, new)


# -- places and relations --------------------------------------------------------------------------------------------

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Relations that turn round when one of their words does."""


def _preposition(place: str) -> str:
    found = re.match(r"(?:at|in|on|to)(?: the)? ", place, re.IGNORECASE)
    return found[0] if found else ""


def _opposite(wording: str, relation: str) -> str:
    """ "to the left of" -> "to the right of"; a wording without a side ("under") -> the plain opposite ("above")."""
    was, becomes = relation.split()[0], OPPOSITE[relation].split()[0]
    return re.sub(rf"\b{was}\b", becomes, wording) if re.search(rf"\b{was}\b", wording) else OPPOSITE[relation]


# -- numbers ---------------------------------------------------------------------------------------------------------

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COUNTABLE = 6
"""Numbers below this are tried in place of any other."""
_VERBS = {"is": "are", "are": "are", "was": "were", "were": "were"}


def _recounted(text: str, claim: Claim, words: Sequence[Word], vocabulary: Vocabulary) -> Iterator[Edit]:
    """ "There is one circle" -> "There are two circles" and "There are no circles"; verb and noun agree."""
    number = next((w for w in words if w.kind in (WordKind.NUMBER, WordKind.NONE)), None)
    noun = next((w for w in words if w.kind in (WordKind.NOUN, WordKind.NOUNS)), None)
    if number is None or noun is None or noun.start < number.end:
        return
    count = int(claim.value)
    is_digit = text[number.start : number.end].isdigit()
    # The verb stands right before the claim's own words: "There *are* two circles".
    verb = re.search(r"\b(is|are|was|were) $", text[: number.start], re.IGNORECASE)
    for new in range(max(count + 2, _COUNTABLE)):
        if new == count or new >= len(_NUMBERS) or claim.negated:
            continue
        name = str(new) if is_digit else _NUMBERS[new]
        singular = noun.value
        thing = singular if new == 1 else vocabulary.plural(singular)
        said = f"{name}{text[number.end : noun.start]}{thing}"
        start = number.start
        if verb is not None:
            many = _VERBS[verb[1].lower()]
            said = f"{'is' if many == 'are' else 'was'} {said}" if new == 1 else f"{many} {said}"
            start = verb.start(1)
        yield _spliced(text, start, noun.end, said, Fact.NUMBER, str(new))


# -- presence --------------------------------------------------------------------------------------------------------

_YES_NO = re.compile(r"(?:^|(?<=[.!?\n] ))(yes|no)(,[^.!?\n]*)$", re.IGNORECASE)


def _denied(text: str, statement: Statement, words: Sequence[Word]) -> Iterator[Edit]:
    """ "Yes, there is a red circle" <-> "No, there is no red circle"."""
    opening = words[0] if words else None
    if opening is None or opening.value not in ("a", "an", "no") or words[-1].kind is not WordKind.NOUN:
        return
    things = text[opening.end : statement.end].strip()
    said = with_article(things) if opening.value == "no" else f"no {things}"
    start = opening.start
    # A leading "Yes," or "No," has to turn with it.
    if answer := _YES_NO.search(text[:start]):
        said = f"{'no' if answer[1].lower() == 'yes' else 'yes'}{answer[2]}{said}"
        start = answer.start(1)
    yield _spliced(text, start, statement.end, said, Fact.PRESENCE, "yes" if opening.value == "no" else "no")
