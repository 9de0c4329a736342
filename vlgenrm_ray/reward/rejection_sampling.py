"""Margin-based rejection sampling over one pair's K x K combinations of critiques, with its ablations.

A combination is one critique of the chosen response and one of the rejected; of a pairwise judge, one critique of the
pair with the chosen response shown first and one with the rejected response first. A strategy is a filter on
combinations, an order and a limit, so an ablation differs from the method in exactly what its name says:

    strategy        both verdicts right   margin >= tau   order            limit
    mrs             yes                   yes             largest margin   top_n
    correct_only    yes                   no              random           none
    random_correct  yes                   no              random           top_n
    reward_ranked   no                    no              largest margin   top_n
    keep_all        no                    no              random           none

`correct_only` is RFT's rule (arXiv 2308.01825), `reward_ranked` RAFT's (arXiv 2304.06767), applied to pairs.
No rationale is used twice on a side: even without a limit a pair gives at most as many combinations as its
smaller side has critiques, and therefore as many critiques of the chosen response as of the rejected one.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge.verdict import is_right_verdict
from vlgenrm_ray.records import Critique, Side
from vlgenrm_ray.rewards.critique_checks import cut_after_verdict


class Strategy(StrEnum):
    """Rule by which combinations are selected; see the table in the module docstring."""

    MRS = "mrs"
    KEEP_ALL = "keep_all"
    CORRECT_ONLY = "correct_only"
    RANDOM_CORRECT = "random_correct"
    REWARD_RANKED = "reward_ranked"


class MarginScale(StrEnum):
    """Scale on which the margin between two critiques is measured."""

    PROBABILITY = "probability"
    LOG_ODDS = "log_odds"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """One row of the strategy table."""

    requires_right_verdict: bool
    requires_margin: bool
    is_ranked: bool
    is_limited: bool


SELECTION_RULES = {
    Strategy.MRS: SelectionRule(requires_right_verdict=True, requires_margin=True, is_ranked=True, is_limited=True),
    Strategy.CORRECT_ONLY: SelectionRule(
        requires_right_verdict=True, requires_margin=False, is_ranked=False, is_limited=False
    ),
    Strategy.RANDOM_CORRECT: SelectionRule(
        requires_right_verdict=True, requires_margin=False, is_ranked=False, is_limited=True
    ),
    Strategy.REWARD_RANKED: SelectionRule(
        requires_right_verdict=False, requires_margin=False, is_ranked=True, is_limited=True
    ),
    Strategy.KEEP_ALL: SelectionRule(
        requires_right_verdict=False, requires_margin=False, is_ranked=False, is_limited=False
    ),
}


CRITIQUE_FAULTS = {
    DropReason.UNREADABLE_VERDICT: "no readable verdict, or more than one",
    DropReason.UNFAITHFUL_CRITIQUE: "does not follow the claims of the response",
    DropReason.CONTRADICTED_CRITIQUE: "makes a statement about the image that the experts contradict",
    DropReason.WRONG_VERDICT: "the verdict is wrong",
}
"""Faults of a single critique, in the order in which they are tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A critique of the chosen response paired with one of the rejected response."""

    chosen: Critique
    rejected: Critique
    margin: float
    """Margin in [-1, 1]; positive if the chosen response is rewarded more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedCritique:
    """A critique that is not trained on, with the reason."""

    critique: Critique
    reason: DropReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSelection:
    """Result of the selection for one pair. Each of its critiques is in `selected` or in `dropped`, never in both."""

    selected: tuple[Combination, ...]
    dropped: tuple[DroppedCritique, ...]
    failure: DropReason | None
    """Reason if nothing was selected: the first test after which a side, or the pair, had nothing left."""


def margin(p_chosen: float, p_rejected: float, scale: MarginScale) -> float:
    """Compute the reward margin m = s(c+) - s(c-) of two critiques, in [-1, 1].

    On the log-odds scale it is tanh(l / 4) with l = logit(p_chosen) - logit(p_rejected): the probability margin
    of the pair with the same l that is symmetric about one half, so `tau` means the same on both scales.
    """
    if scale is MarginScale.PROBABILITY:
        return p_chosen - p_rejected
    return math.tanh((_logit(p_chosen) - _logit(p_rejected)) / 4)


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def is_readable(critique: Critique, min_mass: float) -> bool:
    """Check that exactly one verdict was read, with at least `min_mass` probability on all verdict words together."""
    p_yes = critique.p_yes
    return (
        critique.verdict is not None
        and p_yes is not None
        and math.isfinite(p_yes)
        and critique.verdict_mass >= min_mass
        and cut_after_verdict(critique.text) is not None
    )


def is_right(critique: Critique) -> bool:
    """Check that the verdict is the right one about the critique's side."""
    return is_right_verdict(critique.verdict, critique.side)


