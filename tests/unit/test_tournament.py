"""Tournaments of a pairwise judge: which responses meet, and the rates that follow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.judge.tournament import MAX_OPPONENTS, combine_orders, comparisons, schedule, win_rates


def test_both_orders_are_averaged_so_that_a_position_bias_cancels() -> None:
    assert combine_orders(0.9, 0.1) == pytest.approx(0.9)
    assert combine_orders(0.9, 0.9) == pytest.approx(0.5), "always the first"
    assert combine_orders(0.8, 0.4) == pytest.approx(0.7)
    assert combine_orders(None, 0.4) is combine_orders(0.4, None) is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_swapping_the_responses_gives_the_complement(p_forward: float, p_backward: float) -> None:
    swapped = combine_orders(p_backward, p_forward)
    assert combine_orders(p_forward, p_backward) == pytest.approx(1 - (swapped or 0.0))


@given(st.integers(0, 70))
def test_every_response_meets_all_others_or_eight_of_them(num: int) -> None:
    pairs = schedule(num)
    assert len(set(pairs)) == len(pairs)
    assert all(i < j for i, j in pairs)
    opponents = [sum(index in pair for pair in pairs) for index in range(num)]
    assert opponents == [min(max(num - 1, 0), MAX_OPPONENTS)] * num


def test_equal_texts_are_compared_once_and_have_the_same_rate() -> None:
    texts = ["A cup.", "A plate.", "A cup. ", "A fork."]
    pairs = comparisons(texts)
    assert sorted(pairs) == [(0, 1), (0, 3), (1, 3)]
    strength = {0: 0.9, 1: 0.5, 3: 0.1}
    rates = win_rates(texts, {(i, j): (strength[i] - strength[j] + 1) / 2 for i, j in pairs})
    assert rates == pytest.approx([0.8, 0.5, 0.8, 0.2])


def test_a_response_without_a_readable_comparison_has_no_rate() -> None:
    assert win_rates(["a", "b", "c"], {(0, 1): None, (0, 2): 0.75, (1, 2): None}) == [0.75, None, 0.25]
    assert win_rates(["a", "a"], {}) == [0.5, 0.5], "nothing to compare"


@given(st.lists(st.floats(0.05, 0.95), min_size=2, max_size=9, unique=True))
def test_a_round_robin_of_consistent_comparisons_ranks_by_strength(strengths: list[float]) -> None:
    texts = [str(i) for i in range(len(strengths))]
    p_first = {(i, j): strengths[i] / (strengths[i] + strengths[j]) for i, j in comparisons(texts)}
    rates = win_rates(texts, p_first)
    by_rate = sorted(range(len(texts)), key=lambda i: rates[i] or 0.0)
    by_strength = sorted(range(len(texts)), key=lambda i: strengths[i])
    assert [strengths[i] for i in by_rate] == pytest.approx([strengths[i] for i in by_strength])
