"""Sentences: splits the words of a text, and finds what makes a sentence mean something else than it says by itself.

A full stop ends a sentence only where it cannot be part of an abbreviation or a number, so that what belongs together
is never read apart: "it is false, e.g. there is a dog" is one sentence. `Scope` says which sentences stand under
another one that the grammar does not understand: "The image does not show:" and its list, "What is missing? A dog."
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from vlgenrm_ray.experts.lexicon import Word, WordKind, english

_LIST_ITEM = re.compile(r"([ \t]*)(?:[-*+\u2022\u2013]|\(?(?:\d{1,3}|[A-Za-z])[.)])[ \t]+\S")
_HEADING = re.compile(r"[ \t]*(#{1,6})[ \t]+\S")
_BOLD_LINE = re.compile(r"[ \t]*\*\*[^*\n]+\*\*:?[ \t]*(?:\n|$)")
_CLOSING_MARKS = "\"'\u201d\u2019)]*_"
_STOPS = (".", "!")
_AFTER_STOP = re.compile(rf"[{re.escape(_CLOSING_MARKS)}]*(?:\s+(\S|$)|($))")
"""Text after a stop that ends a sentence. Its group is the first character of the next sentence."""
_BLANK_LINE = re.compile(r"[^\S\n]*(?:\n|$)")
_QUOTATION = re.compile(
    r'"[^"]*(?:"|$)|`[^`]*(?:`|$)|\u201c.*?(?:\u201d|$)|\u201e.*?(?:[\u201c\u201d]|$)|\u00ab.*?(?:\u00bb|$)|~~.*?(?:~~|$)'
    r"|(?<!\w)['\u2018](?=\S).*?(?:(?<=\S)['\u2019](?!\w)|$)"
    r"|<(?P<tag>del|s|strike|q|blockquote|think)\b.*?(?:</(?P=tag)\b|$)|<!--.*?(?:-->|$)"  # HTML
    r"|(?m:^[ \t]*>).*?(?=\n|$)|\[[^\[\]]*(?:\]|$)|\{[^{}]*(?:\}|$)",  # a quoted line, brackets
    re.DOTALL,
)
_LINE_LEVEL = 0
"""Level of running text. Headings are below, items of lists above, by their indentation."""
_INTRODUCTION_LEVEL = -1
_BOLD_LEVEL = -2
_HEADING_LEVEL = -10


@dataclass(slots=True)
class Sentence:
    """A sentence of a text with its words."""

    level: int
    """Level of the line that it begins in."""
    block: int
    """Number of the block of lines, between empty lines, that it begins in."""
    words: list[Word] = field(default_factory=list)
    is_question: bool = False
    is_uncertain: bool = False
    """True if it is quoted, or may be the beginning of a question."""


class _SentenceSplitter:
    """The state of `split_sentences`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sentences: list[Sentence] = []
        self.block = 0
        self.num_open_brackets = 0
        self.current = Sentence(_line_level(text, 0), 0)

    def split(self, words: Sequence[Word]) -> list[Sentence]:
        for i, word in enumerate(words):
            if word.value == "\n":
                self._add_newline(word)
                continue
            self.current.words.append(word)
            self.num_open_brackets = max(self.num_open_brackets + (word.value == "(") - (word.value == ")"), 0)
            if word.value == "?":
                self._close_question()
            elif not self.num_open_brackets and _ends_sentence(self.text, words, i):
                self._close(self.current.level)
        self._close(_LINE_LEVEL)
        return self.sentences

    def _add_newline(self, word: Word) -> None:
        level = _line_level(self.text, word.end)
        is_blank = _BLANK_LINE.match(self.text, word.end) is not None
        self.block += is_blank
        is_continuation = level == _LINE_LEVEL and (
            self.current.level == _LINE_LEVEL or self.text[word.end : word.end + 1].isspace()
        )
        if not is_blank and not is_continuation:
            self._close(level)
        elif self.current.words:
            self.current.words.append(word)
        else:
            self.current.block = self.block

    def _close_question(self) -> None:
        """Close a question. The lines before its own may belong to it."""
        question = self.current
        lines = [i for i, word in enumerate(question.words) if word.value == "\n"]
        if lines:
            self.current = Sentence(question.level, question.block, question.words[: lines[-1]], is_uncertain=True)
            self._close(question.level)
            question.words = question.words[lines[-1] :]
        self.current = question
        question.is_question = True
        self._close(question.level)

    def _close(self, level: int) -> None:
        sentence = self.current
        _drop_title(sentence.words)
        if any(word.kind is not WordKind.BREAK for word in sentence.words):
            self.sentences.append(sentence)
        self.num_open_brackets = 0
        self.current = Sentence(level, self.block)


