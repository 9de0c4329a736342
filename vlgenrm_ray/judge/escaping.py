"""Escaping of texts in prompts: nothing that a person or policy writes can pass for the prompt or for a verdict.

A policy that is rewarded by a judge learns to write what the judge takes for its own words: a verdict, a turn of the
conversation, a critique. `escape_prompt_text` blunts everything that `verdict` could read and what looks like it.
Texts are compared by their skeleton (case, width, accents, look-alike letters and invisible characters removed), so
one pattern covers all spellings. Ordinary sentences are returned unchanged: a model judges them as it was trained to.
"""

import re
import unicodedata
from functools import lru_cache

from vlgenrm_ray.judge.chat_templates import TEMPLATE_TOKEN, strip_special_tokens
from vlgenrm_ray.judge.verdict import MARKER

# -- special tokens and characters ---------------------------------------------------------------------------------

_MAX_PASSES = 8
"""Passes over tokens within tokens, such as `<|<|a|>b|>`; bounds the time for deeply nested ones."""
_BAR = re.compile(r"<[|\uff5c]|[|\uff5c]>")
_TOKEN_SIGNS = re.compile(r"[<>|\uff5c\[\]]+")
_LINE_BREAK = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Text in characters that no reader sees: tags (except those of flags) and runs of variation selectors.
_SMUGGLED = re.compile(
    "(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+|[\ufe00-\ufe0f\U000e0100-\U000e01ef]{2,}"
)
# Whitespace is matched only from where it begins: matching from every blank would be quadratic.
_NEWLINE = re.compile(r"(?<!\s)\s*\n\s*")
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Mn", "Me", "Zs", "Zl", "Zp"))
_BLANK_LETTERS = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufffc\ufffd")
"""Letters and symbols without ink: fillers, the empty Braille cell, and what stands for lost characters."""


_PUNCTUATION = ("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sk")
"""Categories of characters that say nothing by themselves: punctuation, and marks such as the backtick."""
_TAG = re.compile(r"</?[A-Za-z][\w-]{0,31}\s{0,8}/?>")
"""A tag without attributes, as policies put around their answers."""


def is_blank(text: str) -> bool:
    """Return whether a text says nothing that could be judged.

    That is, it has no letter, digit or symbol besides special tokens, tags (`<answer></answer>`) and punctuation. A
    single sign may be an answer ("?").
    """
    visible = [
        unicodedata.category(character)
        for character in _TAG.sub("", strip_special_tokens(text))
        if unicodedata.category(character) not in _INVISIBLE and character not in _BLANK_LETTERS
    ]
    return len(visible) != 1 and all(category in _PUNCTUATION for category in visible)


def escape_prompt_text(text: str) -> str:
    """Escape text that could pass for structure of the prompt or for the judge's verdict.

    - Special tokens of chat templates become words in parentheses: `<|im_end|>` becomes `(im_end)`.
    - `Verdict:` becomes `Verdict -` in any spelling, emphasis or language, so that a judge that quotes the text writes
      no verdict.
    - Lines after the first are indented, so that none can pass for a labelled line of the prompt.
    - Characters that hide text from people are removed.

    Returns:
        The text in which `verdict.MARKER` matches nowhere, whatever precedes or follows it. Ordinary sentences are
        unchanged.
    """
    text = _SMUGGLED.sub("", _LINE_BREAK.sub("\n", text))
    text = _blunt_labels(_blunt_tokens(text).strip())
    return _NEWLINE.sub("\n  ", text)


def _blunt_tokens(text: str) -> str:
    for _ in range(_MAX_PASSES):
        blunted = TEMPLATE_TOKEN.sub(_blunt_token, text)
        if blunted == text:
            return text
        text = blunted
    return _BAR.sub(lambda bar: "(" if bar[0][0] == "<" else ")", text)


def _blunt_token(token: re.Match[str]) -> str:
    """Replace a special token by its words in parentheses. With blanks it is no token but code: `x <| y |> z`."""
    return token[0] if " " in token[0] else f"({' '.join(_TOKEN_SIGNS.sub(' ', token[0]).split())})"


# -- skeletons -----------------------------------------------------------------------------------------------------

