"""Minimal edits: copies of a text with one fact changed and the wording kept.

An edit that makes a true statement false gives a negative; one that makes a false statement true gives a repair. The
experts' evidence decides which of them an edit is (see `pair_builders`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from vlgenrm_ray.curation.evidence import cached_claims
from vlgenrm_ray.experts.claims import ClaimKey, claim_key, lexicon_of
from vlgenrm_ray.experts.lexicon import OPPOSITE_RELATIONS, Word, WordKind
from vlgenrm_ray.experts.vocabulary import Vocabulary, with_article
from vlgenrm_ray.records import Claim, ClaimKind


class Fact(StrEnum):
    """The fact that an edit changes."""

    ATTRIBUTE = "attribute"
    NUMBER = "number"
    RELATION = "relation"
    PLACE = "place"
    PRESENCE = "presence"
    OBJECT = "object"


CLAIM_KINDS = {
    Fact.ATTRIBUTE: ClaimKind.ATTRIBUTE,
    Fact.NUMBER: ClaimKind.COUNT,
    Fact.RELATION: ClaimKind.SPATIAL,
    Fact.PLACE: ClaimKind.SPATIAL,
    Fact.PRESENCE: ClaimKind.EXISTENCE,
    Fact.OBJECT: ClaimKind.EXISTENCE,
}
"""Fact -> the kind of claim that states it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """An edited text."""

    text: str
    start: int
    end: int
    """Span [start, end) of the new words in `text`, in characters."""
    fact: Fact
    new: str
    """New value of the fact: a canonical word, a number as digits, "yes" or "no"."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Overlapping claims of a text: "a red circle" and "a red circle at the top left" are one statement."""

    claims: tuple[Claim, ...]

    @property
    def start(self) -> int:
        return min(c.start for c in self.claims)

    @property
    def end(self) -> int:
        return max(c.end for c in self.claims)

    @property
    def meaning(self) -> frozenset[ClaimKey]:
        """Meaning of the claims, independent of their wording."""
        return frozenset(map(claim_key, self.claims))


@lru_cache(maxsize=8192)
def split_statements(text: str, vocabulary: Vocabulary, question: str = "") -> tuple[Statement, ...]:
    """Return the statements of an answer to a question, in its order. Cached."""
    groups: list[list[Claim]] = []
    for claim in cached_claims(text, vocabulary, question):
        if groups and claim.start < max(c.end for c in groups[-1]):
            groups[-1].append(claim)
        else:
            groups.append([claim])
    return tuple(Statement(tuple(group)) for group in groups)


def propose_edits(text: str, index: int, vocabulary: Vocabulary, question: str = "") -> Iterator[Edit]:
    """Yield every text that changes one fact of statement `index`. Filter them with `changes_one_statement`."""
    statement = split_statements(text, vocabulary, question)[index]
    if any(c.hedged for c in statement.claims):
        return
    words = lexicon_of(vocabulary).read(text)
    words = [w for w in words if statement.start <= w.start and w.end <= statement.end]
    yield from _edit_words(text, words, vocabulary)
    if [c.kind for c in statement.claims] == [ClaimKind.COUNT]:
        yield from _edit_number(text, statement.claims[0], words, vocabulary)
    if [c.kind for c in statement.claims] == [ClaimKind.EXISTENCE]:
        yield from _edit_presence(text, statement, words)


def changes_one_statement(text: str, index: int, edit: Edit, vocabulary: Vocabulary, question: str = "") -> bool:
    """Return True if the edit changes the meaning of statement `index` only, and the new statement is not hedged."""
    before, after = (split_statements(t, vocabulary, question) for t in (text, edit.text))
    if len(before) != len(after) or any(c.hedged for c in after[index].claims):
        return False
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a.meaning != b.meaning] == [index]


def remove_sentence(text: str, statement: Statement) -> str:
    """Return the text without the sentence that contains a statement."""
    start = max(text.rfind(mark, 0, statement.start) for mark in ".!?\n") + 1
    ends = [end for mark in ".!?\n" if (end := text.find(mark, statement.end)) >= 0]
    end = min(ends, default=len(text) - 1) + 1
    return f"{text[:start].rstrip()} {text[end:].lstrip()}".strip()