def split_sentences(text: str, words: Sequence[Word]) -> list[Sentence]:
    """Split the words of a text into sentences. Titles ("Answer:") are left out."""
    sentences = _SentenceSplitter(text).split(words)
    quotations = [match.span() for match in _QUOTATION.finditer(text)]
    for sentence in sentences:
        first, last = sentence.words[0].start, sentence.words[-1].end
        sentence.is_uncertain |= any(start < last and first < end for start, end in quotations)
    return sentences


def _line_level(text: str, start: int) -> int:
    if item := _LIST_ITEM.match(text, start):
        return _LINE_LEVEL + 1 + len(item[1].expandtabs())
    if heading := _HEADING.match(text, start):
        return _HEADING_LEVEL + len(heading[1])
    return _BOLD_LEVEL if _BOLD_LINE.match(text, start) else _LINE_LEVEL


def _ends_sentence(text: str, words: Sequence[Word], i: int) -> bool:
    """Check whether a sentence ends with `words[i]`: a full stop, or the last closing mark after one."""
    if text.startswith(tuple(_CLOSING_MARKS), words[i].end):
        return False
    while i and words[i].value in _CLOSING_MARKS and words[i - 1].end == words[i].start:
        i -= 1
    stop = words[i]
    if stop.value not in _STOPS or text.endswith((".", "\u2026"), 0, stop.start):
        return False
    after = _AFTER_STOP.match(text, stop.end)
    following = (after[1] or "") if after else ""
    if after is None or following.islower():
        return False
    before = words[i - 1] if i else None
    if before is None or before.end != stop.start:
        return True
    token = text[before.start : before.end].lower()
    is_number = following.isdigit() and (token[-1:].isdigit() or token in ("no", "nos"))
    is_abbreviation = token in english()["abbreviations"] or (len(token) == 1 and token.isalpha())
    return not is_number and not is_abbreviation


def _drop_title(words: list[Word]) -> None:
    for i, word in enumerate(words[:3]):
        if word.kind is WordKind.BREAK:
            if " ".join(w.value for w in words[:i]) in english()["titles"]:
                del words[: i + 1]
            return
    if " ".join(w.value for w in words) in english()["titles"]:
        words.clear()


class Scope:
    """The sentences that the next sentence of a text stands under: headings, introductions of lists, a question."""

    def __init__(self) -> None:
        self._above: list[tuple[Sentence, int, bool]] = []
        """Sentence, its level as an introduction, and whether it is hedged."""
        self._after_unclear_question = False

    def enter(self, sentence: Sentence, *, is_plain: bool) -> bool:
        """Return True if a sentence is to be hedged, by itself or by one that it stands under.

        Args:
            sentence: The next sentence of the text.
            is_plain: True if the grammar understands it.
        """
        self._above = [entry for entry in self._above if _covers(entry[0], entry[1], sentence)]
        is_hedged = not is_plain or self._after_unclear_question or any(hedged for _, _, hedged in self._above)
        self._after_unclear_question = sentence.is_question and not is_plain
        if not sentence.is_question:
            is_introduction = sentence.words[-1].value == ":" and sentence.level == _LINE_LEVEL
            level = _INTRODUCTION_LEVEL if is_introduction else sentence.level
            self._above.append((sentence, level, is_hedged))
        return is_hedged


def _covers(above: Sentence, level: int, sentence: Sentence) -> bool:
    if level == _INTRODUCTION_LEVEL and sentence.level == _LINE_LEVEL:
        return sentence.block <= above.block + 1
    return level < sentence.level


def has_disclaimer(text: str) -> bool:
    """Check whether a text takes back or suspends what it states ("just kidding", "imagine that")."""
    return bool(_disclaimers().search(text.lower().replace("\u2019", "'")))


@cache
def _disclaimers() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, english()['disclaimers']))})\b")
