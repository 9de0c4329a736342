"""Margin-based rejection sampling and its ablations on one pair, against brute force."""

import itertools
import math

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Critique, Side
from vlgenrm_ray.reward.rejection_sampling import (
    SELECTION_RULES,
    MarginScale,
    PairSelection,
    Strategy,
    combinations,
    is_right,
    margin,
    select_combinations,
)

# Sixteenths are exact in binary, so that mirrored margins are equal and not merely close.
probabilities = st.integers(0, 16).map(lambda n: n / 16)
words = st.sampled_from(["yes", "no", None])


def critique(side: Side, index: int, word: str | None, p_yes: float, text: str | None = None) -> Critique:
    written = text or f"Claim {index} of {side.value}.\nVerdict: {(word or 'maybe').capitalize()}"
    return factories.critique(
        f"q0/p0/{side.value}/c{index}",
        side=side,
        verdict=word,
        p_yes=None if word is None else p_yes,
        text=written,
    )


@st.composite
def pairs(draw: st.DrawFn, verdicts: st.SearchStrategy[str | None] = words) -> list[Critique]:
    return [
        critique(side, i, draw(verdicts), draw(probabilities))
        for side in Side
        for i in range(draw(st.integers(0, 4), label=f"critiques of {side}"))
    ]


def apply(
    critiques: list[Critique],
    strategy: Strategy = Strategy.MRS,
    tau: float = 0.25,
    top_n: int = 1,
    contradicted: str = "",
) -> PairSelection:
    return select_combinations(
        critiques,
        dict.fromkeys(contradicted.split(), DropReason.CONTRADICTED_CRITIQUE),
        strategy=strategy,
        scale=MarginScale.PROBABILITY,
        tau=tau,
        top_n=top_n,
        min_mass=0.1,
        seed=0,
    )


def selected_critiques(selection: PairSelection) -> list[Critique]:
    return [c for pair in selection.selected for c in (pair.chosen, pair.rejected)]


@given(pairs())
def test_all_combinations_are_enumerated(critiques: list[Critique]) -> None:
    expected = {
        (a.id, b.id): a.p_yes - b.p_yes
        for a, b in itertools.product(critiques, critiques)
        if a.side is Side.CHOSEN and b.side is Side.REJECTED and a.p_yes is not None and b.p_yes is not None
    }
    enumerated = combinations(critiques, MarginScale.PROBABILITY)
    assert {(c.chosen.id, c.rejected.id): c.margin for c in enumerated} == expected
    assert len(enumerated) == len(expected)


@given(pairs(), probabilities)
def test_mrs_selects_the_largest_margin_of_all_that_qualify(critiques: list[Critique], tau: float) -> None:
    right = [c for c in critiques if c.verdict == ("yes" if c.side is Side.CHOSEN else "no")]
    margins = [c.margin for c in combinations(right, MarginScale.PROBABILITY) if c.margin >= tau]
    selected = apply(critiques, tau=tau).selected
    assert [c.margin for c in selected] == sorted(margins)[-1:]


@given(pairs(), st.sampled_from(Strategy), probabilities, st.integers(1, 4))
def test_every_critique_is_selected_or_dropped_with_a_reason(
    critiques: list[Critique], strategy: Strategy, tau: float, top_n: int
) -> None:
    selection = apply(critiques, strategy, tau, top_n)
    ids = [c.id for c in selected_critiques(selection)] + [d.critique.id for d in selection.dropped]
    assert sorted(ids) == sorted(c.id for c in critiques)
    assert (selection.failure is None) == bool(selection.selected)


@given(pairs(), st.sampled_from(Strategy), probabilities, st.integers(1, 4))
def test_a_strategy_follows_its_rule(critiques: list[Critique], strategy: Strategy, tau: float, top_n: int) -> None:
    selected = apply(critiques, strategy, tau, top_n).selected
    rule = SELECTION_RULES[strategy]
    if rule.requires_right_verdict:
        assert all(is_right(c.chosen) and is_right(c.rejected) for c in selected)
    if rule.requires_margin:
        assert all(c.margin >= tau for c in selected)
    if rule.is_limited:
        assert len(selected) <= top_n
    texts = [(c.side, c.text) for pair in selected for c in (pair.chosen, pair.rejected)]
    assert len(texts) == len(set(texts))