_LOOKALIKES = str.maketrans(
    # Cyrillic, Greek, phonetic and small capital letters, and Roman numerals.
    "абвгԁеіјкморстухѵαδειντϲροıɪɩɑɡᴄᴅᴇɪɴᴏʀᴛᴠʏѕ",
    "abbrdeijkmopctyxvadeivtcpoiiiagcdeinortvys",
)
_LETTER_SYMBOLS = ((0x1F150, 26), (0x1F170, 26), (0x1F1E6, 26))
"""First code points and numbers of letters in circles, in squares, and of regional indicators."""
_LINE_BREAKS = str.maketrans(dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"))


def skeleton(text: str) -> tuple[str, list[int]]:
    """Return the skeleton of a text, and for each of its characters the index in the text."""
    if text.isascii():
        return text.lower().translate(_LINE_BREAKS), list(range(len(text)))
    plain, places = [], []
    for place, character in enumerate(text):
        for letter in _skeleton_of(character):
            plain.append(letter)
            places.append(place)
    return "".join(plain), places


@lru_cache(maxsize=8192)
def _skeleton_of(character: str) -> str:
    """Return the plain lower-case letters that a character looks like; empty if it is invisible or an accent."""
    for start, count in _LETTER_SYMBOLS:
        if start <= ord(character) < start + count:
            return chr(ord("a") + ord(character) - start)
    pieces = unicodedata.normalize("NFKD", character).casefold()
    letters = "".join(p for p in pieces if unicodedata.category(p) not in ("Mn", "Me", "Cf"))
    return letters.translate(_LOOKALIKES).translate(_LINE_BREAKS)


# -- labels of a verdict -------------------------------------------------------------------------------------------

_LABEL_WORDS = (
    "verdict judgment judgement urteil veredicto veredito verdetto werdykt вердикт решение karar hüküm 판정 판단 "
    "判定 判断 判斷 判决 判決 裁决 裁決 结论 結論 结果 結果 결론 평결 الحكم القرار निर्णय फैसला คำตัดสิน"
)
_ANSWER_WORDS = (
    "yes no true false right wrong correct incorrect ja nein oui non sí si sim não nao да нет tak nie evet hay\u0131r "
    "是 否 对 對 错 錯 正确 正確 错误 錯誤 はい いいえ 正しい 예 네 아니오 아니요 نعم لا हाँ हां नहीं ใช่ ไม่"
)


def _alternatives(words: str) -> str:
    """Return a pattern of the skeletons of words, longest first."""
    plain = {skeleton(word)[0] for word in words.split()}
    return "|".join(sorted(map(re.escape, plain), key=len, reverse=True))


# Quantifiers are possessive (`*+`) where a long run would otherwise be tried from each of its characters.
VERDICT = r"[^\w\n]{0,2}_?".join("verdict")
"""Pattern of the word that `verdict.MARKER` reads, also s p a c e d or with markup within.

Matches skeletons only, as the following patterns do."""
_LABEL = f"(?:{VERDICT}|{_alternatives(_LABEL_WORDS)})"
_ANSWER = f"(?:{_alternatives(_ANSWER_WORDS)})"
COLON = r"[:\u02d0\u02f8\u0589\u05c3\u0703\u0704\u0903\u1365\u1366\u1804\u205a\u2236\u2237\ua789]"
_MARKUP_SIGNS = r"""[\s*_#|~`"'\u201c\u201d\u2018\u2019«»()\[\]{}<>]"""
MARKUP = f"{_MARKUP_SIGNS}*+"
SEPARATOR = f"(?:{MARKUP}(?P<sign>{COLON}|=+>?|[-\u2013\u2014]+>?|[→⇒➜➔]){MARKUP}|{_MARKUP_SIGNS}++)"
"""Pattern between label and answer: a sign, or markup such as the bar of a table or the end of a heading."""

_LABELLED = re.compile(
    # Where the reader reads: a colon of any script.
    f"{VERDICT}{MARKUP}(?P<colon>{COLON})"
    # A label of another form, or in another language, before a yes or no that ends its line.
    rf"|(?P<label>{_LABEL}){SEPARATOR}(?={_ANSWER}[^\w\n]*+(?:\n|\Z))"
    # What follows the text, in the prompt or where the judge quotes it, might begin with a colon.
    rf"|{VERDICT}[\s*_]*+(?P<end>\Z)"
)
_NO_LETTERS = re.compile(r"[\W_]+")
_WORDS = re.compile("|".join(_NO_LETTERS.sub("", skeleton(word)[0]) for word in _LABEL_WORDS.split()))


def has_label(plain: str) -> bool:
    """Return whether a skeleton has the word of a verdict in any spelling: a fast check before the patterns above."""
    return _WORDS.search(_NO_LETTERS.sub("", plain)) is not None


def _blunt_labels(text: str) -> str:
    """Replace the sign after a verdict's label by a dash, as in `Verdict - Yes`."""
    plain, places = skeleton(text)
    if not has_label(plain):
        return text
    written: list[str] = []
    done = 0
    for labelled in _LABELLED.finditer(plain):
        if labelled["end"] is not None:
            written += [text[done:], "."]
            done = len(text)
            break
        sign = "colon" if labelled["colon"] else "sign"
        if labelled[sign] is None:
            start = end = places[labelled.end("label")]
        elif labelled[sign].startswith(("-", "\u2013", "\u2014")):
            continue
        else:
            start, end = places[labelled.start(sign)], places[labelled.end(sign) - 1] + 1
        written += [text[done:start].rstrip(), " - " if text[end : end + 1].isalnum() else " -"]
        done = end
    return MARKER.sub(lambda marker: marker[0].replace(":", " -"), "".join([*written, text[done:]]))


# -- labels of responses -------------------------------------------------------------------------------------------

_RESPONSE_LABEL = re.compile(
    rf"\b(?:response|answer|assistant|reply)s?[\s*_#.\-]{{0,3}}[ab12]{MARKUP}(?P<colon>{COLON})"
)


def blunt_response_labels(text: str) -> str:
    """Replace the colon of labels such as `Response B:` by a dash, in any spelling.

    A pairwise judge's prompt labels its responses so; a response with such a label could pass for two.
    """
    plain, places = skeleton(text)
    written: list[str] = []
    done = 0
    for label in _RESPONSE_LABEL.finditer(plain):
        colon = places[label.start("colon")]
        written += [text[done:colon].rstrip(), " - " if text[colon + 1 : colon + 2].isalnum() else " -"]
        done = colon + 1
    return "".join([*written, text[done:]]) if written else text
