"""The OCR expert: checks claims about text in the image ("the sign says STOP") against the text that is read there.

A claim is supported if the text is read, letter by letter but for case, spaces and punctuation. It is contradicted only
by positive evidence: the image has one or two lines of text, read with confidence, that are clearly other text. Nothing
read, many lines, or a similar text (a misread letter) leave it unknown: small text is easily missed.
"""

from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from vlgenrm_ray import plugins
from vlgenrm_ray.engines.contracts import TextLine, TextReader
from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask
from vlgenrm_ray.records import Box, Claim, ClaimKind, Finding, Truth

READERS = {"rapidocr": "vlgenrm_ray.engines.ocr:RapidOcrReader"}
"""Name of a reader -> class, constructed with the expert's further options."""
_MAX_LINES = 2
"""Most lines of an image whose text may contradict a claim."""
_SIMILAR = 0.6
"""Similarity of two texts, in [0, 1], from which one may be the other misread."""


class OcrExpert:
    """Reads the images about whose text there are claims."""

    def __init__(
        self,
        config: ExpertPipelineConfig,
        *,
        reader: str = "rapidocr",
        sure: float = 0.9,
        text_reader: TextReader | None = None,
        **options: Any,
    ) -> None:
        """Load the reader.

        Args:
            config: Settings of all experts.
            reader: A name of `READERS`, or an import path `package.module:Class` of a `contracts.TextReader`.
            sure: Confidence from which a line can contradict a claim.
            text_reader: Loaded reader, in place of `reader`.
            options: Keyword arguments of the reader.
        """
        self._reader: TextReader = text_reader or plugins.load(reader, READERS, "ocr.reader")(**options)
        self._sure = sure

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Add findings on claims about text. See `Expert`."""
        claims_of = [[c for of_text in task.claims for c in of_text if _is_about_text(c)] for task in tasks]
        asked = [i for i, claims in enumerate(claims_of) if claims]
        lines_of = dict(zip(asked, self._reader.read([tasks[i].image() for i in asked]), strict=True)) if asked else {}
        examined = list(tasks)
        for i, lines in lines_of.items():
            scaled = [replace(line, box=line.box.scaled(*tasks[i].scale)) for line in lines]
            findings = (check_text(claim, scaled, self._sure) for claim in claims_of[i])
            examined[i] = replace(tasks[i], findings=(*tasks[i].findings, *findings))
        return examined


def check_text(claim: Claim, lines: Sequence[TextLine], sure: float) -> Finding:
    """Decide a claim about text from the lines that were read in the image.

    Args:
        claim: Claim of the kind `text`; `value` is the text.
        lines: Lines in reading order.
        sure: Confidence from which a line can contradict the claim.

    Returns:
        The finding, with the boxes of the lines that decide.
    """
    wanted = _letters(claim.value)
    if match := _find(wanted, lines):
        return _finding(claim, Truth.SUPPORTED, min(line.box.score for line in match), [line.box for line in match])
    readings = [_letters(line.text) for line in lines]
    nearest = max((SequenceMatcher(None, wanted, text).ratio() for text in [*readings, "".join(readings)]), default=1.0)
    score = min((line.box.score for line in lines), default=0.0)
    if not lines or len(lines) > _MAX_LINES or nearest >= _SIMILAR or score < sure:
        return _finding(claim, Truth.UNKNOWN, 0.0, ())
    return _finding(claim, Truth.CONTRADICTED, score * (1 - nearest), [line.box for line in lines])


def _find(wanted: str, lines: Sequence[TextLine]) -> Sequence[TextLine]:
    """Return the fewest neighbouring lines whose words contain the text: "MAIN" is not in "DOMAIN"."""
    for length in range(1, len(lines) + 1):
        for start in range(len(lines) - length + 1):
            words = [_letters(word) for line in lines[start : start + length] for word in line.text.split()]
            words = [word for word in words if word]
            for first in range(len(words)):
                joined = ""
                for word in words[first:]:
                    joined += word
                    if joined == wanted:
                        return lines[start : start + length]
                    if len(joined) > len(wanted):
                        break
    return ()


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _is_about_text(claim: Claim) -> bool:
    return claim.kind is ClaimKind.TEXT and not claim.hedged and bool(_letters(claim.value))


def _finding(claim: Claim, truth: Truth, score: float, boxes: Sequence[Box]) -> Finding:
    negated = {Truth.SUPPORTED: Truth.CONTRADICTED, Truth.CONTRADICTED: Truth.SUPPORTED}
    truth = negated.get(truth, truth) if claim.negated else truth
    return Finding(claim=claim, truth=truth, expert="ocr", score=score, boxes=tuple(boxes))
