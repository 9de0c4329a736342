"""The lexicon: splits a text into the words that a vocabulary and `english.yaml` know, with their kinds and spans."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import yaml

from vlgenrm_ray.experts.vocabulary import Vocabulary

_ENGLISH = Path(__file__).with_name("english.yaml")


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
    WITHOUT = "without"
    """"without", "lacks": a NOT that needs no verb."""
    IS = "is"
    WAS = "was"
    """Another tense of IS. Its sentence is hedged: it may no longer hold."""
    A = "a"
    SOME = "some"
    """A determiner of existence that "not" does not simply negate ("many", "another")."""
    GROUP = "group"
    """"group of": some objects, however many."""
    ANY = "any"
    EVERY = "every"
    THE = "the"
    HEDGE = "hedge"
    AND = "and"
    BREAK = "break"
    """End of a clause, or of a sentence if it is a full stop."""
    RELATIVE = "relative"
    """"which", "where": begins a clause about the phrase before it."""
    QUESTION = "question"
    """A question mark, or a word that begins a question."""
    YES = "yes"
    THERE = "there"
    PRESENT = "present"
    """Says that something is in the image ("visible", "located")."""
    HAVE = "have"
    """Verb whose object is in the image ("contains", "has")."""
    DISPLAY = "display"
    """The same for the image itself ("shows"). What something else shows is a picture of the object."""
    SEE = "see"
    """Verb by which an observer introduces what is in the image ("I see")."""
    POSTURE = "posture"
    """Verb that may stand between an object and its place ("sitting")."""
    ADVERB = "adverb"
    OF = "of"
    PREPOSITION = "preposition"
    PRONOUN = "pronoun"
    WHOLE = "whole"
    """The image as a place ("in the image")."""
    IMAGE = "image"
    """Noun for the image."""
    SCENE = "scene"
    """Harmless noun for surroundings ("street")."""
    THING = "thing"
    """Any other harmless noun ("shirt")."""
    ADJECTIVE = "adjective"
    VERB = "verb"
    OTHER = "other"
    """Unknown to the grammar: its sentence is hedged."""


@dataclass(frozen=True, slots=True)
class Word:
    """One entry of the lexicon in a text, at [start, end)."""

    kind: WordKind
    value: str
    start: int
    end: int


OPPOSITE_RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Relation -> the relation between the same two objects in reverse."""

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_PREPOSITIONS = ("at the", "in the", "on the", "to the", "at", "in")
_OF_WHOLE = ("", " of the image", " of the picture", " of the photo", " of the scene", " of the frame", " of the grid")
_HARMLESS_SUFFIXES = ("-shaped", "-colored", "-coloured", "-covered")
_TOKEN = re.compile(r"\d+(?:[.,:/\u2044]\d+)+\w*|\w+(?:['\u2019\u2010\u2011-]\w+)*|[^\w\s]|\n")
"""Numbers are read whole ("5.2", "1,000"), and so are words with a hyphen or an apostrophe."""
_MARKUP = re.compile(
    r"^[ \t]*(?:#{1,6}|[-*+\u2022\u2013]|\(?(?:\d{1,3}|[a-z])[.)])[ \t]+(?=\S)"  # heading, item of a list
    r"|^[ \t]*[-*_]{3,}[ \t]*$"
    r"|\*{1,3}(?=\w)|(?<=[\w.,:;!?)])\*{1,3}",
    re.MULTILINE | re.IGNORECASE,
)
_CONTRACTION = re.compile(r"(there|here|it|that|he|she)('s)|(is|are)(n't)")
_MAX_DIGITS = 9
_CLAUSE_MARKS = ";:()\u2014\u2013-"
_STOPS = ".!\u2026"


@cache
def english() -> dict[str, tuple[str, ...]]:
    """Return the word lists of `english.yaml`."""
    return {name: tuple(words) for name, words in yaml.safe_load(_ENGLISH.read_text()).items()}


