"""The lexicon: splits a text into the words a vocabulary knows, with their kinds and spans."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from vlgenrm_ray.experts.vocabulary import Vocabulary


class WordKind(StrEnum):
    """Function of a word, or of several words read as one, in a sentence."""

    NOUN = "noun"
    NOUNS = "nouns"
    """A noun in the plural."""
    ATTRIBUTE = "attribute"
    PLACE = "place"
    RELATION = "relation"
    NUMBER = "number"
    NONE = "none"
    """"no", "neither": the phrase that follows is denied."""
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
    """Has no meaning for claims and may stand anywhere ("located", "there")."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Word:
    """One entry of the lexicon in a text, at [start, end)."""

    kind: WordKind
    value: str
    start: int
    end: int


_NUMBERS = "zero,one,two,three,four,five,six,seven,eight,nine,ten,eleven,twelve"
_FIXED: dict[WordKind, str] = {
    WordKind.NOT: "not,never,without,isn't,aren't,wasn't,weren't,doesn't,don't,didn't,cannot,can't,couldn't,lacks,lack",
    WordKind.NONE: "no,neither,nor",
    WordKind.NOTHING: "nothing",
    WordKind.IS: "is,are,was,were,be,been",
    WordKind.A: (
        "a,an,some,another,several,many,few,various,multiple,there's,each,every,any,lots of,a lot of,a number of,one of"
    ),
    WordKind.THE: "the,this,that,these,those,its,his,her,their,my,your,both,all",
    WordKind.HEDGE: (
        "perhaps,maybe,might,may,could,possibly,probably,likely,seems,seem,seemingly,appears,appear,apparently,"
        "presumably,looks like,look like,resembles,i think,i believe,i guess,not sure,unclear,unsure,if,would,should,"
        "about,around,approximately,roughly,almost,nearly,at least,at most,more than,less than,fewer than,up to,"
        "a couple of,or,either"
    ),
    WordKind.AND: "and,also,as well as,plus,&",
    WordKind.BREAK: "but,while,whereas,although,though,however,because,so,which,who",
    WordKind.FILLER: (
        "there,located,positioned,situated,placed,found,visible,shown,seen,sitting,standing,lying,resting,parked,"
        "directly,just,immediately,slightly,clearly,exactly,only,actually,very,here,in color,in colour,colored,"
        "coloured,see,contain,contains,have,has,show,shows,include,includes,feature,features,present"
    ),
}
_PRESENCE_FILLERS = frozenset(
    ("there", "see", "contain", "contains", "have", "has", "show", "shows", "include", "includes", "visible", "present")
)
OPPOSITE_RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Relation -> the relation between the same two objects in reverse."""

_TOKEN = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]|\n")
_PREPOSITIONS = ("at the", "in the", "on the", "to the", "at", "in")
_WHOLES = ("", " of the image", " of the picture", " of the photo", " of the scene", " of the frame", " of the grid")


class Lexicon:
    """Every phrase of a vocabulary and of the fixed word list; the longest match wins."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._entries: dict[tuple[str, ...], list[tuple[WordKind, str]]] = {}
        for kind, phrases in _FIXED.items():
            for phrase in phrases.split(","):
                self._add(phrase, kind, phrase)
        for number, name in enumerate(_NUMBERS.split(",")):
            self._add(name, WordKind.NUMBER, str(number))
        for canonical, synonyms in vocabulary.relations.items():
            for phrase in (canonical, *synonyms):
                self._add(phrase, WordKind.RELATION, canonical)
        for canonical, place in vocabulary.places.items():
            for phrase in (canonical, *place.synonyms):
                # "left" alone has too many meanings; "top left" alone is a place.
                bare = ("",) if " " in phrase else ()
                for preposition in (*_PREPOSITIONS, *bare):
                    for of in _WHOLES:
                        self._add(f"{preposition} {phrase}{of}", WordKind.PLACE, canonical)
        for words in vocabulary.attributes.values():
            for canonical, synonyms in words.items():
                for phrase in (canonical, *synonyms):
                    self._add(phrase, WordKind.ATTRIBUTE, canonical)
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
            self._add(self.vocabulary.plural(name), WordKind.NOUNS, canonical)
            self._add(name, WordKind.NOUN, canonical)

    def _add(self, phrase: str, kind: WordKind, value: str) -> None:
        entries = self._entries.setdefault(tuple(phrase.lower().split()), [])
        if (kind, value) not in entries:
            entries.append((kind, value))

    def read(self, text: str) -> list[Word]:
        """Return all words of a text in order. Unknown words are OTHER."""
        tokens = [(m.group().lower().replace("\u2019", "'"), m.start(), m.end()) for m in _TOKEN.finditer(text)]
        words: list[Word] = []
        i = 0
        while i < len(tokens):
            count, readings = self._match_longest([t for t, _, _ in tokens[i : i + self._longest]])
            kind, value = self._choose_reading(readings, words, tokens[i + count : i + count + 1])
            words.append(Word(kind, value, tokens[i][1], tokens[i + count - 1][2]))
            i += count
        return words

    def _match_longest(self, tokens: list[str]) -> tuple[int, list[tuple[WordKind, str]]]:
        for count in range(len(tokens), 0, -1):
            if readings := self._entries.get(tuple(tokens[:count])):
                return count, readings
        return 1, [(_punctuation_kind(tokens[0]), tokens[0])]

    def _choose_reading(
        self, readings: list[tuple[WordKind, str]], before: list[Word], after: list[tuple[str, int, int]]
    ) -> tuple[WordKind, str]:
        """Choose between several readings ("orange" is a colour and a fruit): attributes precede nouns."""
        nouns = [r for r in readings if r[0] in (WordKind.NOUN, WordKind.NOUNS)]
        attributes = [r for r in readings if r[0] is WordKind.ATTRIBUTE]
        if not (nouns and attributes):
            # The plural is entered first: a word that is its own plural ("sheep") is read as a plural.
            return readings[0]
        noun_follows = any(
            kind in (WordKind.NOUN, WordKind.NOUNS, WordKind.ATTRIBUTE)
            for t, _, _ in after
            for kind, _ in self._entries.get((t,), [])
        )
        if noun_follows:
            return attributes[0]
        openings = (WordKind.A, WordKind.THE, WordKind.NUMBER, WordKind.NONE, WordKind.ATTRIBUTE)
        is_opened = bool(before) and before[-1].kind in openings
        return nouns[0] if is_opened else attributes[0]


def _punctuation_kind(token: str) -> WordKind:
    if token.isdigit():
        return WordKind.NUMBER
    if token == "?":
        return WordKind.QUESTION
    if token in ".;:!\n()":
        return WordKind.BREAK
    return WordKind.AND if token == "," else WordKind.OTHER


def split_clauses(words: list[Word]) -> Iterator[list[Word]]:
    """Split words into clauses at each break. Questions state nothing and are left out."""
    clause: list[Word] = []
    sentence: list[list[Word]] = []
    for word in words:
        if word.kind is WordKind.QUESTION:
            clause, sentence = [], []
        elif word.kind is WordKind.BREAK:
            sentence.append(clause)
            clause = []
            if word.value in (".", "!", "\n"):
                yield from sentence
                sentence = []
        else:
            clause.append(word)
    yield from (*sentence, clause)


def states_presence(word: Word) -> bool:
    """Return True for fillers that state presence ("there", "see"): a "not" before them denies what follows."""
    return word.kind is WordKind.FILLER and word.value in _PRESENCE_FILLERS