@given(pairs(), probabilities, probabilities)
def test_a_larger_tau_selects_no_more(critiques: list[Critique], one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert bool(apply(critiques, tau=low).selected) >= bool(apply(critiques, tau=high).selected)


@given(pairs(), probabilities, st.integers(1, 4))
def test_swapping_the_sides_mirrors_the_selection(critiques: list[Critique], tau: float, top_n: int) -> None:
    other = {Side.CHOSEN: Side.REJECTED, Side.REJECTED: Side.CHOSEN}
    opposite = {"yes": "no", "no": "yes", None: None}
    mirrored = [
        critique(other[c.side], i, opposite[c.verdict], 0.0 if c.p_yes is None else 1.0 - c.p_yes)
        for i, c in enumerate(critiques)
    ]
    here, there = apply(critiques, tau=tau, top_n=top_n), apply(mirrored, tau=tau, top_n=top_n)
    assert [c.margin for c in here.selected] == [c.margin for c in there.selected]
    assert here.failure == there.failure


def test_a_selection_names_critiques_of_the_right_sides() -> None:
    critiques = [critique(Side.CHOSEN, 0, "yes", 0.75), critique(Side.CHOSEN, 1, "yes", 0.875)]
    critiques += [critique(Side.REJECTED, 0, "no", 0.0625), critique(Side.REJECTED, 1, "no", 0.5)]
    (selected,) = apply(critiques).selected
    assert (selected.chosen.id, selected.rejected.id) == ("q0/p0/chosen/c1", "q0/p0/rejected/c0")


def test_equal_texts_are_one_rationale() -> None:
    same = "Claim: x.\nVerdict: Yes"
    critiques = [critique(Side.CHOSEN, i, "yes", 0.9, same) for i in range(3)]
    critiques += [critique(Side.REJECTED, i, "no", 0.1) for i in range(3)]
    assert len(apply(critiques, top_n=3).selected) == 1


def test_strategies_differ_in_their_selection() -> None:
    # The most confident critique of the chosen response has sampled the wrong word.
    critiques = [critique(Side.CHOSEN, i, w, p) for i, (w, p) in enumerate([("yes", 0.8), ("yes", 0.6), ("no", 0.9)])]
    critiques += [critique(Side.REJECTED, i, w, p) for i, (w, p) in enumerate([("no", 0.1), ("no", 0.5), ("yes", 0.7)])]
    selected = {
        strategy: [(c.chosen.id[-2:], c.rejected.id[-2:]) for c in apply(critiques, strategy, tau=0.5).selected]
        for strategy in Strategy
    }
    assert selected[Strategy.MRS] == [("c0", "c0")]
    assert selected[Strategy.REWARD_RANKED] == [("c2", "c0")]
    assert (
        {a for a, _ in selected[Strategy.CORRECT_ONLY]}
        == {"c0", "c1"}
        == {b for _, b in selected[Strategy.CORRECT_ONLY]}
    )
    assert len(selected[Strategy.KEEP_ALL]) == 3
    assert len(selected[Strategy.RANDOM_CORRECT]) == 1
    assert "c2" not in selected[Strategy.RANDOM_CORRECT][0]


@pytest.mark.parametrize(
    ("chosen", "rejected", "contradicted", "reason"),
    [
        ((None, 0.0), ("no", 0.1), "", DropReason.UNREADABLE_VERDICT),
        (("yes", 0.9), ("no", 0.1), "q0/p0/rejected/c0", DropReason.CONTRADICTED_CRITIQUE),
        (("yes", 0.9), ("yes", 0.8), "", DropReason.WRONG_VERDICT),
        (("yes", 0.6), ("no", 0.5), "", DropReason.SMALL_MARGIN),
    ],
)
def test_the_reason_is_the_test_that_emptied_a_side(
    chosen: tuple[str | None, float], rejected: tuple[str | None, float], contradicted: str, reason: DropReason
) -> None:
    selection = apply(
        [critique(Side.CHOSEN, 0, *chosen), critique(Side.REJECTED, 0, *rejected)], contradicted=contradicted
    )
    assert selection.failure is reason
    assert {d.reason for d in selection.dropped} == {reason}


def test_a_verdict_of_little_mass_or_not_a_number_abstains() -> None:
    good = critique(Side.REJECTED, 0, "no", 0.1)
    for broken in ({"verdict_mass": 0.01}, {"p_yes": math.nan}, {"text": "no verdict here"}):
        weak = factories.critique(**broken)
        assert apply([weak, good]).failure is DropReason.UNREADABLE_VERDICT


def test_random_choices_depend_on_the_pair_alone() -> None:
    critiques = [critique(side, i, "yes" if side is Side.CHOSEN else "no", 0.5) for side in Side for i in range(4)]
    first = apply(critiques, Strategy.RANDOM_CORRECT)
    assert first == apply(critiques, Strategy.RANDOM_CORRECT)


@given(probabilities, probabilities)
def test_log_odds_margins_lie_on_the_same_scale(p_chosen: float, p_rejected: float) -> None:
    value = margin(p_chosen, p_rejected, MarginScale.LOG_ODDS)
    assert -1 <= value <= 1
    assert value == pytest.approx(-margin(p_rejected, p_chosen, MarginScale.LOG_ODDS))
    assert (value > 0) == (p_chosen > p_rejected)


@given(st.floats(0.01, 0.99))
def test_a_symmetric_pair_has_the_same_margin_on_both_scales(p: float) -> None:
    expected = margin(p, 1 - p, MarginScale.PROBABILITY)
    assert margin(p, 1 - p, MarginScale.LOG_ODDS) == pytest.approx(expected)
