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
    is_general: bool = False
    """True for an object of any noun ("the thing")."""

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
    determiner: WordKind | None
    """As of a noun phrase."""
    is_plain: bool
    """False if its determiners are unknown to the grammar, for instance if they deny it."""
    noun: str = ""
    """Its last word."""


Item = NounPhrase | ContextPhrase | Word

_DETERMINERS = frozenset(
    (WordKind.A, WordKind.SOME, WordKind.ANY, WordKind.EVERY, WordKind.THE, WordKind.NUMBER, WordKind.NONE)
)
_PRECEDENCE = (
    WordKind.NONE,
    WordKind.GROUP,
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
_MORE_MODIFIERS = frozenset((WordKind.ATTRIBUTE, WordKind.IMAGE))
MATERIALS = frozenset(("snow", "ice", "sand", "cloud", "smoke", "water", "balloon", "grass", "shade", "wall"))
"""Surroundings that an object may be made of, or shown on: "a snow bear" is none."""
_DENYING = (WordKind.NONE, WordKind.ANY)
_NOUN_KINDS = frozenset((WordKind.NOUN, WordKind.NOUNS))
_MAX_UNKNOWN_ADJECTIVES = 2
_MAX_WORDS = 32
"""Longest phrase, in words."""


def group_phrases(words: Sequence[Word], vocabulary: Vocabulary) -> list[Item]:
    """Return the words of a clause in their order, grouped into phrases where they form some."""
    items: list[Item] = []
    i = 0
    while i < len(words):
        phrase, length = _read_phrase(words[i : i + _MAX_WORDS], vocabulary)
        items.append(phrase or words[i])
        i += length if phrase else 1
    return list(_spread_denial(items))


def _read_phrase(words: Sequence[Word], vocabulary: Vocabulary) -> tuple[NounPhrase | ContextPhrase | None, int]:
    """Return the phrase that the words begin with, if any, and its length in words."""
    if words[0].kind is WordKind.NOTHING and vocabulary.general:
        return _noun_phrase(vocabulary.general[0], words[:1], WordKind.NOTHING, is_general=True), 1
    determiners, is_plain = _read_determiners(words)
    first = i = len(determiners)
    unknown = 0
    attributes: list[str] = []
    vague = joined = False
    while i < len(words) and words[i].kind not in _NOUN_KINDS:
        if words[i].kind is WordKind.ATTRIBUTE:
            attributes.append(words[i].value)
        elif words[i].kind is WordKind.AND and attributes and _is_kind(words, i + 1, WordKind.ATTRIBUTE):
            joined = True
        elif _joins_adjectives(words, i) and i > first:
            pass
        elif words[i].kind in (_MODIFIERS_AFTER_DETERMINER if determiners and not attributes else _MODIFIERS):
            vague = True
            # "A snow bear" is none.
            is_plain = is_plain and words[i].value not in MATERIALS
        elif determiners and not attributes and unknown < _MAX_UNKNOWN_ADJECTIVES and _is_unknown(words[i]):
            unknown += 1
            vague, is_plain = True, False
        else:
            break
        i += 1
    if i == len(words) or words[i].kind not in _NOUN_KINDS or _is_compound(words[i:]):
        return _read_context_phrase(words, first)
    is_plural = words[i].kind is WordKind.NOUNS
    noun = _noun_phrase(
        " ".join([*attributes, words[i].value]),
        words[: i + 1],
        _main_determiner(determiners),
        is_plural=is_plural,
        number=next((word.value for word in determiners if word.kind is WordKind.NUMBER), ""),
        vague=vague,
        # "Red and blue circles" may be of one colour each.
        is_plain=is_plain and not (is_plural and joined),
        is_general=words[i].value in vocabulary.general,
    )
    return noun, i + 1


def _read_determiners(words: Sequence[Word]) -> tuple[Sequence[Word], bool]:
    """Return the determiners that the words begin with, and whether the grammar knows them in this order."""
    end = _count(words, _DETERMINERS)
    group = end + _count(words[end:], frozenset((WordKind.ADJECTIVE,)))
    if not _is_kind(words, group, WordKind.GROUP):
        return words[:end], _are_plain(words[:end])
    # "A large group of (five) people".
    is_plain = _are_plain(words[:end]) and not any(word.kind in _DENYING for word in words[:end])
    end = group + 1 + _is_kind(words, group + 1, WordKind.NUMBER)
    return words[:end], is_plain


def _main_determiner(determiners: Sequence[Word]) -> WordKind | None:
    kinds = [word.kind for word in determiners]
    main = next((kind for kind in _PRECEDENCE if kind in kinds), None)
    return WordKind.SOME if main is WordKind.GROUP else main


def _joins_adjectives(words: Sequence[Word], i: int) -> bool:
    """Check for the "and" of "a busy and dynamic street"."""
    is_joint = words[i].kind is WordKind.AND and _is_kind(words, i + 1, WordKind.ADJECTIVE)
    return is_joint and i > 0 and words[i - 1].kind in (WordKind.ADJECTIVE, WordKind.ATTRIBUTE)


def _is_compound(words: Sequence[Word]) -> bool:
    """Check for a noun that only describes another one: "clock tower", "dog house"."""
    return words[0].kind is WordKind.NOUN and len(words) > 1 and words[1].kind in _CONTEXT_KINDS


def _noun_phrase(
    subject: str,
    words: Sequence[Word],
    determiner: WordKind | None,
    *,
    is_plural: bool = False,
    number: str = "",
    vague: bool = False,
    is_plain: bool = True,
    is_general: bool = False,
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
        is_general=is_general,
    )


def _read_context_phrase(words: Sequence[Word], num_determiners: int) -> tuple[ContextPhrase | None, int]:
    first = words[num_determiners] if num_determiners < len(words) else None
    kinds = (_MODIFIERS_AFTER_DETERMINER if num_determiners else _MODIFIERS) | _MORE_MODIFIERS
    end = i = num_determiners
    while i < len(words) and (words[i].kind in kinds or _is_compound(words[i:]) or _joins_adjectives(words, i)):
        i += 1
        # A verb after the noun is no part of the phrase: "the street leading ...".
        if words[i - 1].kind in _CONTEXT_KINDS:
            end = i
            kinds = _CONTEXT_KINDS
    if first is None or end == num_determiners:
        return None, 1
    determiners, is_plain = _read_determiners(words)
    kind = words[end - 1].kind
    # "Another image" is not this one, and "another room" is not the one that the image shows.
    is_elsewhere = any(word.value == "another" for word in determiners) and kind is not WordKind.THING
    is_plain = is_plain and not is_elsewhere and not any(word.kind is WordKind.ANY for word in determiners)
    if kind is WordKind.IMAGE:
        is_plain = is_plain and all(word.kind in (WordKind.A, WordKind.THE) for word in determiners)
    return ContextPhrase(
        kind, words[0].start, words[end - 1].end, _main_determiner(determiners), is_plain, words[end - 1].value
    ), end


def _are_plain(determiners: Sequence[Word]) -> bool:
    kinds = tuple(word.kind for word in determiners)
    if determiners and determiners[0].value in _OF_DETERMINERS:
        return kinds == (_OF_DETERMINERS[determiners[0].value], WordKind.THE)
    return kinds in _PLAIN_DETERMINERS


def _count(words: Sequence[Word], kinds: frozenset[WordKind]) -> int:
    """Return how many words at the beginning are of the given kinds."""
    return next((i for i, word in enumerate(words) if word.kind not in kinds), len(words))


def _is_unknown(word: Word) -> bool:
    return word.kind is WordKind.OTHER and word.value[:1].isalpha()


def _is_kind(words: Sequence[Word], i: int, kind: WordKind) -> bool:
    return i < len(words) and words[i].kind is kind


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