_BEFORE_ITEM = re.compile(r"(?:,? and|,|;|,? but| with| along with| as well as| next to| beside| near)\s+$")
_AFTER_ITEM = re.compile(r"\s*(?:,? and|,|;)\s+")
_NUMBER_OF_VERB = re.compile(r"\b(there) are (?=(?:a|an|one) )(?![^.!?\n]*(?:,| and ))", re.IGNORECASE)
_COMMA_BEFORE_AND = re.compile(r"(?<![\w,][,;])(^|[.!?\n] ?)([^.!?\n,]*), and ([^.!?\n,]*)(?=[.!?\n]|$)")


_SINGULAR_VERBS = {"are": "is", "have": "has"} | {
    verb: f"{verb}s" for verb in ("sit", "stand", "lie", "rest", "walk", "play", "run", "eat", "hold", "wear", "ride")
}
_PLURAL_VERB = re.compile(
    rf"((?:^|[.!?\n] ?)(?:a|an|one) (?:(?!and\b)\w+ ){{1,3}}?)({'|'.join(_SINGULAR_VERBS)})\b", re.IGNORECASE
)


def remove_phrase(text: str, statement: Statement) -> Iterator[str]:
    """Yield the text without a statement's own words, if it is an item of a list or follows "and", "with" or the like.

    "A dog, a cat and a bus." without the cat is "A dog and a bus.". What is left has to be checked: removed words may
    have carried others.
    """
    start, end = statement.start, statement.end
    if before := _BEFORE_ITEM.search(text, 0, start):
        # "A, B and C" without C is "A and B".
        rest = text[: before.start()]
        is_last = text[before.start() : start].strip(" ,") == "and"
        comma = rest.rfind(",")
        if is_last and comma > max(rest.rfind(mark) for mark in ".!?\n"):
            rest = f"{rest[:comma]} and{rest[comma + 1 :]}"
        yield _agree(rest + text[end:])
    if after := _AFTER_ITEM.match(text, end):
        rest = text[after.end() :]
        is_at_start = not text[:start].strip() or text[:start].rstrip()[-1:] in (".", "!", "?")
        yield _agree(text[:start] + (rest[:1].upper() + rest[1:] if is_at_start else rest))


def _agree(text: str) -> str:
    """Make verb and commas agree with what is left of a list."""
    text = _COMMA_BEFORE_AND.sub(r"\1\2 and \3", text)
    text = _NUMBER_OF_VERB.sub(r"\1 is ", text)
    return _PLURAL_VERB.sub(lambda match: f"{match[1]}{_SINGULAR_VERBS[match[2]]}", text)


def _edit_words(text: str, words: Sequence[Word], vocabulary: Vocabulary) -> Iterator[Edit]:
    """Yield the edits that replace one word: an attribute, a noun, a place or a relation."""
    for i, word in enumerate(words):
        old = text[word.start : word.end]
        if word.kind is WordKind.ATTRIBUTE:
            for new in vocabulary.attributes[vocabulary.family(word.value)]:
                if new != word.value:
                    yield _replace_word(text, words, i, new, Fact.ATTRIBUTE, new)
        elif word.kind in (WordKind.NOUN, WordKind.NOUNS) and word.value in vocabulary.nouns:
            for new in vocabulary.nouns:
                if new != word.value:
                    name = vocabulary.plural(new) if word.kind is WordKind.NOUNS else new
                    yield _replace_word(text, words, i, name, Fact.OBJECT, new)
        elif word.kind is WordKind.PLACE:
            for new in vocabulary.places:
                if new != word.value:
                    yield _replace_span(text, word.start, word.end, f"{_preposition(old)}{new}", Fact.PLACE, new)
        elif word.kind is WordKind.RELATION and word.value in OPPOSITE_RELATIONS:
            new = OPPOSITE_RELATIONS[word.value]
            yield _replace_span(text, word.start, word.end, _opposite_wording(old, word.value), Fact.RELATION, new)


