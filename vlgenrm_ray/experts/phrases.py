"""Noun phrases: groups the words of a clause into phrases about objects, phrases about anything else, and single words.

"two large red circles" is a `NounPhrase`: the vocabulary knows its noun. "a busy street" is a `ContextPhrase`: its noun
is harmless. A word in neither stays a `Word`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vlgenrm_ray.experts.lexicon import Word, WordKind
from vlgenrm_ray.experts.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class NounPhrase:
    """A phrase about objects: "two red circles" has subject `red circle`, is plural and has number 2."""

    subject: str
    start: int
    end: int
    is_plural: bool
    determiner: WordKind | None
    """A, SOME, ANY, EVERY, THE, NUMBER, NONE, NOTHING, or None if the phrase has none."""
    number: str = ""
    vague: bool = False
    """True if it has adjectives that are not in its subject, so that its count or negation does not hold for that."""
    is_plain: bool = True
    """False if some of its words, or their order, are unknown to the grammar."""

    @property
    def is_denied(self) -> bool:
        return self.determiner in (WordKind.NONE, WordKind.NOTHING)


@dataclass(frozen=True, slots=True)
class ContextPhrase:
    """A phrase about something that the vocabulary does not know, but that is harmless: "the busy street"."""

    kind: WordKind
    """IMAGE, SCENE or THING."""
    start: int
    end: int
    is_definite: bool
    """True for "the street", "this picture"."""
    is_plain: bool
    """False if its determiners are unknown to the grammar, for instance if they deny it."""


Item = NounPhrase | ContextPhrase | Word

_DETERMINERS = frozenset(
    (WordKind.A, WordKind.SOME, WordKind.ANY, WordKind.EVERY, WordKind.THE, WordKind.NUMBER, WordKind.NONE)
)
_PRECEDENCE = (
    WordKind.NONE,
    WordKind.NUMBER,
    WordKind.A,
    WordKind.SOME,
    WordKind.EVERY,
    WordKind.ANY,
    WordKind.THE,
)
"""The determiner of a phrase with several is the first of these."""
_PLAIN_DETERMINERS = frozenset(
    [
        (),
        *((kind,) for kind in _DETERMINERS),
        (WordKind.THE, WordKind.NUMBER),
        (WordKind.EVERY, WordKind.THE),
    ]
)
_OF_DETERMINERS = {"none of": WordKind.NONE, "neither of": WordKind.NONE, "one of": WordKind.SOME}
"""Determiners that stand before "the circles", not before "circles"."""
_CONTEXT_KINDS = frozenset((WordKind.IMAGE, WordKind.SCENE, WordKind.THING))
_MODIFIERS = frozenset((WordKind.ADJECTIVE, WordKind.SCENE, WordKind.THING))
_MODIFIERS_AFTER_DETERMINER = _MODIFIERS | {WordKind.VERB, WordKind.POSTURE}
_NOT_PLAIN_OF_CONTEXT = frozenset((WordKind.NONE, WordKind.ANY))
_NOUN_KINDS = frozenset((WordKind.NOUN, WordKind.NOUNS))
_MAX_UNKNOWN_ADJECTIVES = 2


def group_phrases(words: Sequence[Word], vocabulary: Vocabulary) -> list[Item]:
    """Return the words of a clause in their order, grouped into phrases where they form some."""
    items: list[Item] = []
    i = 0
    while i < len(words):
        phrase, length = _read_phrase(words[i:], vocabulary)
        items.append(phrase or words[i])
        i += length if phrase else 1
    return list(_spread_denial(items))


def _read_phrase(words: Sequence[Word], vocabulary: Vocabulary) -> tuple[NounPhrase | ContextPhrase | None, int]:
    """Return the phrase that the words begin with, if any, and its length in words."""
    if words[0].kind is WordKind.NOTHING and vocabulary.general:
        return _noun_phrase(vocabulary.general[0], words[:1], WordKind.NOTHING), 1
    num_determiners = _count(words, _DETERMINERS)
    determiners = words[:num_determiners]
    i = num_determiners
    while (
        determiners and i < min(len(words), num_determiners + _MAX_UNKNOWN_ADJECTIVES) and _may_be_adjective(words[i])
    ):
        i += 1
    modifiers = words[num_determiners:i] if determiners else words[: (i := _count(words, _MODIFIERS))]
    attributes: list[str] = []
    joined = False
    while i < len(words) and words[i].kind is WordKind.ATTRIBUTE:
        attributes.append(words[i].value)
        i += 1
        if i + 1 < len(words) and words[i].kind is WordKind.AND and words[i + 1].kind is WordKind.ATTRIBUTE:
            i += 1
            joined = True
    if i == len(words) or words[i].kind not in _NOUN_KINDS:
        return _read_context_phrase(words, num_determiners)
    is_plural = words[i].kind is WordKind.NOUNS
    return (
        _noun_phrase(
            " ".join([*attributes, words[i].value]),
            words[: i + 1],
            next((kind for kind in _PRECEDENCE if kind in [word.kind for word in determiners]), None),
            is_plural=is_plural,
            number=next((word.value for word in determiners if word.kind is WordKind.NUMBER), ""),
            vague=bool(modifiers),
            is_plain=_are_plain(determiners)
            and all(word.kind in _MODIFIERS_AFTER_DETERMINER for word in modifiers)
            # "Red and blue circles" may be of one colour each.
            and not (is_plural and joined),
        ),
        i + 1,
    )


def _noun_phrase(
    subject: str,
    words: Sequence[Word],
    determiner: WordKind | None,
    *,
    is_plural: bool = False,
    number: str = "",
    vague: bool = False,
    is_plain: bool = True,
) -> NounPhrase:
    return NounPhrase(
        subject=subject,
        start=words[0].start,
        end=words[-1].end,
        is_plural=is_plural,
        determiner=determiner,
        number=number,
        vague=vague,
        is_plain=is_plain,
    )


def _read_context_phrase(words: Sequence[Word], num_determiners: int) -> tuple[ContextPhrase | None, int]:
    first = words[num_determiners] if num_determiners < len(words) else None
    kinds = {*_MODIFIERS_AFTER_DETERMINER} if num_determiners else {*_MODIFIERS}
    end = i = num_determiners
    while i < len(words) and words[i].kind in {*kinds, WordKind.ATTRIBUTE, WordKind.IMAGE}:
        i += 1
        # A verb after the noun is no part of the phrase: "the street leading ...".
        if words[i - 1].kind in _CONTEXT_KINDS:
            end = i
            kinds = {*_CONTEXT_KINDS}
    if first is None or end == num_determiners:
        return None, 1
    determiners = words[:num_determiners]
    is_plain = _are_plain(determiners) and not any(word.kind in _NOT_PLAIN_OF_CONTEXT for word in determiners)
    if words[end - 1].kind is WordKind.IMAGE:
        # "Another image" is not this one.
        is_plain = is_plain and all(word.kind in (WordKind.A, WordKind.THE) for word in determiners)
    is_definite = any(word.kind is WordKind.THE for word in determiners)
    return ContextPhrase(words[end - 1].kind, words[0].start, words[end - 1].end, is_definite, is_plain), end


def _are_plain(determiners: Sequence[Word]) -> bool:
    kinds = tuple(word.kind for word in determiners)
    if determiners and determiners[0].value in _OF_DETERMINERS:
        return kinds == (_OF_DETERMINERS[determiners[0].value], WordKind.THE)
    return kinds in _PLAIN_DETERMINERS


def _count(words: Sequence[Word], kinds: frozenset[WordKind]) -> int:
    """Return how many words at the beginning are of the given kinds."""
    return next((i for i, word in enumerate(words) if word.kind not in kinds), len(words))


def _may_be_adjective(word: Word) -> bool:
    is_unknown = word.kind is WordKind.OTHER and word.value[:1].isalpha()
    return is_unknown or word.kind in _MODIFIERS_AFTER_DETERMINER


def _spread_denial(items: Sequence[Item]) -> Iterator[Item]:
    """Deny phrases that follow a denied one without a determiner: "no circles and squares" denies both."""
    before: NounPhrase | None = None
    are_joined = False
    for item in items:
        if isinstance(item, Word) and item.kind is WordKind.AND:
            are_joined = True
            yield item
            continue
        if isinstance(item, NounPhrase):
            if before and before.is_denied and are_joined and item.determiner is None:
                # In "no red circles and squares" the squares may be red ones.
                is_alike = (" " in before.subject) == (" " in item.subject) and not before.vague
                item = replace(item, determiner=before.determiner, is_plain=item.is_plain and is_alike)
            before = item
        else:
            before = None
        are_joined = False
        yield item
