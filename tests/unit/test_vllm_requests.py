"""Probabilities of tracked words, from the log-probabilities that vLLM returns."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.engines.vllm_requests import word_probabilities

TRACKED = {"Yes": (7, 3), "No": (5,)}


def flat(positions: list[list[float]]) -> Any:
    """vLLM's flat log-probabilities, with the values of each position."""
    starts, values = list[int](), list[float]()
    for position in positions:
        starts.append(len(values))
        values += position
    return SimpleNamespace(logprobs=values, start_indices=starts)


@given(st.lists(st.tuples(*[st.floats(0.0, 0.3)] * 3, st.integers(0, 4)), max_size=6))
def test_a_words_probability_is_the_sum_over_its_forms(rows: list[tuple[float, float, float, int]]) -> None:
    """Columns are the sampled token, then the tracked ones by id (3, 5, 7), then padding of other requests."""
    logs = [
        [-1.0, *(math.log(p) if p else -math.inf for p in probabilities), *[-math.inf] * padding]
        for *probabilities, padding in rows
    ]
    expected = [{"Yes": three + seven, "No": five} for three, five, seven, _ in rows]
    probabilities_by_word = word_probabilities(flat(logs), range(len(rows)), TRACKED)
    assert probabilities_by_word == [pytest.approx(row, abs=1e-12) for row in expected]


def test_positions_of_special_tokens_are_left_out() -> None:
    logs = [[-1.0, math.log(p), math.log(0.1), math.log(0.2)] for p in (0.3, 0.4, 0.5)]
    assert [row["Yes"] for row in word_probabilities(flat(logs), [0, 2], TRACKED)] == pytest.approx([0.5, 0.7])


def test_without_tracked_words_there_are_no_probabilities() -> None:
    assert word_probabilities(flat([[-1.0], [-2.0]]), [0, 1], {}) == [{}, {}]