def _replace_span(text: str, start: int, end: int, words: str, fact: Fact, new: str) -> Edit:
    if text[start : start + 1].isupper():
        words = words[:1].upper() + words[1:]
    return Edit(text=text[:start] + words + text[end:], start=start, end=start + len(words), fact=fact, new=new)


def _replace_word(text: str, words: Sequence[Word], i: int, replacement: str, fact: Fact, new: str) -> Edit:
    """Replace one word. An indefinite article right before it is adapted."""
    word = words[i]
    before = words[i - 1] if i else None
    if before is None or before.value not in ("a", "an"):
        return _replace_span(text, word.start, word.end, replacement, fact, new)
    return _replace_span(text, before.start, word.end, with_article(replacement), fact, new)


def _preposition(place: str) -> str:
    match = re.match(r"(?:at|in|on|to)(?: the)? ", place, re.IGNORECASE)
    return match[0] if match else ""


def _opposite_wording(wording: str, relation: str) -> str:
    """Return "to the right of" for "to the left of"; a wording without the relation's word gives the plain opposite."""
    old, new = relation.split()[0], OPPOSITE_RELATIONS[relation].split()[0]
    pattern = rf"\b{old}\b"
    return re.sub(pattern, new, wording) if re.search(pattern, wording) else OPPOSITE_RELATIONS[relation]


# -- numbers ---------------------------------------------------------------------------------------------------------

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_ALWAYS_PROPOSED = 6
"""Numbers below this one are proposed as replacements of any number."""
_PLURAL_VERBS = {"is": "are", "are": "are", "was": "were", "were": "were"}
"""Verb -> its plural."""


def _edit_number(text: str, claim: Claim, words: Sequence[Word], vocabulary: Vocabulary) -> Iterator[Edit]:
    """Yield "There are two circles", "There are no circles" for "There is one circle"; verb and noun agree."""
    number = next((w for w in words if w.kind in (WordKind.NUMBER, WordKind.NONE)), None)
    noun = next((w for w in words if w.kind in (WordKind.NOUN, WordKind.NOUNS)), None)
    if number is None or noun is None or noun.start < number.end:
        return
    count = int(claim.value)
    is_digit = text[number.start : number.end].isdigit()
    # The verb precedes the claim's own words: "There *are* two circles".
    verb = re.search(r"\b(is|are|was|were) $", text[: number.start], re.IGNORECASE)
    for new in range(max(count + 2, _ALWAYS_PROPOSED)):
        if new == count or new >= len(_NUMBERS) or claim.negated:
            continue
        name = str(new) if is_digit else _NUMBERS[new]
        noun_form = noun.value if new == 1 else vocabulary.plural(noun.value)
        wording = f"{name}{text[number.end : noun.start]}{noun_form}"
        start = number.start
        if verb is not None:
            plural_verb = _PLURAL_VERBS[verb[1].lower()]
            singular_verb = "is" if plural_verb == "are" else "was"
            wording = f"{singular_verb if new == 1 else plural_verb} {wording}"
            start = verb.start(1)
        yield _replace_span(text, start, noun.end, wording, Fact.NUMBER, str(new))


# -- presence --------------------------------------------------------------------------------------------------------

_LEADING_YES_NO = re.compile(r"(?:^|(?<=[.!?\n] ))(yes|no)(,[^.!?\n]*)$", re.IGNORECASE)


def _edit_presence(text: str, statement: Statement, words: Sequence[Word]) -> Iterator[Edit]:
    """Yield "No, there is no red circle" for "Yes, there is a red circle", and the reverse."""
    article = words[0] if words else None
    if article is None or article.value not in ("a", "an", "no") or words[-1].kind is not WordKind.NOUN:
        return
    phrase = text[article.end : statement.end].strip()
    wording = with_article(phrase) if article.value == "no" else f"no {phrase}"
    start = article.start
    # A leading "Yes," or "No," is reversed as well.
    if answer := _LEADING_YES_NO.search(text[:start]):
        wording = f"{'no' if answer[1].lower() == 'yes' else 'yes'}{answer[2]}{wording}"
        start = answer.start(1)
    yield _replace_span(text, start, statement.end, wording, Fact.PRESENCE, "yes" if article.value == "no" else "no")
