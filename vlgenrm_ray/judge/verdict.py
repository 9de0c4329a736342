"""Verdicts: read after the rationale, at the token that follows the last `Verdict:` that is not a quotation.

    s = p(Yes) / (p(Yes) + p(No)),   p summed over the token forms of each word

after GenRM (arXiv 2408.15240). p(Yes) + p(No) is the verdict's mass; a small mass means that the model was not
answering. An unreadable verdict has no score: it abstains and never counts as 0. Pure functions.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlgenrm_ray.engines.contracts import Sample, Token
from vlgenrm_ray.records import JudgeCritique

YES = "Yes"
NO = "No"
TRACKED_WORDS = (YES, NO)
"""Words whose probabilities the engine must return (`Sampling.tracked_words`) for a verdict to be readable."""

MARKER = re.compile(r"\bverdict\b[\s*_]*:[\s*_]*", re.IGNORECASE)
"""Label of a verdict as models write it: `Verdict: Yes`, `**Verdict:** Yes`, `verdict : no`.

`escaping.escape_prompt_text` removes it from everything that a judge is shown and may quote."""
_LETTERS = re.compile(r"[^\W\d_]+")

Aggregator = Literal["mean", "vote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict of one critique, or why it is unreadable."""

    word: str | None
    """`yes` or `no` as written; None if unreadable."""
    p_yes: float | None
    """s as defined above; None if unreadable."""
    mass: float
    """p(Yes) + p(No) at the verdict's position; 0 without a position, or if it is not finite."""
    problem: str = ""
    """Reason if unreadable: `no marker`, `cut off`, `not a number`, `small mass` or `no word`."""


def read_verdict(sample: Sample, *, min_mass: float = 0.0) -> Verdict:
    """Read the verdict of a complete critique, at the token after its last marker."""
    position = find_verdict(sample.tokens)
    if position is None:
        return Verdict(word=None, p_yes=None, mass=0.0, problem="no marker")
    tail = "".join(t.text for t in sample.tokens[position + 1 :])
    # Cut off at max_tokens: a marker followed by more words may be a quotation rather than the verdict.
    if position == len(sample.tokens) or (sample.finish == "length" and _LETTERS.search(tail)):
        return Verdict(word=None, p_yes=None, mass=0.0, problem="cut off")
    return read_verdict_token(sample.tokens[position], min_mass=min_mass)


def read_direct(sample: Sample, *, min_mass: float = 0.0) -> Verdict:
    """Read the verdict at the first word, as in the direct mode or after a prefix that ends in the marker."""
    for token in sample.tokens:
        if token.text.strip(" \t\n*_"):
            return read_verdict_token(token, min_mass=min_mass)
    return Verdict(word=None, p_yes=None, mass=0.0, problem="cut off")


def read_verdict_token(token: Token, *, min_mass: float = 0.0) -> Verdict:
    """Read the verdict at one token."""
    p_yes, p_no = token.tracked_probabilities[YES], token.tracked_probabilities[NO]
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


def find_verdict(tokens: Sequence[Token]) -> int | None:
    """Find the token after the last marker: `len(tokens)` if nothing follows, None without a marker."""
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
    """Cut a critique after its last marker, as a prefix to read the verdict again; None without a marker."""
    start = _after_marker(text)
    return None if start is None else text[:start].rstrip()


def _after_marker(text: str) -> int | None:
    """Find the end of the last marker that is not a quotation, including blanks and emphasis after it.

    If every marker is in quotation marks, those that begin a line count: some models quote the form that the prompt
    shows.
    """
    markers = [(text[text.rfind("\n", 0, m.start()) + 1 : m.start()], m.end()) for m in MARKER.finditer(text)]
    unquoted = [end for line, end in markers if not _opens_quotation(line)]
    at_line_start = [end for line, end in markers if not _LETTERS.search(line)]
    return next((ends[-1] for ends in (unquoted, at_line_start) if ends), None)


def _opens_quotation(line: str) -> bool:
    """Return whether the beginning of a line opens a quotation that it does not close."""
    opened = any(line.rfind(opening) > line.rfind(closing) for opening, closing in ("\u201c\u201d", "«»", "「」"))
    return opened or line.count('"') % 2 == 1 or line.count("`") % 2 == 1 or line.lstrip().startswith(">")


def aggregate(critiques: Sequence[JudgeCritique], how: Aggregator) -> float | None:
    """Compute the reward of a response from its critiques, in [0, 1]; None if none is readable."""
    return {"mean": mean, "vote": vote}[how](critiques)


def mean(critiques: Sequence[JudgeCritique]) -> float | None:
    """Average s over the readable critiques: r = mean_k s_k, as in GenRM."""
    scores = [c.p_yes for c in critiques if c.p_yes is not None]
    return math.fsum(scores) / len(scores) if scores else None


def vote(critiques: Sequence[JudgeCritique]) -> float | None:
    """Compute the share of "yes" among the readable critiques."""
    words = [c.verdict for c in critiques if c.verdict is not None]
    return words.count(YES.casefold()) / len(words) if words else None
