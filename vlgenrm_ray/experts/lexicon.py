"""Text -> the words a vocabulary knows, with their kinds and spans; and noun phrases out of those."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from vlgenrm_ray.experts.vocabulary import Vocabulary


class Kind(StrEnum):
    """What a word (or several, read as one) does in a sentence."""

    NOUN = "noun"
    NOUNS = "nouns"
    """A noun in the plural."""
    ATTRIBUTE = "attribute"
    PLACE = "place"
    RELATION = "relation"
    NUMBER = "number"
    NONE = "none"
    """"no", "zero": the phrase it begins is denied."""
    NOTHING = "nothing"
    NOT = "not"
    IS = "is"
    A = "a"
    THE = "the"
    HEDGE = "hedge"
    AND = "and"
    BREAK = "break"
    """End of a sentence or clause."""
    QUESTION = "question"
    FILLER = "filler"
    """Says nothing here, and stands in nothing's way ("located", "there")."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Word:
    """One entry of the lexicon found in a text, at [start, end)."""

    kind: Kind
    value: str
    start: int
    end: int


_NUMBERS = "zero,one,two,three,four,five,six,seven,eight,nine,ten,eleven,twelve"
_FIXED: dict[Kind, str] = {
    Kind.NOT: "not,never,without,isn't,aren't,wasn't,weren't,doesn't,don't,didn't,cannot,can't,couldn't,lacks,lack",
    Kind.NONE: "no,neither,nor",
    Kind.NOTHING: "nothing",
    Kind.IS: "is,are,was,were,be,been",
    Kind.A: (
        "a,an,some,another,several,many,few,various,multiple,there's,each,every,any,lots of,a lot of,a number of,one of"
    ),
    Kind.THE: "the,this,that,these,those,its,his,her,their,my,your,both,all",
    Kind.HEDGE: (
        "perhaps,maybe,might,may,could,possibly,probably,likely,seems,seem,seemingly,appears,appear,apparently,"
        "presumably,looks like,look like,resembles,i think,i believe,i guess,not sure,unclear,unsure,if,would,should,"
        "about,around,approximately,roughly,almost,nearly,at least,at most,more than,less than,fewer than,up to,"
        "a couple of,or,either"
    ),
    Kind.AND: "and,also,as well as,plus,&",
    Kind.BREAK: "but,while,whereas,although,though,however,because,so,which,who",
    Kind.FILLER: (
        "there,located,positioned,situated,placed,found,visible,shown,seen,sitting,standing,lying,resting,parked,"
        "directly,just,immediately,slightly,clearly,exactly,only,actually,very,here,in color,in colour,colored,"
        "coloured,see,contain,contains,have,has,show,shows,include,includes,feature,features,present"
    ),
}
_SEES = frozenset(
    ("there", "see", "contain", "contains", "have", "has", "show", "shows", "include", "includes", "visible", "present")
)
_TOKEN = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]|\n")
_PREPOSITIONS = ("at the", "in the", "on the", "to the", "at", "in")
_WHOLES = ("", " of the image", " of the picture", " of the photo", " of the scene", " of the frame", " of the grid")


