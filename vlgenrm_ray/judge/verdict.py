"""The verdict: read after the rationale, at the token that follows the last `Verdict:`. Pure.

    s = p(Yes) / (p(Yes) + p(No)),   p summed over the token forms of each word

after GenRM (arXiv 2408.15240). `p(Yes) + p(No)` is kept as the verdict's mass: a small one means that the
model was not answering. What cannot be read has no score; it abstains, it is never 0.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlgenrm_ray.engines.contracts import Sample, Token

YES = "Yes"
NO = "No"
WATCH = (YES, NO)
"""What `Sampling.watch` must hold for a verdict to be readable."""

# The label as models write it: `Verdict: Yes`, `**Verdict:** Yes`, `verdict : no`.
_MARKER = re.compile(r"\bverdict\b[\s*_]*:[\s*_]*", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W\d_]+")

Aggregator = Literal["mean", "vote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one rationale ends in."""

    word: str | None
    """"yes" or "no" as written; None where unreadable."""
    p_yes: float | None
    """s above; None where unreadable."""
    mass: float
    """p(Yes) + p(No) at the verdict's position; 0 where there is none, or where it is not a number."""
    problem: str = ""
    """Why it is unreadable: `no marker`, `cut off`, `not a number`, `small mass`, `no word`."""


def read_verdict(sample: Sample, *, min_mass: float = 0.0) -> Verdict:
    """The verdict of a rationale; `Verdict.problem` says why one is unreadable."""
    position = find(sample.tokens)
    if position is None:
        return Verdict(word=None, p_yes=None, mass=0.0, problem="no marker")
    tail = "".join(t.text for t in sample.tokens[position + 1 :])
    # Cut while still writing: what stands after the marker may be a quotation, not the verdict.
    if position == len(sample.tokens) or (sample.finish == "length" and _LETTERS.search(tail)):
        return Verdict(word=None, p_yes=None, mass=0.0, problem="cut off")
    return read_token(sample.tokens[position], min_mass=min_mass)


def read_direct(sample: Sample, *, min_mass: float = 0.0) -> Verdict:
    """The verdict where it is the first thing written: direct mode, or a prefix ended in the marker."""
    for token in sample.tokens:
        if token.text.strip(" \t\n*_"):
            return read_token(token, min_mass=min_mass)
    return Verdict(word=None, p_yes=None, mass=0.0, problem="cut off")


def read_token(token: Token, *, min_mass: float = 0.0) -> Verdict:
    """The verdict at one position."""
    p_yes, p_no = token.watched[YES], token.watched[NO]
    mass = p_yes + p_no
    if not math.isfinite(mass):
        return Verdict(word=None, p_yes=None, mass=0.0, problem="not a number")
    if mass <= 0.0 or mass < min_mass:
        return Verdict(word=None, p_yes=None, mass=mass, problem="small mass")
    letters = _LETTERS.search(token.text)
    word = letters[0].casefold() if letters else ""
    if word not in (YES.casefold(), NO.casefold()):
        return Verdict(word=None, p_yes=None, mass=mass, problem="no word")
    return Verdict(word=word, p_yes=p_yes / mass, mass=mass)


def find(tokens: Sequence[Token]) -> int | None:
    """Index of the token after the last marker: `len(tokens)` if nothing follows, None without a marker."""
    ends: list[int] = []
    length = 0
    for token in tokens:
        length += len(token.text)
        ends.append(length)
    start = _after_marker("".join(t.text for t in tokens))
    if start is None:
        return None
    return next((i for i, end in enumerate(ends) if end > start), len(tokens))


def strip_verdict(text: str) -> str | None:
    """A rationale up to and with its last marker, as a prefix after which the verdict is to be written."""
    start = _after_marker(text)
    return None if start is None else text[:start].rstrip()


def _after_marker(text: str) -> int | None:
    """Where the last marker ends, blanks and emphasis after it included."""
    ends = [marker.end() for marker in _MARKER.finditer(text)]
    return ends[-1] if ends else None


def aggregate(verdicts: Sequence[Verdict], how: Aggregator) -> float | None:
    """The reward of a response from its rationales' verdicts, in [0, 1]; None where none is readable."""
    return {"mean": mean, "vote": vote}[how](verdicts)


def mean(verdicts: Sequence[Verdict]) -> float | None:
    """Average of s over the readable verdicts: r = mean_k s_k (GenRM's own)."""
    scores = [v.p_yes for v in verdicts if v.p_yes is not None]
    return math.fsum(scores) / len(scores) if scores else None


def vote(verdicts: Sequence[Verdict]) -> float | None:
    """Share of "yes" among the readable verdicts."""
    words = [v.word for v in verdicts if v.word is not None]
    return words.count(YES.casefold()) / len(words) if words else None
