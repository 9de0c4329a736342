"""What stands in a critique's text: where its verdict ends, and what it says of the image."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vlgenrm_ray.judge.verdict import strip_verdict

_LABEL = re.compile(r"\bverdict\b[\s*_]*:", re.IGNORECASE)
_WORD = re.compile(r"[\W_]*(?:yes|no)\b", re.IGNORECASE)
_AROUND = " \t*_."
_CLAIM = re.compile(r"\bclaim[*_]*:(.*?)(?=\bimage[*_]*:|$)", re.IGNORECASE)
_IMAGE = re.compile(
    r"\bimage[*_]*:(.*?)(?=[.;][\s*_]*\b(?:right|wrong)\b|\b(?:claim|verdict)[*_]*:|$)",
    re.IGNORECASE | re.MULTILINE,
)
_CALLED = re.compile(r"[.;][\s*_]*\b(right|wrong)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a critique that looks at the image: "Claim: ... Image: ... Right."."""

    claim: str
    """What the critique repeats of the response; may be empty."""
    image: str
    """What it says the image shows."""
    right: bool | None
    """What it calls the claim; None where it does not."""


def cut_after_verdict(text: str) -> str | None:
    """A critique as the model wrote it, ended right after the word of its verdict.

    None if it has no verdict, or labels several: the judge reads the last, but it is no example to learn from.
    """
    prefix = strip_verdict(text)
    if prefix is None or len(_LABEL.findall(text)) > 1:
        return None
    word = _WORD.match(text, len(prefix))
    return text[: word.end()] if word else None


def steps(text: str) -> tuple[Step, ...]:
    """The lines that say what the image shows, each with the claim before it and the judgement after it."""
    return tuple(step for line in text.splitlines() for step in _steps(line))


def _steps(line: str) -> Iterator[Step]:
    begin = 0
    for match in _IMAGE.finditer(line):
        claims = _CLAIM.findall(line, begin, match.start())
        called = _CALLED.match(line, match.end())
        begin = match.end()
        if image := match[1].strip(_AROUND):
            right = called[1].casefold() == "right" if called else None
            yield Step(claims[-1].strip(_AROUND) if claims else "", image, right)
