"""Responses as sentences, for judges with `unit: sentence`.

    response -> blocks (paragraphs, list items, code) -> sentences (sentencex) -> units that can be judged alone

A part that says nothing by itself is never judged alone: a list number, a heading, a lead-in ("It shows:"), what an
abbreviation or a line break seems to cut off. Such parts are joined with their neighbours, and code and tables stay
whole. In doubt two sentences stay together, which costs resolution and no correctness. Scripts without stops, such as
Thai as it is mostly written, are not split.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

MAX_SENTENCES = 32
"""Units a response is split into at most. Longer responses have several sentences per unit, which bounds their cost."""
_MAX_QUOTES = 2000
"""Quotation marks in a block above which it stays whole: the library's time is quadratic in their number."""
_MAX_WORD = 64
"""Characters at the end of a part that are read to tell whether it is a sentence."""

_FENCE = re.compile(r"[ \t]*(```+|~~~+)")
_LIST_ITEM = re.compile(
    r"[ \t]*(?:[-*+\u2022\u00b7\u25cf\u2013\u2014]|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,4})[.)]|[\u2460-\u2473])[ \t]+\S"
)
_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]")
_TABLE_ROW = re.compile(r"[ \t]*\|.*\|[ \t]*$")
_QUOTES = re.compile(r"[`\"'\u2018-\u201f\u00ab\u00bb\u2039\u203a\u300c-\u300f()\[\]{}]")
# Stops that the library does not know: Khmer, Thai, Tibetan, Mongolian.
_OTHER_STOP = re.compile(r"(?<=[\u17d4\u17d5\u0e5a\u0e5b\u0f0d\u0f0e\u1803\u1809])\s*")
_CLOSERS = "\"')]}\u2019\u201d\u00bb\u203a\u300d\u300f\uff09*_`"
_STOPS = (
    ".!?\u2026\u3002\uff01\uff1f\uff0e\uff61\u061f\u06d4\u0964\u0965\u17d4\u17d5\u0e5a\u0e5b"
    "\u0f0d\u0f0e\u1362\u1367\u104b\u0589\u1803\u1809"
)
_LEAD_IN = re.compile(r"[:\uff1a,\uff0c\u060c\u3001;\uff1b\u061b=\u2192][" + re.escape(_CLOSERS) + r"]*\Z")
_BOLD_LINE = re.compile(r"[ \t]*(\*\*|__)[^*_]{1,80}\1[ \t]*\Z")
_LABEL = re.compile(r"\W*\w+\s+[\divxIVX]{1,4}\W*\Z")
"""Number of a step or figure: "Step 1."."""
_OPENING = re.compile(
    r"\W*(?:\w+!+|(?i:sure|okay|ok|certainly|absolutely|definitely|great|well|hello|hi|hmm|of course|thanks"
    r"|thank you)\W+)\Z"
)
_QUOTATION = {
    '"': '"',
    "\u201c": "\u201d",
    "\u2018": "\u2019",
    "\u00ab": "\u00bb",
    "\u300c": "\u300d",
    "\u300e": "\u300f",
}
# Abbreviations that the library does not know, or takes for the end of a sentence.
_WORD_START = r"(?:\A|(?<=[\s(\[\"'\u201c]))"
_INITIAL = re.compile(_WORD_START + r"(?:[A-Z]|[A-Za-z](?:\.\s?[A-Za-z])+)\.\Z")
_ABBREVIATION = re.compile(
    _WORD_START + r"(?i:approx|circa|viz|vs|eg|ie|cf|incl|excl|resp|esp|bzw|vgl|inkl|ggf|evtl|usw|"
    r"\u0441\u043c|\u0440\u0438\u0441|\u0443\u043b)\.\Z"
)
_BEFORE_NUMBER = re.compile(
    _WORD_START
    + r"(?i:nos?|nrs?|num|figs?|eqs?|secs?|ch|chap|pp?|pgs?|vols?|eds?|art|par|max|min|avg|est|temp|dim|diam|tel"
    r"|ext|ca?|al|etc|abb|kap|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|in|ft|yds?|oz|lbs?|hrs?|mins?|sq|step|item"
    r"|question|figure|table|part|option|\u2116)\.\Z"
)
_BEFORE_NAME = re.compile(
    _WORD_START
    + r"(?:Drs?|Mrs?|Ms|Mx|Profs?|Rev|Fr|Sr|Jr|St|Ste|Mt|Ft|Gen|Col|Capt|Cpt|Cmdr|Lt|Sgt|Cpl|Maj|Adm|Gov|Sen"
    r"|Reps?|Pres|Hon|Messrs|Hr|Fr|Sra?|Sig|Dott|Ing|dr|mr|mrs|prof)\.\Z"
)
_SCRIPTS = {
    "GREEK": "el", "CYRILLIC": "ru", "ARABIC": "ar", "DEVANAGARI": "hi", "CJK": "zh", "HIRAGANA": "ja",
    "KATAKANA": "ja", "HANGUL": "ko",
    "ARMENIAN": "hy", "HEBREW": "he", "THAI": "th", "MYANMAR": "my", "ETHIOPIC": "am", "BENGALI": "bn",
}  # fmt: skip
"""Script -> a language whose rules fit it. English for others."""


