"""How a step's samples are dealt out."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.engines.batch_plan import Step
from vlgenrm_ray.engines.vlm_batch import Tokens
from vlgenrm_ray.policy.lesson_plan import Rows, plan

PROMPT = 5
LIMIT = 64
GROUPS = st.lists(st.lists(st.integers(1, LIMIT - PROMPT), min_size=1, max_size=9), min_size=1, max_size=9)


def planned(
    groups: Sequence[Sequence[int]],
    *,
    updates: int = 1,
    workers: int = 1,
    width: int | None = 100,
    images: Sequence[str] = (),
    limit: int = LIMIT,
) -> tuple[Rows, tuple[Step, ...]]:
    """Of groups of samples, by their lengths in tokens; each group has a prompt of its own."""
    tokens = [
        Tokens((number,) * PROMPT + (7,) * length, PROMPT)
        for number, lengths in enumerate(groups)
        for length in lengths
    ]
    return plan(
        tokens,
        images or ["image"] * len(tokens),
        width=width,
        step=0,
        seed=0,
        updates=updates,
        tokens_per_batch=limit,
        workers=workers,
    )


@given(GROUPS, st.integers(1, 12), st.integers(1, 3), st.integers(1, 5000))
def test_updates_are_as_many_as_asked_for_and_of_equally_many_samples(
    groups: list[list[int]], updates: int, workers: int, width: int
) -> None:
    rows, steps = planned(groups, updates=updates, workers=workers, width=width)
    number = sum(map(len, groups))
    assert len(steps) == min(updates, number)
    assert sorted(member for step in steps for member in step.members()) == list(range(number))
    assert sorted(place for row in rows for place in row) == list(range(number))
    sizes = [len(step.members()) for step in steps]
    assert max(sizes) - min(sizes) <= 1
    for step in steps:
        assert len({len(step.of(rank)) for rank in range(workers)}) == 1


@given(GROUPS, st.integers(1, 5), st.sampled_from([None, 8, 4000]))
def test_what_an_update_learns_depends_neither_on_workers_nor_on_the_model(
    groups: list[list[int]], workers: int, width: int | None
) -> None:
    _, alone = planned(groups, updates=3)
    _, together = planned(groups, updates=3, workers=workers, width=width, limit=3 * LIMIT)
    assert [set(step.members()) for step in alone] == [set(step.members()) for step in together]


@given(GROUPS, st.integers(1, 3), st.integers(1, 3))
def test_rows_are_of_one_group_whole_in_a_micro_batch_and_within_the_budget(
    groups: list[list[int]], workers: int, updates: int
) -> None:
    rows, steps = planned(groups, workers=workers, updates=updates)
    group = [number for number, lengths in enumerate(groups) for _ in lengths]
    sizes = [length for lengths in groups for length in lengths]
    of_place = {place: row for row in rows for place in row}
    for micro in (micro for step in steps for each in step.rows for micro in each):
        mine = list(dict.fromkeys(of_place[place] for place in micro.members))
        assert [place for row in mine for place in row] == list(micro.members)
        assert all(len({group[place] for place in row}) == 1 for row in mine)
        assert len(mine) * max(PROMPT + sum(sizes[place] for place in row) for row in mine) <= LIMIT


def test_a_group_shares_a_row() -> None:
    assert sorted(planned([[3] * 4, [5] * 4])[0]) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_equal_prompts_about_other_pictures_are_not_shared() -> None:
    assert sorted(planned([[2, 2, 2]], images=["a", "a", "b"])[0]) == [(0, 1), (2,)]


def test_where_samples_cannot_share_a_row_none_does() -> None:
    assert sorted(planned([[3] * 3], width=None)[0]) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(("workers", "sizes"), [(1, [8]), (2, [4, 4]), (4, [2, 2, 2, 2])])
def test_no_worker_is_idle_where_one_group_is_learnt(workers: int, sizes: list[int]) -> None:
    rows, (step,) = planned([[3] * 8], workers=workers)
    assert [len(row) for row in rows] == sizes
    assert all(micro.counts for each in step.rows for micro in each)


def test_nine_groups_do_not_make_one_of_eight_workers_learn_two() -> None:
    """Half of the other workers would wait for it."""
    rows, (step,) = planned([[30] * 8] * 9, workers=8, limit=10_000)
    assert max(len(row) for row in rows) < 8
    loads = [sum(len(step.of(rank)[i].members) for i in range(len(step.rows))) for rank in range(8)]
    assert max(loads) <= 12


def test_nothing_to_learn_is_no_update() -> None:
    assert planned([], updates=2, workers=2) == ((), ())