class Lexicon:
    """Every phrase of a vocabulary and of `english.yaml`; the longest match wins, then the vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._entries: dict[tuple[str, ...], list[tuple[WordKind, str]]] = {}
        for number, name in _number_names():
            self._add(name, WordKind.NUMBER, str(number))
        for canonical, synonyms in vocabulary.relations.items():
            for phrase in (canonical, *synonyms):
                self._add(phrase, WordKind.RELATION, canonical)
        for canonical, place in vocabulary.places.items():
            for phrase in (canonical, *place.synonyms):
                # "left" alone has too many meanings; "top left" alone is a place.
                bare = ("",) if " " in phrase else ()
                for preposition in (*_PREPOSITIONS, *bare):
                    for of in _OF_WHOLE:
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
        for kind in WordKind:
            for phrase in english().get(kind.value, ()):
                self._add(phrase, kind, phrase)
        for image in (*english()["image"], "scene", "frame", "grid"):
            for preposition in ("in the", "in this", "within the", "of the"):
                self._add(f"{preposition} {image}", WordKind.WHOLE, image)
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
        """Return all words of a text in order, without markup. Unknown words are OTHER."""
        tokens = list(_tokens(text))
        values = [value for value, _, _ in tokens]
        words: list[Word] = []
        i = 0
        while i < len(tokens):
            _, start, end = tokens[i]
            count, readings = self._match_longest(values[i : i + self._longest])
            if readings:
                kind, value = self._choose_reading(readings, words, values[i + count : i + count + 1])
                if kind is WordKind.PLACE and values[i + count : i + count + 1] == ["of"]:
                    # "In the middle of the room" is no place in the image.
                    kind = WordKind.PREPOSITION
            else:
                kind, value = _unlisted(text, start, end)
            words.append(Word(kind, value, start, tokens[i + count - 1][2]))
            i += count
        return words

    def _match_longest(self, tokens: list[str]) -> tuple[int, list[tuple[WordKind, str]]]:
        for count in range(len(tokens), 0, -1):
            if readings := self._entries.get(tuple(tokens[:count])):
                return count, readings
        if tokens[0].endswith(_HARMLESS_SUFFIXES) and (tokens[0].rpartition("-")[0],) in self._entries:
            return 1, [(WordKind.ADJECTIVE, tokens[0])]
        return 1, []

    def _choose_reading(
        self, readings: list[tuple[WordKind, str]], before: list[Word], after: list[str]
    ) -> tuple[WordKind, str]:
        """Choose between several readings ("orange" is a colour and a fruit): attributes precede nouns."""
        nouns = [r for r in readings if r[0] in (WordKind.NOUN, WordKind.NOUNS)]
        attributes = [r for r in readings if r[0] is WordKind.ATTRIBUTE]
        kinds_after = {kind for t in after for kind, _ in self._entries.get((t,), [])}
        if readings[0][0] is WordKind.HEDGE and len(readings) > 1:
            # "around three" is a hedge, "around the table" is not.
            is_number = WordKind.NUMBER in kinds_after or any(t[0].isdigit() for t in after)
            return readings[0] if is_number else readings[1]
        if not (nouns and attributes):
            # The plural is entered first: a word that is its own plural ("sheep") is read as a plural.
            return readings[0]
        if kinds_after & {WordKind.NOUN, WordKind.NOUNS, WordKind.ATTRIBUTE}:
            return attributes[0]
        openings = (WordKind.A, WordKind.SOME, WordKind.ANY, WordKind.EVERY, WordKind.THE, WordKind.NUMBER)
        is_opened = bool(before) and before[-1].kind in (*openings, WordKind.NONE, WordKind.ATTRIBUTE)
        return nouns[0] if is_opened else attributes[0]


def _number_names() -> list[tuple[int, str]]:
    """Return the names of the numbers below one hundred, with a hyphen and without."""
    names = list(enumerate(_ONES))
    for i, tens in enumerate(_TENS, start=2):
        names.append((10 * i, tens))
        for one in range(1, 10):
            names += [(10 * i + one, f"{tens} {_ONES[one]}"), (10 * i + one, f"{tens}-{_ONES[one]}")]
    return names


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the tokens of a text in lower case with their spans; markup is left out, contractions are split."""
    markup = [match.span() for match in _MARKUP.finditer(text)]
    for match in _TOKEN.finditer(text):
        while markup and markup[0][1] <= match.start():
            markup.pop(0)
        if markup and markup[0][0] <= match.start():
            continue
        token = match.group().lower().replace("\u2019", "'")
        if contraction := _CONTRACTION.fullmatch(token):
            first, second = (part for part in contraction.groups() if part)
            middle = match.start() + len(first)
            yield first, match.start(), middle
            yield "is" if second == "'s" else second, middle, match.end()
        else:
            yield token, match.start(), match.end()


def _unlisted(text: str, start: int, end: int) -> tuple[WordKind, str]:
    """Return kind and value of a token that has no entry: a number in digits, punctuation, or an unknown word."""
    token = text[start:end].lower()
    if token.isascii() and token.isdigit() and len(token) <= _MAX_DIGITS:
        return WordKind.NUMBER, str(int(token))
    if token == "?":
        return WordKind.QUESTION, token
    if token == ",":
        return WordKind.AND, token
    if token == "\n":
        return WordKind.BREAK, token
    if token in _STOPS:
        # "!a circle", ".5" and "a.b" are no sentences.
        is_inner = text[end : end + 1].isalnum() or start == 0 or text[start - 1].isspace()
        return (WordKind.OTHER if is_inner else WordKind.BREAK), token
    if token in _CLAUSE_MARKS:
        # A dash joins what it touches: "2-3" and "\u20132" are no break.
        is_apart = token in ";:()" or (text[start - 1 : start].isspace() and text[end : end + 1].isspace())
        is_long = token == "\u2014" and not text[end : end + 1].isdigit()
        return (WordKind.BREAK if is_apart or is_long else WordKind.OTHER), token
    return WordKind.OTHER, token