def split(response: str) -> list[str]:
    """Split a response into units that can be judged alone, `MAX_SENTENCES` at most.

    Returns:
        The units in order; together they have every character of the response that is not whitespace. [] for a blank
        response.
    """
    units: list[str] = []
    in_list = False
    was_item = True
    for block, after_blank in _blocks(response.strip()):
        is_item = _LIST_ITEM.match(block) is not None
        # What a lead-in introduces belongs to it: the next block, or all items of the list.
        introduced = bool(units) and (
            _introduces(units[-1]) or (is_item and not was_item and not after_blank and not _has_ended(units[-1]))
        )
        listed = is_item and (introduced or in_list)
        parts = _sentences(block) if _is_prose(block) and not listed else [block]
        if introduced or listed:
            units[-1] = f"{units[-1]}\n{parts.pop(0)}"
        units += parts
        in_list, was_item = listed, is_item
    units = _join_wordless(units)
    size = -(-len(units) // MAX_SENTENCES)
    return ["\n".join(units[i : i + size]) for i in range(0, len(units), size)] if units else []


def locate(response: str, units: Sequence[str]) -> list[tuple[int, int]] | None:
    """Find the units of `split` in a response; whitespace does not count.

    Args:
        response: The response, which may have more before and after the units, such as a thinking.
        units: Its units, in order.

    Returns:
        The span [start, end) of each unit in characters; None if the units are no connected part of the response, for
        instance because something between them was removed before judging.
    """
    positions = [i for i, letter in enumerate(response) if not letter.isspace()]
    letters = ["".join(unit.split()) for unit in units]
    first = "".join(response[i] for i in positions).rfind("".join(letters))
    if first < 0 or not all(letters):
        return None
    spans: list[tuple[int, int]] = []
    for unit in letters:
        spans.append((positions[first], positions[first + len(unit) - 1] + 1))
        first += len(unit)
    return spans


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Yield code blocks, tables, list items, headings and paragraphs, whose lines may be wrapped.

    Each with whether a blank line precedes it.
    """
    block: list[str] = []
    fence = ""
    after_blank = False
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            block.append(line)
            if mark and mark[1].startswith(fence) and not line.strip(" \t`~"):
                yield "\n".join(block), after_blank
                block, fence, after_blank = [], "", False
            continue
        if block and _begins_block(line, block[-1]):
            yield "\n".join(block).strip(), after_blank
            block, after_blank = [], False
        if mark:
            fence = mark[1]
        if line.strip():
            block.append(line)
        else:
            after_blank = True
    if block:
        yield "\n".join(block).strip(), after_blank


def _begins_block(line: str, previous: str) -> bool:
    """Return whether a line begins a block after the previous line, or ends its paragraph."""
    if not line.strip() or _FENCE.match(line) or _LIST_ITEM.match(line) or _HEADING.match(line):
        return True
    if _HEADING.match(previous):
        return True
    return bool(_TABLE_ROW.match(line)) != bool(_TABLE_ROW.match(previous))


def _is_prose(block: str) -> bool:
    return not _FENCE.match(block) and not _TABLE_ROW.match(block.split("\n")[-1])


def _introduces(unit: str) -> bool:
    """Return whether a unit says nothing without the next block: a lead-in, a heading or a label."""
    last = unit[unit.rfind("\n") + 1 :]
    short = len(last) <= _MAX_WORD and (_BOLD_LINE.match(last) or _LABEL.match(last))
    return bool(short or _HEADING.match(last) or _LEAD_IN.search(last[-_MAX_WORD:]))


def _has_ended(unit: str, language: str = "en") -> bool:
    """Return whether a unit ends as a sentence does."""
    last = unit[-_MAX_WORD:].rstrip(_CLOSERS)[-1:]
    # The Greek question mark looks like a semicolon.
    return last in tuple(_STOPS) or (language == "el" and last in (";", "\u037e"))


def _sentences(block: str) -> list[str]:
    """Split prose by the library, and join what is no sentence of its own."""
    if len(_QUOTES.findall(block)) > _MAX_QUOTES:
        return [block]
    from sentencex import segment

    language = _language(block)
    parts = [part for sentence in segment(language, block) for part in _OTHER_STOP.split(sentence)]
    joined: list[str] = []
    for part in (stripped for part in parts if (stripped := part.strip())):
        if joined and (_continues(joined[-1], part, language) or _is_fragment(joined[-1], part)):
            joined[-1] = f"{joined[-1]} {part}" if _spaced(joined[-1], part) else joined[-1] + part
        else:
            joined.append(part)
    return joined


def _language(text: str) -> str:
    letter = next((letter for letter in text if letter.isalpha()), "a")
    return _SCRIPTS.get(unicodedata.name(letter, "LATIN").split(" ")[0].split("-")[0], "en")


def _continues(previous: str, part: str, language: str) -> bool:
    """Return whether a part goes on with the sentence before it."""
    first = next((letter for letter in part if letter.isalnum()), "")
    return not _has_ended(previous, language) or first.islower()


def _is_fragment(part: str, following: str) -> bool:
    """Return whether a part says nothing without the one that follows."""
    first = next((letter for letter in following if letter.isalnum()), "")
    end = part[-_MAX_WORD:]
    return bool(
        _INITIAL.search(end)
        or _ABBREVIATION.search(end)
        or (first.isdigit() and _BEFORE_NUMBER.search(end))
        or (first.isupper() and _BEFORE_NAME.search(end))
        or (len(part) <= _MAX_WORD and (_LABEL.match(part) or _OPENING.match(part)))
        # A quotation whose speaker follows.
        or (len(part) > 1 and _QUOTATION.get(part[0]) == part[-1])
    )


def _spaced(previous: str, part: str) -> bool:
    """Return whether two parts had whitespace between them: scripts such as Chinese have none."""
    return not (_is_wide(previous[-1]) or _is_wide(part[0]))


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in ("W", "F")


def _join_wordless(units: Sequence[str]) -> list[str]:
    """Join units without a word, such as list numbers, with the next unit, the last one with the unit before it."""
    joined: list[str] = []
    pending: list[str] = []
    for unit in units:
        pending.append(unit)
        if any(letter.isalpha() for letter in unit):
            joined.append(" ".join(pending))
            pending = []
    if pending and joined:
        joined[-1] = " ".join([joined[-1], *pending])
    elif pending:
        joined.append(" ".join(pending))
    return joined