class Lexicon:
    """A vocabulary, laid out for reading: every phrase it knows, longest first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._entries: dict[tuple[str, ...], list[tuple[Kind, str]]] = {}
        for kind, phrases in _FIXED.items():
            for phrase in phrases.split(","):
                self._add(phrase, kind, phrase)
        for number, name in enumerate(_NUMBERS.split(",")):
            self._add(name, Kind.NUMBER, str(number))
        for canonical, synonyms in vocabulary.relations.items():
            for phrase in (canonical, *synonyms):
                self._add(phrase, Kind.RELATION, canonical)
        for canonical, place in vocabulary.places.items():
            for phrase in (canonical, *place.synonyms):
                # "left" alone is too many things; "top left" alone is a place.
                bare = ("",) if " " in phrase else ()
                for preposition in (*_PREPOSITIONS, *bare):
                    for of in _WHOLES:
                        self._add(f"{preposition} {phrase}{of}", Kind.PLACE, canonical)
        for words in vocabulary.attributes.values():
            for canonical, synonyms in words.items():
                for phrase in (canonical, *synonyms):
                    self._add(phrase, Kind.ATTRIBUTE, canonical)
        for canonical, synonyms in vocabulary.nouns.items():
            self._add_noun(canonical, canonical, *synonyms)
        for narrower in vocabulary.narrower.values():
            for noun in narrower:
                self._add_noun(noun, noun)
        if vocabulary.general:
            self._add_noun(vocabulary.general[0], *vocabulary.general)
        self._longest = max(map(len, self._entries))

    def _add_noun(self, canonical: str, *names: str) -> None:
        for name in names:
            self._add(self.vocabulary.plural(name), Kind.NOUNS, canonical)
            self._add(name, Kind.NOUN, canonical)

    def _add(self, phrase: str, kind: Kind, value: str) -> None:
        entries = self._entries.setdefault(tuple(phrase.lower().split()), [])
        if (kind, value) not in entries:
            entries.append((kind, value))

    def read(self, text: str) -> list[Word]:
        """All words of a text in order; what the lexicon does not know is OTHER."""
        tokens = [(m.group().lower().replace("\u2019", "'"), m.start(), m.end()) for m in _TOKEN.finditer(text)]
        words: list[Word] = []
        i = 0
        while i < len(tokens):
            count, readings = self._longest_at([t for t, _, _ in tokens[i : i + self._longest]])
            kind, value = self._choose(readings, words, tokens[i + count : i + count + 1])
            words.append(Word(kind, value, tokens[i][1], tokens[i + count - 1][2]))
            i += count
        return words

    def _longest_at(self, tokens: list[str]) -> tuple[int, list[tuple[Kind, str]]]:
        for count in range(len(tokens), 0, -1):
            if readings := self._entries.get(tuple(tokens[:count])):
                return count, readings
        return 1, [(_punctuation(tokens[0]), tokens[0])]

    def _choose(
        self, readings: list[tuple[Kind, str]], before: list[Word], after: list[tuple[str, int, int]]
    ) -> tuple[Kind, str]:
        """Of several readings ("orange" is a colour and a fruit) the one that fits: attributes stand before nouns."""
        nouns = [r for r in readings if r[0] in (Kind.NOUN, Kind.NOUNS)]
        attributes = [r for r in readings if r[0] is Kind.ATTRIBUTE]
        if not (nouns and attributes):
            # A word that is its own plural ("sheep") is a singular only behind an article or a number.
            return readings[0]
        noun_follows = any(
            kind in (Kind.NOUN, Kind.NOUNS, Kind.ATTRIBUTE)
            for t, _, _ in after
            for kind, _ in self._entries.get((t,), [])
        )
        if noun_follows:
            return attributes[0]
        opened = bool(before) and before[-1].kind in (Kind.A, Kind.THE, Kind.NUMBER, Kind.NONE, Kind.ATTRIBUTE)
        return nouns[0] if opened else attributes[0]


def _punctuation(token: str) -> Kind:
    if token.isdigit():
        return Kind.NUMBER
    if token == "?":
        return Kind.QUESTION
    if token in ".;:!\n()":
        return Kind.BREAK
    return Kind.AND if token == "," else Kind.OTHER


def clauses(words: list[Word]) -> Iterator[list[Word]]:
    """Words up to each break. What ends in a question mark states nothing and is left out."""
    clause: list[Word] = []
    sentence: list[list[Word]] = []
    for word in words:
        if word.kind is Kind.QUESTION:
            clause, sentence = [], []
        elif word.kind is Kind.BREAK:
            sentence.append(clause)
            clause = []
            if word.value in (".", "!", "\n"):
                yield from sentence
                sentence = []
        else:
            clause.append(word)
    yield from (*sentence, clause)


def sees(word: Word) -> bool:
    """Whether a filler says that something is there ("there", "see"), so that a "not" before it denies what follows."""
    return word.kind is Kind.FILLER and word.value in _SEES