def combinations(critiques: Iterable[Critique], scale: MarginScale) -> list[Combination]:
    """List all combinations of readable critiques, in the order of the chosen side, then of the rejected side."""
    sides: dict[Side, list[tuple[Critique, float]]] = {Side.CHOSEN: [], Side.REJECTED: []}
    for critique in critiques:
        if critique.p_yes is not None:
            sides[critique.side].append((critique, critique.p_yes))
    return [
        Combination(chosen=chosen, rejected=rejected, margin=margin(p_chosen, p_rejected, scale))
        for chosen, p_chosen in sides[Side.CHOSEN]
        for rejected, p_rejected in sides[Side.REJECTED]
    ]


def select_combinations(
    critiques: Sequence[Critique],
    text_faults: Mapping[str, DropReason],
    *,
    strategy: Strategy,
    scale: MarginScale,
    tau: float,
    top_n: int,
    min_mass: float,
    seed: int,
) -> PairSelection:
    """Apply a strategy to the critiques of one pair.

    Random choices depend on `seed` and the pair's id alone, so batching does not change them.

    Args:
        critiques: All critiques of both sides of one pair.
        text_faults: Critique id -> fault found in its text (see `critique_checks`).
        strategy: Row of the strategy table.
        scale: Scale of the margin.
        tau: Smallest margin of a combination, in [0, 1]; used by `mrs` only.
        top_n: Largest number of combinations of a limited strategy.
        min_mass: Smallest p(Yes) + p(No) of a readable critique.
        seed: Seed of the random order.
    """
    rule = SELECTION_RULES[strategy]

    def fault(critique: Critique) -> DropReason | None:
        if not is_readable(critique, min_mass):
            return DropReason.UNREADABLE_VERDICT
        if critique.id in text_faults:
            return text_faults[critique.id]
        return DropReason.WRONG_VERDICT if rule.requires_right_verdict and not is_right(critique) else None

    faults = [(critique, fault(critique)) for critique in critiques]
    usable = [critique for critique, reason in faults if reason is None]
    dropped = [
        DroppedCritique(critique=c, reason=reason, detail=CRITIQUE_FAULTS[reason])
        for c, reason in faults
        if reason is not None
    ]
    failure = _first_emptying_test(faults)
    if failure is not None:
        detail = "the other side has no usable critique to combine it with"
        dropped += [DroppedCritique(critique=c, reason=failure, detail=detail) for c in usable]
        return PairSelection(selected=(), dropped=tuple(dropped), failure=failure)

    candidates = [c for c in combinations(usable, scale) if not rule.requires_margin or c.margin >= tau]
    if rule.is_ranked:
        candidates.sort(key=lambda c: (-c.margin, c.chosen.id, c.rejected.id))
    else:
        random.Random(f"{seed} {critiques[0].preference_id}").shuffle(candidates)
    selected = take_distinct(candidates, limit=top_n if rule.is_limited else len(usable))
    selected_ids, candidate_ids = _critique_ids(selected), _critique_ids(candidates)
    dropped += [
        DroppedCritique(critique=c, reason=DropReason.OVER_LIMIT, detail="other combinations of the pair were selected")
        if c.id in candidate_ids
        else DroppedCritique(critique=c, reason=DropReason.SMALL_MARGIN, detail=f"no margin of {tau} or more")
        for c in usable
        if c.id not in selected_ids
    ]
    failure = None if selected else DropReason.SMALL_MARGIN
    return PairSelection(selected=selected, dropped=tuple(dropped), failure=failure)


def _first_emptying_test(faults: Sequence[tuple[Critique, DropReason | None]]) -> DropReason | None:
    """Return the first fault, in the order of `CRITIQUE_FAULTS`, that leaves a side without critiques, or None."""
    remaining = list(faults)
    for test in CRITIQUE_FAULTS:
        remaining = [(critique, reason) for critique, reason in remaining if reason is not test]
        if {critique.side for critique, _ in remaining} != set(Side):
            return test
    return None


def _critique_ids(pairs: Iterable[Combination]) -> set[str]:
    return {critique.id for pair in pairs for critique in (pair.chosen, pair.rejected)}


def take_distinct(ordered: Iterable[Combination], limit: int) -> tuple[Combination, ...]:
    """Take the first `limit` combinations, skipping any whose rationale was already taken on its side.

    Two samples with the same text count as the same rationale.
    """
    taken: list[Combination] = []
    taken_texts: set[tuple[Side, str]] = set()
    for pair in ordered:
        texts = {(Side.CHOSEN, pair.chosen.text.strip()), (Side.REJECTED, pair.rejected.text.strip())}
        if len(taken) < limit and not texts & taken_texts:
            taken.append(pair)
            taken_texts |= texts
    return tuple(taken)
