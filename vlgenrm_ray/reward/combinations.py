"""Which of a pair's K x K combinations of critiques are kept: margin-based rejection sampling, its ablations.

A combination is one critique of the chosen response and one of the rejected. Every strategy is a filter on
them, an order and a limit, so that an ablation differs from the method in exactly what its name says:

    strategy        both verdicts right   margin >= tau   order            limit
    mrs             yes                   yes             largest margin   top_n
    correct_only    yes                   no              by chance        none
    random_correct  yes                   no              by chance        top_n
    reward_ranked   no                    no              largest margin   top_n
    keep_all        no                    no              by chance        none

`correct_only` is RFT's rule (arXiv 2308.01825), `reward_ranked` RAFT's (arXiv 2304.06767), applied to pairs.
No rationale is used twice on a side: even without a limit a pair gives at most as many combinations as its
poorer side has critiques, and so as many critiques of the chosen response as of the rejected.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Critique, Side
from vlgenrm_ray.reward.critique_text import cut_after_verdict


class Strategy(StrEnum):
    MRS = "mrs"
    KEEP_ALL = "keep_all"
    CORRECT_ONLY = "correct_only"
    RANDOM_CORRECT = "random_correct"
    REWARD_RANKED = "reward_ranked"


class MarginScale(StrEnum):
    PROBABILITY = "probability"
    LOG_ODDS = "log_odds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the table above."""

    right: bool
    tau: bool
    ranked: bool
    limited: bool


RULES = {
    Strategy.MRS: Rule(right=True, tau=True, ranked=True, limited=True),
    Strategy.CORRECT_ONLY: Rule(right=True, tau=False, ranked=False, limited=False),
    Strategy.RANDOM_CORRECT: Rule(right=True, tau=False, ranked=False, limited=True),
    Strategy.REWARD_RANKED: Rule(right=False, tau=False, ranked=True, limited=True),
    Strategy.KEEP_ALL: Rule(right=False, tau=False, ranked=False, limited=False),
}


FAULTS = {
    DropReason.UNREADABLE_VERDICT: "no verdict to read, or more than one",
    DropReason.UNFAITHFUL_CRITIQUE: "does not go through what the response claims",
    DropReason.CONTRADICTED_CRITIQUE: "says of the image what the experts refute",
    DropReason.WRONG_VERDICT: "the verdict is wrong",
}
"""What a critique alone can fail by, in the order of the tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A critique of the chosen response beside one of the rejected."""

    chosen: Critique
    rejected: Critique
    margin: float
    """In [-1, 1]; positive where the pair is told apart the right way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A critique that is not trained on, and why."""

    critique: Critique
    reason: DropReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What became of one pair. Each of its critiques stands in `kept` or in `lost`, never in both."""

    kept: tuple[Combination, ...]
    lost: tuple[Lost, ...]
    failure: DropReason | None
    """Why nothing was kept: the first test after which a side, or the pair, had nothing left."""


def margin(p_chosen: float, p_rejected: float, scale: MarginScale) -> float:
    """The reward margin m = s(c+) - s(c-) of two critiques, in [-1, 1].

    On the log-odds scale it is tanh(l / 4) with l = logit(p_chosen) - logit(p_rejected): the probability margin
    of a pair with that l that lies symmetric about one half, so `tau` and the histogram mean alike on both.
    """
    if scale is MarginScale.PROBABILITY:
        return p_chosen - p_rejected
    return math.tanh((_logit(p_chosen) - _logit(p_rejected)) / 4)


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def is_readable(critique: Critique, min_mass: float) -> bool:
    """Whether one verdict was read, with enough probability on Yes and No together; otherwise it abstains."""
    p_yes = critique.p_yes
    return (
        critique.verdict is not None
        and p_yes is not None
        and math.isfinite(p_yes)
        and critique.verdict_mass >= min_mass
        and cut_after_verdict(critique.text) is not None
    )


def is_right(critique: Critique) -> bool:
    """Whether the verdict written is yes for a chosen response, no for a rejected one."""
    return critique.verdict == ("yes" if critique.side is Side.CHOSEN else "no")


def combinations(critiques: Iterable[Critique], scale: MarginScale) -> list[Combination]:
    """All combinations of readable critiques, the chosen side's order outermost."""
    sides: dict[Side, list[tuple[Critique, float]]] = {Side.CHOSEN: [], Side.REJECTED: []}
    for critique in critiques:
        if critique.p_yes is not None:
            sides[critique.side].append((critique, critique.p_yes))
    return [
        Combination(chosen=chosen, rejected=rejected, margin=margin(p_chosen, p_rejected, scale))
        for chosen, p_chosen in sides[Side.CHOSEN]
        for rejected, p_rejected in sides[Side.REJECTED]
    ]


