"""The plan of batches: nothing lost, nothing over budget, no worker alone in a collective."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.engines.batch_plan import Step, num_steps, plan_epoch

BUDGET = 200
lengths = st.lists(st.integers(1, BUDGET), min_size=1, max_size=120)


def plan(sizes: list[int], workers: int = 2, per_step: int = 16, epoch: int = 0, seed: int = 0) -> list[Step]:
    return plan_epoch(
        sizes, epoch=epoch, seed=seed, examples_per_step=per_step, tokens_per_batch=BUDGET, workers=workers
    )


@given(lengths, st.integers(1, 5), st.integers(1, 40))
def test_every_entry_stands_in_exactly_one_batch(sizes: list[int], workers: int, per_step: int) -> None:
    members = Counter(m for step in plan(sizes, workers, per_step) for m in step.members())
    assert members == Counter(range(len(sizes)))


@given(lengths, st.integers(1, 5), st.integers(1, 40))
def test_padded_batches_keep_the_budget(sizes: list[int], workers: int, per_step: int) -> None:
    for step in plan(sizes, workers, per_step):
        for row in step.rows:
            for batch in row:
                assert len(batch.members) * max(sizes[m] for m in batch.members) <= BUDGET


@given(lengths, st.integers(1, 5), st.integers(1, 40))
def test_all_workers_have_equally_many_batches_and_fillers_only_at_the_end(
    sizes: list[int], workers: int, per_step: int
) -> None:
    for step in plan(sizes, workers, per_step):
        assert {len(row) for row in step.rows} == {workers}
        assert all(batch.members for row in step.rows for batch in row)
        assert all(batch.counts for row in step.rows[:-1] for batch in row)
        assert step.rows[-1][0].counts


@given(lengths, st.integers(1, 40))
def test_steps_have_even_sizes_and_the_expected_number(sizes: list[int], per_step: int) -> None:
    steps = plan(sizes, per_step=per_step)
    counts = [len(step.members()) for step in steps]
    assert len(steps) == num_steps(len(sizes), per_step)
    assert max(counts) <= per_step
    assert max(counts) - min(counts) <= 1


@given(lengths)
def test_the_number_of_workers_does_not_change_what_a_step_learns(sizes: list[int]) -> None:
    alone, together = plan(sizes, workers=1), plan(sizes, workers=3)
    assert [set(s.members()) for s in alone] == [set(s.members()) for s in together]


def test_order_follows_seed_and_epoch() -> None:
    sizes = [10 + i % 7 for i in range(64)]
    assert plan(sizes) == plan(sizes)
    assert plan(sizes, epoch=1) != plan(sizes)
    assert plan(sizes, seed=1) != plan(sizes)


def test_entries_of_similar_length_share_a_batch() -> None:
    (step,) = plan([10] * 10 + [100] * 2, workers=1)
    assert sorted(tuple(sorted(b.members)) for row in step.rows for b in row) == [tuple(range(10)), (10, 11)]


def test_a_batch_of_mostly_padding_is_split() -> None:
    (step,) = plan([50] + [10] * 3, workers=1)
    assert sorted(tuple(sorted(b.members)) for row in step.rows for b in row) == [(0,), (1, 2, 3)]


def test_an_entry_beyond_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="201 tokens does not fit tokens_per_batch = 200"):
        plan([5, 201])


def test_no_entries_give_no_steps() -> None:
    assert plan([]) == []
