"""Verdicts: read after the rationale, at the token that follows the last `Verdict:` that is not a quotation.

    s = p(Yes) / (p(Yes) + p(No)),   p summed over the token forms of each word

after GenRM (arXiv 2408.15240). p(Yes) + p(No) is the verdict's mass; a small mass means that the model was not
answering. A pairwise judge writes A, B, or C for a tie (as in MT-Bench, arXiv 2306.05685), and

    s = (p(A) + p(C) / 2) / (p(A) + p(B) + p(C))

is its probability that response A is the better one. An unreadable verdict has no score: it abstains and never counts
as 0. Pure functions.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlgenrm_ray.engines.contracts import Sample, Token
from vlgenrm_ray.records import JudgeCritique, Side

YES = "Yes"
NO = "No"


@dataclass(frozen=True, slots=True)
class VerdictWords:
    """Words in which a judge writes its verdict. Each must be a single token of the model's tokenizer."""

    better: str
    """Verdict with the score 1: the response is right, or response A is the better one."""
    worse: str
    """Verdict with the score 0."""
    tie: str = ""
    """Verdict with the score 1/2; "" if there is none."""

    @property
    def tracked(self) -> tuple[str, ...]:
        """Words whose probabilities the engine must return (`Sampling.tracked_words`) for a verdict to be readable."""
        return tuple(filter(None, (self.better, self.worse, self.tie)))


YES_NO = VerdictWords(YES, NO)
"""Verdicts of a pointwise judge."""
A_OR_B = VerdictWords("A", "B", "C")
"""Verdicts of a pairwise judge: the better response, or C for a tie. A single letter is one token of any tokenizer."""
TRACKED_WORDS = YES_NO.tracked
TIE = "tie"
"""Name of the verdict C, as critiques record it."""
VERDICT_SCORES = {"yes": 1.0, "no": 0.0, "a": 1.0, "b": 0.0, TIE: 0.5}
"""Recorded verdict -> its score."""
PAIR_VERDICTS = ("a", "b", TIE)
"""Recorded verdicts of a pairwise judge."""

MARKER = re.compile(r"\bverdict\b[\s*_]*:[\s*_]*", re.IGNORECASE)
"""Label of a verdict as models write it: `Verdict: Yes`, `**Verdict:** Yes`, `verdict : no`.

`escaping.escape_prompt_text` removes it from everything that a judge is shown and may quote."""
_LETTERS = re.compile(r"[^\W\d_]+")

