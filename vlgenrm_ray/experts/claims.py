"""Claim extraction: the checkable statements of a text, by a closed vocabulary and a small grammar.

The grammar reads plain statements of existence, number, attribute, place and relation, affirmed or negated, and skips
everything else. A claim that is hedged, or negated in a way the grammar cannot attribute, is marked `hedged`: its
verdict is always unknown.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from vlgenrm_ray.experts.lexicon import Lexicon, Word, WordKind, split_clauses, states_presence
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Claim, ClaimKind


class ClaimExtractor(Protocol):
    """Extracts claims from texts: the grammar of this module, or a language model."""

    def extract(self, text: str) -> tuple[Claim, ...]:
        """Return the claims of a text, in its order and in canonical words.

        For every claim, `claim.text == text[claim.start:claim.end]`.
        """
        ...


@dataclass(frozen=True, slots=True)
class VocabularyExtractor:
    """A `ClaimExtractor` that reads claims with the grammar of this module and a closed vocabulary."""

    vocabulary: Vocabulary

    def extract(self, text: str) -> tuple[Claim, ...]:
        """See `ClaimExtractor`."""
        return extract_claims(text, self.vocabulary)


ClaimKey = tuple[ClaimKind, str, str, str, bool, bool]
"""Kind, subject, value, other, negated, hedged: equal for claims that state the same."""


def claim_key(claim: Claim) -> ClaimKey:
    """Return the meaning of a claim, independent of its wording and its place in the text."""
    return (claim.kind, claim.subject, claim.value, claim.other, claim.negated, claim.hedged)


def extract_claims(text: str, vocabulary: Vocabulary) -> tuple[Claim, ...]:
    """Extract the claims of a text with the grammar. See `ClaimExtractor`."""
    claims: list[Claim] = []
    for clause in split_clauses(lexicon_of(vocabulary).read(text)):
        claims += _Clause(clause, text, vocabulary).claims()
    return tuple(sorted(claims, key=lambda c: (c.start, c.end)))


@lru_cache(maxsize=8)
def lexicon_of(vocabulary: Vocabulary) -> Lexicon:
    """Return the lexicon of a vocabulary. Cached."""
    return Lexicon(vocabulary)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NounPhrase:
    """A noun phrase: "two red circles" has subject `red circle`, is plural and has number 2."""

    subject: str
    start: int
    end: int
    is_plural: bool
    determiner: WordKind | None
    """A, THE, NUMBER, NONE, NOTHING, or None if the phrase has none."""
    number: str = ""
    vague: bool = False
    """True if it contains unknown adjectives, so that its count or negation does not hold for its subject."""

    @property
    def is_negated(self) -> bool:
        return self.determiner in (WordKind.NONE, WordKind.NOTHING)


_Item = _NounPhrase | Word
_DETERMINERS = (WordKind.A, WordKind.THE, WordKind.NUMBER, WordKind.NONE)
_MAX_UNKNOWN_ADJECTIVES = 2


class _Clause:
    """One clause: its words, grouped into noun phrases, and the claims they make."""

    def __init__(self, words: list[Word], text: str, vocabulary: Vocabulary) -> None:
        self.text = text
        self.vocabulary = vocabulary
        self.hedged = any(word.kind is WordKind.HEDGE for word in words)
        self.items = list(self._group(words))
        self.used: set[int] = set()
        """Indices of noun phrases with a claim that goes beyond their existence."""
        self.resolved_nots: set[int] = set()
        """Indices of the "not"s that have been attributed to a claim."""

    def claims(self) -> list[Claim]:
        """Return the clause's claims, in no particular order."""
        nouns: list[tuple[int, _NounPhrase]] = []
        for i, noun in enumerate(self.items):
            if not isinstance(noun, _NounPhrase):
                continue
            # "no circles and squares" negates both.
            before = nouns[-1] if nouns else None
            if before and before[1].is_negated and noun.determiner is None and self._only_ands(before[0], i):
                noun = replace(noun, determiner=before[1].determiner)
            nouns.append((i, noun))
        # All predicates first: they determine which noun phrases are used.
        predicates = [claim for i, noun in nouns for claim in self._predicate_claims(i, noun)]
        return [*predicates, *(claim for i, noun in nouns for claim in self._presence_claims(i, noun))]

    # -- noun phrases --------------------------------------------------------------------------------------------

    def _group(self, words: list[Word]) -> Iterator[_Item]:
        i = 0
        while i < len(words):
            noun, length = self._read_noun_phrase(words[i:])
            yield noun or words[i]
            i += length if noun else 1

    def _read_noun_phrase(self, words: list[Word]) -> tuple[_NounPhrase | None, int]:
        """Return the noun phrase that the words begin with, if any, and its length in words."""
        if words[0].kind is WordKind.NOTHING and self.vocabulary.general:
            noun = _NounPhrase(
                subject=self.vocabulary.general[0],
                start=words[0].start,
                end=words[0].end,
                is_plural=False,
                determiner=WordKind.NOTHING,
            )
            return noun, 1
        i = 0
        while i < len(words) and words[i].kind in _DETERMINERS:
            i += 1
        determiners = words[:i]
        most = len(determiners) + _MAX_UNKNOWN_ADJECTIVES
        while determiners and i < min(len(words), most) and _is_unknown_adjective(words[i]):
            i += 1
        vague = i > len(determiners)
        attributes = []
        while i < len(words) and words[i].kind is WordKind.ATTRIBUTE:
            attributes.append(words[i].value)
            i += 1
            if i + 1 < len(words) and words[i].kind is WordKind.AND and words[i + 1].kind is WordKind.ATTRIBUTE:
                i += 1
        if i == len(words) or words[i].kind not in (WordKind.NOUN, WordKind.NOUNS):
            return None, 1
        kinds = [word.kind for word in determiners]
        numbers = [word.value for word in determiners if word.kind is WordKind.NUMBER]
        precedence = (WordKind.NONE, WordKind.NUMBER, WordKind.A, WordKind.THE)
        noun = _NounPhrase(
            subject=" ".join([*attributes, words[i].value]),
            start=words[0].start,
            end=words[i].end,
            is_plural=words[i].kind is WordKind.NOUNS,
            determiner=next((kind for kind in precedence if kind in kinds), None),
            number=numbers[0] if numbers else "",
            vague=vague,
        )
        return noun, i + 1

    # -- claims --------------------------------------------------------------------------------------------------

    def _predicate_claims(self, at: int, noun: _NounPhrase) -> Iterator[Claim]:
        """Yield attribute, place and relation: "... is red", "... (is) at the top left", "... (is) left of the ..."."""
        i = at + 1
        has_verb = False
        nots: set[int] = set()
        while (word := self._word(i)) and word.kind in (WordKind.IS, WordKind.NOT, WordKind.FILLER, WordKind.HEDGE):
            has_verb = has_verb or word.kind is WordKind.IS
            if word.kind is WordKind.NOT:
                nots.add(i)
            i += 1
        negated = noun.is_negated != bool(nots)
        if word is None or word.kind not in (WordKind.ATTRIBUTE, WordKind.RELATION, WordKind.PLACE):
            if place := self._place_before(at):
                self.used.add(at)
                yield self._claim(ClaimKind.SPATIAL, noun, place.start, noun.end, place.value, negated=noun.is_negated)
            return
        self.resolved_nots |= nots
        if word.kind is WordKind.PLACE:
            self.used.add(at)
            yield self._claim(ClaimKind.SPATIAL, noun, noun.start, word.end, word.value, negated=negated)
        elif word.kind is WordKind.RELATION:
            other = self.items[i + 1] if i + 1 < len(self.items) else None
            if isinstance(other, _NounPhrase) and not other.is_negated:
                self.used |= {at, i + 1}
                yield self._claim(
                    ClaimKind.SPATIAL, noun, noun.start, other.end, word.value, other=other.subject, negated=negated
                )
        elif has_verb:
            while word and word.kind in (WordKind.ATTRIBUTE, WordKind.AND):
                if word.kind is WordKind.ATTRIBUTE:
                    self.used.add(at)
                    yield self._claim(ClaimKind.ATTRIBUTE, noun, noun.start, word.end, word.value, negated=negated)
                i += 1
                word = self._word(i)

    def _presence_claims(self, at: int, noun: _NounPhrase) -> Iterator[Claim]:
        """Yield existence or count: "a circle", "two circles", "no circle", and "the circle" without a predicate."""
        is_refused, unclear = self._find_refusal(at)
        # "Nothing" by itself is often a figure of speech; "nothing at the centre" is handled as a predicate.
        if is_refused is None or noun.determiner is WordKind.NOTHING:
            return
        negated = noun.is_negated != is_refused
        if noun.determiner is WordKind.NUMBER and not (noun.number == "1" and at in self.used):
            yield self._claim(
                ClaimKind.COUNT,
                noun,
                value=noun.number,
                negated=negated,
                hedged=unclear or noun.vague or at in self.used,
            )
        elif at in self.used and (noun.is_negated or noun.determiner is WordKind.THE):
            return
        elif noun.determiner is WordKind.NONE and noun.is_plural and negated:
            yield self._claim(ClaimKind.COUNT, noun, value="0", hedged=unclear or noun.vague)
        else:
            yield self._claim(ClaimKind.EXISTENCE, noun, negated=negated, hedged=unclear or (noun.vague and negated))

    def _find_refusal(self, at: int) -> tuple[bool | None, bool]:
        """Interpret a "not" before the phrase.

        Returns:
            True if a "not" negates the phrase, False if none does, None if it negates an identity ("is not a star");
            and if any "not" before the phrase is unclear.
        """
        i = at - 1
        while (word := self._word(i)) and (word.kind is WordKind.IS or states_presence(word)):
            i -= 1
        if word and word.kind is WordKind.NOT:
            has_subject = i > 0 and any(isinstance(item, _NounPhrase) for item in self.items[:i])
            has_verb = any(w.kind is WordKind.IS for w in self.items[max(i - 1, 0) : at] if isinstance(w, Word))
            # "The circle is not a star" negates an identity, not the existence of a star.
            return (None, True) if has_subject and has_verb else (True, False)
        nots = {i for i, w in enumerate(self.items[:at]) if isinstance(w, Word) and w.kind is WordKind.NOT}
        return False, bool(nots - self.resolved_nots)

    def _place_before(self, at: int) -> Word | None:
        """Return the place in "At the top left there is ...", if only fillers lie between."""
        i = at - 1
        while (word := self._word(i)) and word.kind in (WordKind.IS, WordKind.FILLER, WordKind.AND):
            i -= 1
        return word if word and word.kind is WordKind.PLACE and not isinstance(self._item(i - 1), _NounPhrase) else None

    # -- access --------------------------------------------------------------------------------------------------

    def _item(self, i: int) -> _Item | None:
        return self.items[i] if 0 <= i < len(self.items) else None

    def _word(self, i: int) -> Word | None:
        item = self._item(i)
        return item if isinstance(item, Word) else None

    def _only_ands(self, start: int, end: int) -> bool:
        between = self.items[start + 1 : end]
        return bool(between) and all(isinstance(item, Word) and item.kind is WordKind.AND for item in between)

    def _claim(
        self,
        kind: ClaimKind,
        noun: _NounPhrase,
        start: int = -1,
        end: int = -1,
        value: str = "",
        *,
        other: str = "",
        negated: bool = False,
        hedged: bool = False,
    ) -> Claim:
        start, end = (noun.start, noun.end) if start < 0 else (start, end)
        # A predicate of several objects ("two circles are red") is not a claim that the checks can decide.
        is_of_several = kind is not ClaimKind.COUNT and noun.determiner is WordKind.NUMBER and noun.number != "1"
        return Claim(
            kind=kind,
            subject=noun.subject,
            text=self.text[start:end],
            start=start,
            end=end,
            value=value,
            other=other,
            negated=negated,
            hedged=hedged or self.hedged or is_of_several,
        )


def _is_unknown_adjective(word: Word) -> bool:
    return word.kind is WordKind.OTHER and word.value != "of" and word.value[:1].isalpha()
