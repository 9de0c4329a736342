"""Samples of one prompt in one row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.engines import shared_prompts
from vlgenrm_ray.engines.vlm_batch import Tokens

WIDTH = 128


def lengths_of(prompt: int, completions: list[int], *, width: int = WIDTH, most: int = 64) -> list[int]:
    return [
        len(run)
        for run in shared_prompts.divide_into_rows(
            prompt, completions, width=width, tokens_per_row=10_000, samples_per_row=most
        )
    ]


def test_a_row_by_hand() -> None:
    row = shared_prompts.build_row(
        [Tokens((1, 2, 3, 10, 11), 3), Tokens((1, 2, 3, 20), 3), Tokens((1, 2, 3, 30, 31), 3)]
    )
    assert row.ids == (1, 2, 3, 10, 11, 20, 30, 31)
    assert row.sample_of_token == (0, 0, 0, 1, 1, 2, 3, 3)
    assert row.position_offset == (0, 0, 0, 0, 0, 2, 3, 3)
    # Each sample's first token comes after the prompt's last.
    assert row.predictor_columns == (2, 3, 2, 2, 6)


def test_samples_of_other_prompts_have_no_row_together() -> None:
    with pytest.raises(ValueError, match="one prompt"):
        shared_prompts.build_row([Tokens((1, 2, 10), 2), Tokens((1, 3, 10), 2)])


def test_padding_belongs_to_no_sample() -> None:
    rows = [
        shared_prompts.build_row([Tokens((1, 10, 11), 1), Tokens((1, 20), 1)]),
        shared_prompts.build_row([Tokens((2, 30), 1)]),
    ]
    layout = shared_prompts.build_layout(rows)
    assert layout.sample_of_token.tolist() == [[0, 1, 1, 2], [0, 1, -1, -1]]
    assert layout.position_offset.tolist() == [[0, 0, 0, 2], [0, 0, 0, 0]]
    assert layout.target_ids.tolist() == [10, 11, 20, 30]
    assert [places.tolist() for places in layout.predictor_positions] == [[0, 0, 0, 1], [0, 1, 0, 0]]


def test_a_long_prompt_is_shared_by_all_and_short_ones_of_long_samples_by_none() -> None:
    assert lengths_of(1000, [20] * 8, width=2560) == [8]
    assert lengths_of(40, [20] * 8) == [8]
    assert lengths_of(10, [2000] * 8) == [1] * 8


def test_prompts_of_medium_length_are_shared_by_some_samples() -> None:
    assert lengths_of(300, [150] * 8) == [4, 4]


def test_limits_of_a_row_are_kept() -> None:
    assert lengths_of(1000, [20] * 8, width=2560, most=3) == [2, 3, 3]
    rows = shared_prompts.divide_into_rows(100, [10] * 8, width=2560, tokens_per_row=140, samples_per_row=64)
    assert [len(row) for row in rows] == [4, 4]


@given(
    st.integers(1, 2000),
    st.lists(st.integers(0, 500), min_size=1, max_size=16),
    st.integers(16, 8192),
    st.integers(1, 16),
)
def test_every_sample_is_in_one_row_in_order(prompt: int, completions: list[int], width: int, most: int) -> None:
    rows = shared_prompts.divide_into_rows(
        prompt, completions, width=width, tokens_per_row=prompt + max(completions) + 200, samples_per_row=most
    )
    assert [place for run in rows for place in run] == list(range(len(completions)))
    for run in rows:
        assert len(run) <= most
        assert prompt + sum(completions[place] for place in run) <= prompt + max(completions) + 200