def select(
    critiques: Sequence[Critique],
    misread: Mapping[str, DropReason],
    *,
    strategy: Strategy,
    scale: MarginScale,
    tau: float,
    top_n: int,
    min_mass: float,
    seed: int,
) -> Selection:
    """Apply a strategy to the critiques of one pair; `misread` says by id what is wrong with a critique's own text.

    Chance depends on `seed` and the pair's id alone, so it is the same in whatever batch the pair arrives.
    """
    rule = RULES[strategy]

    def fault(critique: Critique) -> DropReason | None:
        if not is_readable(critique, min_mass):
            return DropReason.UNREADABLE_VERDICT
        if critique.id in misread:
            return misread[critique.id]
        return DropReason.WRONG_VERDICT if rule.right and not is_right(critique) else None

    faults = [(critique, fault(critique)) for critique in critiques]
    fit = [critique for critique, reason in faults if reason is None]
    lost = [Lost(critique=c, reason=r, detail=FAULTS[r]) for c, r in faults if r is not None]
    failure = _failure(faults)
    if failure is not None:
        detail = "no critique of the other side to set it against"
        lost += [Lost(critique=c, reason=failure, detail=detail) for c in fit]
        return Selection(kept=(), lost=tuple(lost), failure=failure)

    candidates = [c for c in combinations(fit, scale) if not rule.tau or c.margin >= tau]
    if rule.ranked:
        candidates.sort(key=lambda c: (-c.margin, c.chosen.id, c.rejected.id))
    else:
        random.Random(f"{seed} {critiques[0].preference.id}").shuffle(candidates)
    kept = without_repeats(candidates, limit=top_n if rule.limited else len(fit))
    used, reached = _ids(kept), _ids(candidates)
    lost += [
        Lost(critique=c, reason=DropReason.OVER_LIMIT, detail="others of the pair were kept")
        if c.id in reached
        else Lost(critique=c, reason=DropReason.SMALL_MARGIN, detail=f"no margin of {tau} or more")
        for c in fit
        if c.id not in used
    ]
    return Selection(kept=kept, lost=tuple(lost), failure=None if kept else DropReason.SMALL_MARGIN)


def _failure(faults: Sequence[tuple[Critique, DropReason | None]]) -> DropReason | None:
    """The first test, in the order of `FAULTS`, after which a side has no critique left; None if both have."""
    left = list(faults)
    for test in FAULTS:
        left = [(critique, reason) for critique, reason in left if reason is not test]
        if {critique.side for critique, _ in left} != set(Side):
            return test
    return None


def _ids(pairs: Iterable[Combination]) -> set[str]:
    return {critique.id for pair in pairs for critique in (pair.chosen, pair.rejected)}


def without_repeats(ordered: Iterable[Combination], limit: int) -> tuple[Combination, ...]:
    """The first `limit` combinations, passing over any whose rationale was already taken on its side.

    Two samples with the same text are the same rationale.
    """
    kept: list[Combination] = []
    taken: set[tuple[Side, str]] = set()
    for pair in ordered:
        texts = {(Side.CHOSEN, pair.chosen.text.strip()), (Side.REJECTED, pair.rejected.text.strip())}
        if len(kept) < limit and not texts & taken:
            kept.append(pair)
            taken |= texts
    return tuple(kept)