Aggregator = Literal["mean", "vote", "weighted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict of one critique, or why it is unreadable."""

    word: str | None
    """`yes` or `no`, or `a`, `b` or `tie`, as written; None if unreadable."""
    p_yes: float | None
    """s as defined above; None if unreadable."""
    mass: float
    """Probability of all verdict words at the verdict's position; 0 without a position, or if it is not finite."""
    problem: str = ""
    """Reason if unreadable: `no marker`, `cut off`, `not a number`, `small mass` or `no word`."""


def read_verdict(sample: Sample, *, min_mass: float = 0.0, words: VerdictWords = YES_NO) -> Verdict:
    """Read the verdict of a complete critique, at the token after its last marker."""
    position = find_verdict(sample.tokens)
    if position is None:
        return Verdict(word=None, p_yes=None, mass=0.0, problem="no marker")
    tail = "".join(t.text for t in sample.tokens[position + 1 :])
    # Cut off at max_tokens: a marker followed by more words may be a quotation rather than the verdict.
    if position == len(sample.tokens) or (sample.finish == "length" and _LETTERS.search(tail)):
        return Verdict(word=None, p_yes=None, mass=0.0, problem="cut off")
    return read_verdict_token(sample.tokens[position], min_mass=min_mass, words=words)


def read_direct(sample: Sample, *, min_mass: float = 0.0, words: VerdictWords = YES_NO) -> Verdict:
    """Read the verdict at the first word, as in the direct mode or after a prefix that ends in the marker."""
    for token in sample.tokens:
        if token.text.strip(" \t\n*_"):
            return read_verdict_token(token, min_mass=min_mass, words=words)
    return Verdict(word=None, p_yes=None, mass=0.0, problem="cut off")


def read_verdict_token(token: Token, *, min_mass: float = 0.0, words: VerdictWords = YES_NO) -> Verdict:
    """Read the verdict at one token."""
    p_better, p_worse = token.tracked_probabilities[words.better], token.tracked_probabilities[words.worse]
    p_tie = token.tracked_probabilities[words.tie] if words.tie else 0.0
    mass = p_better + p_worse + p_tie
    if not math.isfinite(mass):
        return Verdict(word=None, p_yes=None, mass=0.0, problem="not a number")
    if mass <= 0.0 or mass < min_mass:
        return Verdict(word=None, p_yes=None, mass=mass, problem="small mass")
    letters = _LETTERS.search(token.text)
    word = letters[0].casefold() if letters else ""
    if word not in {tracked.casefold() for tracked in words.tracked}:
        return Verdict(word=None, p_yes=None, mass=mass, problem="no word")
    name = TIE if word == words.tie.casefold() else word
    return Verdict(word=name, p_yes=(p_better + p_tie / 2) / mass, mass=mass)


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


def score_name(verdict: str | None) -> str:
    """Name the score of a recorded verdict, for people: `p(Yes)`, or `p(A)` of a pairwise judge."""
    return "p(A)" if verdict in PAIR_VERDICTS else "p(Yes)"


def is_right_verdict(verdict: str | None, side: Side) -> bool:
    """Check a recorded verdict: yes, or a, is right about a chosen response, and no, or b, about a rejected one."""
    score = None if verdict is None else VERDICT_SCORES.get(verdict)
    return score == (1.0 if side is Side.CHOSEN else 0.0)


def aggregate(critiques: Sequence[JudgeCritique], how: Aggregator) -> float | None:
    """Compute the reward of a response from its critiques, in [0, 1]; None if none is readable."""
    return {"mean": mean, "vote": vote, "weighted": weighted_vote}[how](critiques)


def mean(critiques: Sequence[JudgeCritique]) -> float | None:
    """Average s over the readable critiques: r = mean_k s_k, as in GenRM."""
    scores = [c.p_yes for c in critiques if c.p_yes is not None]
    return math.fsum(scores) / len(scores) if scores else None


def vote(critiques: Sequence[JudgeCritique]) -> float | None:
    """Compute the share of "yes", or of "a" and half the ties, among the readable critiques."""
    scores = [VERDICT_SCORES[c.verdict] for c in critiques if c.verdict is not None]
    return math.fsum(scores) / len(scores) if scores else None


def weighted_vote(critiques: Sequence[JudgeCritique]) -> float | None:
    """Average s over the readable critiques, each weighted by its confidence: r = sum_k w_k s_k / sum_k w_k.

    w_k = |2 s_k - 1| is the distance of a verdict from the undecided 1/2, in [0, 1]. 1/2 if all are undecided.
    """
    scores = [c.p_yes for c in critiques if c.p_yes is not None]
    weights = [abs(2.0 * s - 1.0) for s in scores]
    if not scores:
        return None
    total = math.fsum(weights)
    return math.fsum(w * s for w, s in zip(weights, scores, strict=True)) / total if total else 0.5


def is_settled(critiques: Sequence[JudgeCritique], max_deviation: float) -> bool:
    """Return whether further critiques would hardly move the mean of s.

    The readable critiques are taken as votes of size s for Yes and 1 - s for No. With a uniform prior the mean has the
    posterior Beta(1 + sum s, 1 + sum (1 - s)), as in adaptive self-consistency (arXiv 2305.11860); it is settled if the
    standard deviation of that distribution is at most `max_deviation`. Unlike the standard error it is not 0 when the
    first two critiques happen to agree.
    """
    scores = [c.p_yes for c in critiques if c.p_yes is not None]
    yes, no = 1.0 + math.fsum(scores), 1.0 + math.fsum(1.0 - s for s in scores)
    total = yes + no
    return math.sqrt(yes * no / (total * total * (total + 1.0))) <= max_deviation


_LOGIT_OF_1 = 38.0
"""Log-odds of the reward 1, above those of every other float in [0, 1): log(2^53) is 36.7."""
_LOGIT_OF_0 = -800.0
"""Log-odds of the reward 0, below those of every other float."""


def reward_logit(reward: float) -> float:
    """Return the log-odds of a reward in [0, 1]; finite at 0 and 1."""
    if reward <= 0.0:
        return _LOGIT_OF_0
    return _LOGIT_OF_1 if reward >= 1.0 else math.log(reward) - math.log1p(-reward)


def calibrate_reward(reward: float, temperature: float, bias: float = 0.0) -> float:
    """Calibrate a reward in [0, 1]: sigmoid((logit(r) - bias) / T) (Platt 1999; bias 0: arXiv 1706.04599).

    The function is monotone, so it changes the distances of rewards, never their order.
    """
    if temperature == 1.0 and bias == 0.0:
        return reward
    logit = (reward_logit(reward) - bias) / temperature
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(max(logit, _LOGIT_OF_0))
    return odds / (1.0 + odds)
