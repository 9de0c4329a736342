"""Text -> claims, by a closed vocabulary and a small grammar.

It understands plain statements of existence, number, attribute, place and relation, in the affirmative and denied.
What it does not understand it passes over. What is hedged, or denied in a way it cannot place, it marks `hedged`:
such a claim is never held against anybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from vlgenrm_ray.experts.lexicon import Kind, Lexicon, Word, clauses, sees
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Claim, ClaimKind


class ClaimExtractor(Protocol):
    """Anything that reads claims out of a text: this file's grammar, or a language model."""

    def extract(self, text: str) -> tuple[Claim, ...]:
        """The claims of a text, in its order, in canonical words; `claim.text == text[claim.start:claim.end]`."""
        ...


@dataclass(frozen=True, slots=True)
class VocabularyExtractor:
    """`extract` with its vocabulary, as a `ClaimExtractor`."""

    vocabulary: Vocabulary

    def extract(self, text: str) -> tuple[Claim, ...]:
        """See `ClaimExtractor`."""
        return extract(text, self.vocabulary)


def meaning(claim: Claim) -> tuple[ClaimKind, str, str, str, bool, bool]:
    """What a claim says, wherever it stands and however it is worded."""
    return (claim.kind, claim.subject, claim.value, claim.other, claim.negated, claim.hedged)


def extract(text: str, vocabulary: Vocabulary) -> tuple[Claim, ...]:
    """The claims of a text, in its order. See `ClaimExtractor`."""
    found: list[Claim] = []
    for clause in clauses(_lexicon(vocabulary).read(text)):
        found += _Clause(clause, text, vocabulary).claims()
    return tuple(sorted(found, key=lambda c: (c.start, c.end)))


@lru_cache(maxsize=8)
def _lexicon(vocabulary: Vocabulary) -> Lexicon:
    return Lexicon(vocabulary)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noun:
    """A noun phrase: "two red circles" is `red circle`, many, number 2."""

    subject: str
    start: int
    end: int
    many: bool
    opening: Kind | None
    """A, THE, NUMBER, NONE or NOTHING; None where the phrase begins without any."""
    number: str = ""
    vague: bool = False
    """It holds words the vocabulary lacks, so a count or denial of it says less than one of its subject."""

    @property
    def denied(self) -> bool:
        return self.opening in (Kind.NONE, Kind.NOTHING)


_Item = _Noun | Word
_OPENINGS = (Kind.A, Kind.THE, Kind.NUMBER, Kind.NONE)
_MAX_FOREIGN = 2


