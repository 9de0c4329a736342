"""Claim extraction: the checkable statements of a text, by a closed vocabulary and a small grammar.

    text -> words (`lexicon`) -> sentences (`sentences`) -> phrases (`phrases`) -> claims

The grammar reads plain statements of existence, number, attribute, place and relation, affirmed or negated, and skips
everything else. The claims of a sentence are marked `hedged`, so that their verdict is always unknown, unless `grammar`
understands every word of it: what the grammar cannot place is never affirmed. Across sentences this is no certainty: a
text that takes itself back is hedged only if it does so in listed words ("Just kidding.", `has_disclaimer`) or without
naming an object ("No, there is not.", `takes_back`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from vlgenrm_ray.experts.grammar import (
    Stance,
    is_fragment,
    is_plain_question,
    is_plain_statement,
    is_remark,
    question_stance,
    takes_back,
)
from vlgenrm_ray.experts.lexicon import Lexicon, Word, WordKind, english
from vlgenrm_ray.experts.phrases import ContextPhrase, Item, NounPhrase, group_phrases
from vlgenrm_ray.experts.sentences import Scope, has_disclaimer, split_sentences
from vlgenrm_ray.experts.text_claims import read_text_claim
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.settings import digest


class ClaimExtractor(Protocol):
    """Extracts claims from texts: the grammar of this module, or a language model."""

    def extract(self, text: str, question: str = "") -> tuple[Claim, ...]:
        """Return the claims of a text, in its order and in canonical words.

        Args:
            text: A response, or any other text about an image.
            question: The question that it answers; "" if it stands by itself. "A dog." claims nothing about a dog
                if the question is what is missing.

        Returns:
            The claims. For each, `claim.text == text[claim.start:claim.end]`.
        """
        ...


@dataclass(frozen=True, slots=True)
class VocabularyExtractor:
    """A `ClaimExtractor` that reads claims with the grammar of this module and a closed vocabulary."""

    vocabulary: Vocabulary

    def extract(self, text: str, question: str = "") -> tuple[Claim, ...]:
        """See `ClaimExtractor`."""
        return extract_claims(text, self.vocabulary, question)


GRAMMAR_VERSION = 5
"""Version of the grammar, raised whenever the reading of any text changes: stages that stored claims run again."""


def grammar_fingerprint() -> str:
    """Return a hash that changes with the grammar and its English words, for the fingerprints of stages."""
    return digest([GRAMMAR_VERSION, english()])


ClaimKey = tuple[ClaimKind, str, str, str, bool, bool]
"""Kind, subject, value, other, negated, hedged: equal for claims that state the same."""


def claim_key(claim: Claim) -> ClaimKey:
    """Return the meaning of a claim, independent of its wording and its place in the text."""
    return (claim.kind, claim.subject, claim.value, claim.other, claim.negated, claim.hedged)


def extract_claims(text: str, vocabulary: Vocabulary, question: str = "") -> tuple[Claim, ...]:
    """Extract the claims of a text with the grammar. See `ClaimExtractor`."""
    claims: list[Claim] = []
    scope = Scope()
    stance = question_stance(question)
    is_disclaimed = has_disclaimer(text) or stance is Stance.FALSEHOOD
    is_after_question = False
    for sentence in split_sentences(text, lexicon_of(vocabulary).read(text)):
        items = group_phrases(sentence.words, vocabulary)
        # "No." after a question is its answer; elsewhere it takes back what was said.
        if (takes_back(items) and not is_after_question) or (is_remark(items) and not sentence.is_uncertain):
            claims = [replace(claim, hedged=True) for claim in claims]
        is_after_question = sentence.is_question
        if sentence.is_question:
            scope.enter(sentence, is_plain=is_plain_question(items))
            continue
        quoted = (
            read_text_claim(text, sentence.words[0].start, sentence.words[-1].end) if sentence.is_uncertain else None
        )
        is_plain = not sentence.is_uncertain and is_plain_statement(items)
        is_hedged = (
            scope.enter(sentence, is_plain=is_plain or (quoted is not None and not quoted.hedged)) or is_disclaimed
        )
        if quoted is not None:
            claims.append(replace(quoted, hedged=quoted.hedged or is_hedged))
            is_hedged = True
        # "A dog." as the answer to "What is missing?".
        is_hedged = is_hedged or (stance is Stance.ABSENCE and is_fragment(items))
        of_clauses = [_Clause(clause, text, is_hedged=is_hedged).claims() for clause in _split_at_breaks(items)]
        claims += _hedge_partial_counts([claim for of_clause in of_clauses for claim in of_clause])
    return tuple(sorted(claims, key=lambda c: (c.start, c.end)))


def _hedge_partial_counts(claims: Sequence[Claim]) -> Iterator[Claim]:
    """Hedge the numbers of a sentence that counts one kind of object several times: "two dogs and another dog"."""
    subjects = Counter(
        claim.subject
        for claim in claims
        if claim.kind is ClaimKind.COUNT or (claim.kind is ClaimKind.EXISTENCE and not claim.negated)
    )
    for claim in claims:
        is_partial = claim.kind is ClaimKind.COUNT and subjects[claim.subject] > 1
        yield replace(claim, hedged=True) if is_partial else claim


@lru_cache(maxsize=8)
def lexicon_of(vocabulary: Vocabulary) -> Lexicon:
    """Return the lexicon of a vocabulary. Cached."""
    return Lexicon(vocabulary)


_NOTS = (WordKind.NOT, WordKind.WITHOUT)
_BEFORE_PREDICATE = frozenset(
    (
        WordKind.IS,
        WordKind.WAS,
        WordKind.NOT,
        WordKind.HEDGE,
        WordKind.THERE,
        WordKind.PRESENT,
        WordKind.HAVE,
        WordKind.DISPLAY,
        WordKind.SEE,
        WordKind.POSTURE,
        WordKind.ADVERB,
    )
)
"""Words that may stand between an object and its attribute, place or relation."""
_BEFORE_OBJECT = frozenset(
    (WordKind.IS, WordKind.THERE, WordKind.PRESENT, WordKind.HAVE, WordKind.DISPLAY, WordKind.SEE)
)
"""Words that may stand between a "not" and the object that it denies."""
_AFTER_PLACE = frozenset((_BEFORE_PREDICATE - {WordKind.HEDGE}) | {WordKind.AND})
_BEFORE_SUBORDINATE = (WordKind.RELATION, WordKind.PREPOSITION, WordKind.OF, WordKind.HAVE, WordKind.DISPLAY)
_DESCRIPTIONS = (WordKind.VERB, WordKind.POSTURE, WordKind.ADJECTIVE)


class _Clause:
    """One clause: its phrases and words, and the claims they make."""

    def __init__(self, items: Sequence[Item], text: str, *, is_hedged: bool) -> None:
        self.items = items
        self.text = text
        self.is_hedged = is_hedged
        self.nots = [i for i, item in enumerate(items) if isinstance(item, Word) and item.kind in _NOTS]
        self.first_noun = next((i for i, item in enumerate(items) if isinstance(item, NounPhrase)), len(items))
        self.used: set[int] = set()
        """Indices of noun phrases with a claim that goes beyond their existence."""
        self.resolved_nots: set[int] = set()
        """Indices of the "not"s that have been attributed to a claim."""

    def claims(self) -> list[Claim]:
        """Return the clause's claims, in no particular order."""
        nouns = [(i, noun) for i, noun in enumerate(self.items) if isinstance(noun, NounPhrase)]
        # All predicates first: they determine which noun phrases are used.
        predicates = [claim for i, noun in nouns for claim in self._predicate_claims(i, noun)]
        return [*predicates, *(claim for i, noun in nouns for claim in self._presence_claims(i, noun))]

    def _predicate_claims(self, at: int, noun: NounPhrase) -> Iterator[Claim]:
        """Yield attribute, place and relation: "... is red", "... (is) at the top left", "... (is) left of the ..."."""
        i = at + 1
        has_verb = False
        nots: set[int] = set()
        while (word := self._word(i)) and word.kind in _BEFORE_PREDICATE:
            has_verb = has_verb or word.kind in (WordKind.IS, WordKind.WAS)
            if word.kind is WordKind.NOT:
                nots.add(i)
            i += 1
        is_denied = noun.is_denied != (self._find_refusal(at)[0] is True)
        negated = is_denied != bool(nots)
        # In "the circle above the square is red" the circle is red.
        hedged = has_verb and self._is_object(at)
        if word is None or word.kind not in (WordKind.ATTRIBUTE, WordKind.RELATION, WordKind.PLACE):
            if place := self._place_before(at):
                self.used.add(at)
                yield self._claim(ClaimKind.SPATIAL, noun, place.start, noun.end, place.value, negated=is_denied)
            return
        self.resolved_nots |= nots
        if word.kind is WordKind.PLACE:
            self.used.add(at)
            yield self._claim(ClaimKind.SPATIAL, noun, noun.start, word.end, word.value, negated=negated, hedged=hedged)
        elif word.kind is WordKind.RELATION:
            other = self.items[i + 1] if i + 1 < len(self.items) else None
            if isinstance(other, NounPhrase) and not other.is_denied:
                self.used |= {at, i + 1}
                yield self._claim(
                    ClaimKind.SPATIAL,
                    noun,
                    noun.start,
                    other.end,
                    word.value,
                    other=other.subject,
                    negated=negated,
                    hedged=hedged,
                )
        elif has_verb:
            is_joined = _is_kind(self._item(i + 1), WordKind.AND) and _is_kind(self._item(i + 2), WordKind.ATTRIBUTE)
            # "The circle is red and blue": neither word alone is the answer to its colour, nor excludes the other.
            hedged = hedged or is_joined
            while word and word.kind in (WordKind.ATTRIBUTE, WordKind.AND):
                if word.kind is WordKind.ATTRIBUTE:
                    self.used.add(at)
                    yield self._claim(
                        ClaimKind.ATTRIBUTE, noun, noun.start, word.end, word.value, negated=negated, hedged=hedged
                    )
                i += 1
                word = self._word(i)

    def _presence_claims(self, at: int, noun: NounPhrase) -> Iterator[Claim]:
        """Yield existence or count: "a circle", "two circles", "no circle", and "the circle" without a predicate."""
        is_refused, unclear = self._find_refusal(at)
        # "Nothing" by itself is often a figure of speech; "nothing at the centre" is handled as a predicate.
        if is_refused is None or noun.determiner is WordKind.NOTHING:
            return
        negated = noun.is_denied != is_refused
        is_definite = noun.determiner in (WordKind.THE, WordKind.EVERY)
        if (predicate := self._not_after(at)) is not None:
            says_absent = _is_kind(predicate, WordKind.PRESENT) or _is_kind(predicate, WordKind.WHOLE)
            negated = negated != says_absent
            # "A circle is not red" states of no circle that it exists.
            unclear = unclear or not (says_absent or is_definite)
        if noun.determiner is WordKind.NUMBER and not (noun.number == "1" and self._is_described(at)):
            yield self._claim(
                ClaimKind.COUNT,
                noun,
                value=noun.number,
                negated=negated,
                hedged=unclear or noun.vague or at in self.used or self._is_restricted(at),
            )
        elif at in self.used and (negated or is_definite):
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
        while (word := self._word(i)) and word.kind in _BEFORE_OBJECT:
            i -= 1
        if word and word.kind in _NOTS:
            has_subject = self.first_noun < i
            has_verb = any(_is_kind(item, WordKind.IS) for item in self.items[max(i - 1, 0) : at])
            # "The circle is not a star" negates an identity, not the existence of a star.
            return (None, True) if has_subject and has_verb else (True, False)
        return False, any(i < at and i not in self.resolved_nots for i in self.nots)

    def _not_after(self, at: int) -> Item | None:
        """Return what follows the "not" in "a circle is not visible". None if no "not" follows the phrase's verb."""
        i = at + 1
        while _is_kind(self._item(i), WordKind.IS) or _is_kind(self._item(i), WordKind.ADVERB):
            i += 1
        return self._item(i + 1) if _is_kind(self._item(i), WordKind.NOT) else None

    def _place_before(self, at: int) -> Word | None:
        """Return the place in "At the top left there is ...", if nothing that matters lies between."""
        i = at - 1
        while (word := self._word(i)) and word.kind in _AFTER_PLACE:
            i -= 1
        return word if word and word.kind is WordKind.PLACE and not isinstance(self._item(i - 1), NounPhrase) else None

    def _is_object(self, at: int) -> bool:
        """Check whether the phrase belongs to another one: "above the circle", "with a circle"."""
        return any(_is_kind(self._item(at - 1), kind) for kind in _BEFORE_SUBORDINATE)

    def _is_described(self, at: int) -> bool:
        """Check whether the phrase has a predicate: "one man is standing" does not say how many men there are."""
        following = self._item(at + 1)
        if _is_kind(following, WordKind.IS):
            following = self._item(at + 2)
        is_described = isinstance(following, Word) and following.kind in _DESCRIPTIONS
        return at in self.used or is_described or self._is_restricted(at)

    def _is_restricted(self, at: int) -> bool:
        """Check whether the phrase's number counts only some objects: "two men in suits", "between two cars"."""
        before = self._item(at - 1)
        owner = self._item(at - 2)
        is_owned = isinstance(owner, NounPhrase) or (isinstance(owner, ContextPhrase) and owner.kind is WordKind.THING)
        # "The image has two dogs" counts all of them, "the man has two dogs" only his.
        is_shown = _is_kind(before, WordKind.DISPLAY) or (_is_kind(before, WordKind.HAVE) and not is_owned)
        is_counted_apart = self._is_object(at) and not is_shown
        context = self._item(at + 2)
        has_things = isinstance(context, ContextPhrase) and context.kind is WordKind.THING
        return is_counted_apart or (has_things and _is_kind(self._item(at + 1), WordKind.PREPOSITION))

    # -- access --------------------------------------------------------------------------------------------------

    def _item(self, i: int) -> Item | None:
        return self.items[i] if 0 <= i < len(self.items) else None

    def _word(self, i: int) -> Word | None:
        item = self._item(i)
        return item if isinstance(item, Word) else None

    def _claim(
        self,
        kind: ClaimKind,
        noun: NounPhrase,
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
            hedged=hedged or self.is_hedged or is_of_several,
        )


def _is_kind(item: Item | None, kind: WordKind) -> bool:
    return isinstance(item, Word) and item.kind is kind


def _split_at_breaks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Split the items of a sentence into clauses."""
    clause: list[Item] = []
    for item in items:
        if isinstance(item, Word) and item.kind in (WordKind.BREAK, WordKind.RELATIVE):
            yield clause
            clause = []
        else:
            clause.append(item)
    yield clause