class _Clause:
    """One clause's words, grouped into noun phrases, read claim by claim."""

    def __init__(self, words: list[Word], text: str, vocabulary: Vocabulary) -> None:
        self.text = text
        self.vocabulary = vocabulary
        self.hedged = any(word.kind is Kind.HEDGE for word in words)
        self.items = list(self._grouped(words))
        self.used: set[int] = set()
        """Noun phrases that take part in a claim beyond their bare existence."""
        self.heard: set[int] = set()
        """Places of the "not"s whose meaning is settled."""

    def claims(self) -> list[Claim]:
        """The clause's claims, in no particular order."""
        nouns = [(at, item) for at, item in enumerate(self.items) if isinstance(item, _Noun)]
        spread: list[tuple[int, _Noun]] = []
        for at, noun in nouns:
            # "no circles and squares" denies both.
            before = spread[-1] if spread else None
            if before and before[1].denied and noun.opening is None and self._only(before[0], at, Kind.AND):
                noun = replace(noun, opening=before[1].opening)
            spread.append((at, noun))
        predicates = [claim for at, noun in spread for claim in self._predicates(at, noun)]
        return [*predicates, *(claim for at, noun in spread for claim in self._presence(at, noun))]

    # -- noun phrases --------------------------------------------------------------------------------------------

    def _grouped(self, words: list[Word]) -> Iterator[_Item]:
        i = 0
        while i < len(words):
            noun, length = self._noun_at(words[i:])
            yield noun or words[i]
            i += length if noun else 1

    def _noun_at(self, words: list[Word]) -> tuple[_Noun | None, int]:
        if words[0].kind is Kind.NOTHING and self.vocabulary.general:
            noun = _Noun(
                subject=self.vocabulary.general[0],
                start=words[0].start,
                end=words[0].end,
                many=False,
                opening=Kind.NOTHING,
            )
            return noun, 1
        i = 0
        while i < len(words) and words[i].kind in _OPENINGS:
            i += 1
        opened = words[:i]
        while opened and i < len(words) and i - len(opened) < _MAX_FOREIGN and _is_adjective(words[i]):
            i += 1
        vague = i > len(opened)
        attributes = []
        while i < len(words) and words[i].kind is Kind.ATTRIBUTE:
            attributes.append(words[i].value)
            i += 1
            if i + 1 < len(words) and words[i].kind is Kind.AND and words[i + 1].kind is Kind.ATTRIBUTE:
                i += 1
        if i == len(words) or words[i].kind not in (Kind.NOUN, Kind.NOUNS):
            return None, 1
        kinds = [word.kind for word in opened]
        numbers = [word.value for word in opened if word.kind is Kind.NUMBER]
        noun = _Noun(
            subject=" ".join([*attributes, words[i].value]),
            start=words[0].start,
            end=words[i].end,
            many=words[i].kind is Kind.NOUNS,
            opening=next((k for k in (Kind.NONE, Kind.NUMBER, Kind.A, Kind.THE) if k in kinds), None),
            number=numbers[0] if numbers else "",
            vague=vague,
        )
        return noun, i + 1

    # -- what is said of them ------------------------------------------------------------------------------------

    def _predicates(self, at: int, noun: _Noun) -> Iterator[Claim]:
        """ "... is red", "... (is) at the top left", "... (is) left of the square"."""
        i = at + 1
        is_seen = False
        nots: set[int] = set()
        while (word := self._word(i)) and word.kind in (Kind.IS, Kind.NOT, Kind.FILLER, Kind.HEDGE):
            is_seen = is_seen or word.kind is Kind.IS
            if word.kind is Kind.NOT:
                nots.add(i)
            i += 1
        negated = noun.denied != bool(nots)
        if word is None or word.kind not in (Kind.ATTRIBUTE, Kind.RELATION, Kind.PLACE):
            if place := self._place_before(at):
                self.used.add(at)
                yield self._claim(ClaimKind.SPATIAL, noun, place.start, noun.end, place.value, negated=noun.denied)
            return
        self.heard |= nots
        if word.kind is Kind.PLACE:
            self.used.add(at)
            yield self._claim(ClaimKind.SPATIAL, noun, noun.start, word.end, word.value, negated=negated)
        elif word.kind is Kind.RELATION:
            other = self.items[i + 1] if i + 1 < len(self.items) else None
            if isinstance(other, _Noun) and not other.denied:
                self.used |= {at, i + 1}
                yield self._claim(
                    ClaimKind.SPATIAL, noun, noun.start, other.end, word.value, other=other.subject, negated=negated
                )
        elif is_seen:
            while word and word.kind in (Kind.ATTRIBUTE, Kind.AND):
                if word.kind is Kind.ATTRIBUTE:
                    self.used.add(at)
                    yield self._claim(ClaimKind.ATTRIBUTE, noun, noun.start, word.end, word.value, negated=negated)
                i += 1
                word = self._word(i)

    def _presence(self, at: int, noun: _Noun) -> Iterator[Claim]:
        """ "a circle", "two circles", "no circle", and "the circle" where nothing else is said of it."""
        refused, unclear = self._refused(at)
        # "Nothing" by itself is as often a figure of speech; "nothing at the centre" is a predicate's.
        if refused is None or noun.opening is Kind.NOTHING:
            return
        denied = noun.denied != refused
        if noun.opening is Kind.NUMBER and not (noun.number == "1" and at in self.used):
            yield self._claim(
                ClaimKind.COUNT,
                noun,
                value=noun.number,
                negated=denied,
                hedged=unclear or noun.vague or at in self.used,
            )
        elif at in self.used and (noun.denied or noun.opening is Kind.THE):
            return
        elif noun.opening is Kind.NONE and noun.many and denied:
            yield self._claim(ClaimKind.COUNT, noun, value="0", hedged=unclear or noun.vague)
        else:
            yield self._claim(ClaimKind.EXISTENCE, noun, negated=denied, hedged=unclear or (noun.vague and denied))

    def _refused(self, at: int) -> tuple[bool | None, bool]:
        """Whether a "not" before the phrase denies it (None: denies what it is), and whether one is unclear."""
        i = at - 1
        while (word := self._word(i)) and (word.kind is Kind.IS or sees(word)):
            i -= 1
        if word and word.kind is Kind.NOT:
            subject = i > 0 and any(isinstance(item, _Noun) for item in self.items[:i])
            is_between = any(w.kind is Kind.IS for w in self.items[max(i - 1, 0) : at] if isinstance(w, Word))
            # "The circle is not a star" denies what it is, not that there is a star.
            return (None, True) if subject and is_between else (True, False)
        return False, any(
            isinstance(w, Word) and w.kind is Kind.NOT and j not in self.heard for j, w in enumerate(self.items[:at])
        )

    def _place_before(self, at: int) -> Word | None:
        """ "At the top left there is ...": the place, if nothing else lies between."""
        i = at - 1
        while (word := self._word(i)) and word.kind in (Kind.IS, Kind.FILLER, Kind.AND):
            i -= 1
        return word if word and word.kind is Kind.PLACE and not isinstance(self._item(i - 1), _Noun) else None

    # -- small things --------------------------------------------------------------------------------------------

    def _item(self, i: int) -> _Item | None:
        return self.items[i] if 0 <= i < len(self.items) else None

    def _word(self, i: int) -> Word | None:
        item = self._item(i)
        return item if isinstance(item, Word) else None

    def _only(self, start: int, end: int, kind: Kind) -> bool:
        between = self.items[start + 1 : end]
        return bool(between) and all(isinstance(item, Word) and item.kind is kind for item in between)

    def _claim(
        self,
        kind: ClaimKind,
        noun: _Noun,
        start: int = -1,
        end: int = -1,
        value: str = "",
        *,
        other: str = "",
        negated: bool = False,
        hedged: bool = False,
    ) -> Claim:
        start, end = (noun.start, noun.end) if start < 0 else (start, end)
        many = kind is not ClaimKind.COUNT and noun.opening is Kind.NUMBER and noun.number != "1"
        return Claim(
            kind=kind,
            subject=noun.subject,
            text=self.text[start:end],
            start=start,
            end=end,
            value=value,
            other=other,
            negated=negated,
            hedged=hedged or self.hedged or many,
        )


def _is_adjective(word: Word) -> bool:
    return word.kind is Kind.OTHER and word.value != "of" and word.value[:1].isalpha()
