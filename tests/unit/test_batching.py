"""Training samples of a step, and their division into optimizer steps, rows and micro-batches."""

from collections.abc import Sequence
from typing import Any

import factories
import pytest
from fake_encoder import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.engines.batch_plan import MicroBatch, Step
from vlgenrm_ray.engines.vlm_batch import Tokens
from vlgenrm_ray.policy.batching import (
    SKIPPED,
    TrainingBatch,
    TrainingSample,
    TrainingSamples,
    build_training_samples,
    group_statuses,
    plan_micro_batches,
)
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.guards import RewardFailureRule, check_reward_failures
from vlgenrm_ray.policy.rollouts import RolloutGroup

GRPO: dict[str, Any] = {"algorithm": "grpo", "scale": "none"}
PROMPT = 5
LIMIT = 64
GROUPS = st.lists(st.lists(st.integers(1, LIMIT - PROMPT), min_size=1, max_size=9), min_size=1, max_size=9)


# -- samples -----------------------------------------------------------------------------------------------------------


def group(*rewards: float | None, **over: Any) -> RolloutGroup:
    return tuple(
        factories.rollout(f"q/s0/r{i}", reward=reward, status="timeout" if reward is None else "ok", **over)
        for i, reward in enumerate(rewards)
    )


def build(*groups: RolloutGroup, algorithm: dict[str, Any] = GRPO, **values: Any) -> TrainingSamples:
    config = PolicyConfig.model_validate({"rewards": [{"function": "a:b"}], "algorithm": algorithm} | values)
    return build_training_samples(groups, config, FakeEncoder())


def test_an_unscored_sample_is_left_out_and_the_others_are_compared_among_themselves() -> None:
    built = build(group(1.0, None, 0.0))
    assert [(s.rollout.id, s.advantage) for s in built.samples] == [("q/s0/r0", 0.5), ("q/s0/r2", -0.5)]
    assert built.group_statuses == {"used": 1}


def test_groups_are_counted_by_status_and_too_few_scored_give_no_samples() -> None:
    built = build(group(1.0, 0.0), group(0.5, 0.5), group(0.5, None))
    assert built.metrics() == {
        "groups_used": 1.0,
        "groups_zero_std": 1.0,
        "groups_too_few_scored": 1.0,
        "samples_skipped": 0.0,
    }
    assert [sample.advantage for sample in built.samples] == [0.5, -0.5, 0.0, 0.0]


def test_statuses_of_groups_are_those_of_training() -> None:
    config = PolicyConfig.model_validate({"rewards": [{"function": "a:b"}]}).algorithm
    groups = [group(1.0, 0.0), group(0.5, 0.5), group(0.5, None)]
    assert group_statuses(groups, config, max_tokens=8) == ["used", "zero_std", "too_few_scored"]


def test_with_a_critic_every_scored_sample_is_used_without_an_advantage() -> None:
    built = build(group(0.5, None), group(0.25), algorithm={"algorithm": "ppo"})
    assert [(sample.reward, sample.advantage) for sample in built.samples] == [(0.5, 0.0), (0.25, 0.0)]
    assert built.group_statuses == {"used": 2}


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_truncated_samples_can_be_masked(algorithm: str) -> None:
    masked = {"algorithm": algorithm, "overlong": {"handling": "mask"}}
    assert build(group(1.0, 0.0, finish="length"), algorithm=masked).samples == ()


def test_samples_that_fit_no_micro_batch_are_skipped_and_count_as_failures() -> None:
    # The fake prompt has 14 tokens.
    built = build(group(1.0, 0.0, ids=(1, 2, 3, 4), logprobs=(0.0,) * 4), group(1.0, 0.0), tokens_per_batch=17)
    assert (len(built.samples), built.num_skipped) == (2, 2)
    assert built.usable({"ok": 4, "timeout": 1}) == {"ok": 2, "timeout": 1, SKIPPED: 2}
    skipped = build(group(1.0, 0.0), tokens_per_batch=16).usable({"ok": 2})
    assert skipped == {"ok": 0, SKIPPED: 2}
    assert check_reward_failures([skipped], RewardFailureRule(window=1)) is not None


def test_samples_that_cannot_be_encoded_are_skipped() -> None:
    assert build(group(1.0, 0.0, ids=(FakeEncoder.IMAGE_TOKEN,), logprobs=(0.0,))).num_skipped == 2


def test_nothing_skipped_leaves_statuses_unchanged() -> None:
    assert build(group(1.0, 0.0)).usable({"ok": 5, "timeout": 1}) == {"ok": 5, "timeout": 1}


def test_counts_and_shared_rows_of_a_batch() -> None:
    samples = build(group(1.0, 0.0), group(0.5, 0.25)).samples
    update = Step(((MicroBatch((2, 3, 0)),), (MicroBatch((1,)),)))
    batch = TrainingBatch(samples=samples, rows=((0,), (1,), (2, 3)), updates=(update,))
    assert (batch.num_tokens(update), batch.num_sequences(update)) == (3 * 4, 4)
    assert [batch.shared_rows(micro) for micro in update.of(0)] == [[range(2), range(2, 3)], [range(1)]]


# -- micro-batches -----------------------------------------------------------------------------------------------------


def plan(
    groups: Sequence[Sequence[int]],
    *,
    updates: int = 1,
    workers: int = 1,
    width: int | None = 100,
    images: Sequence[str] = (),
    limit: int = LIMIT,
) -> TrainingBatch:
    """Plan groups of samples, given by their lengths in tokens; each group has a prompt of its own."""
    tokens = [
        Tokens((number,) * PROMPT + (7,) * length, PROMPT)
        for number, lengths in enumerate(groups)
        for length in lengths
    ]
    samples = [
        TrainingSample(
            rollout=factories.rollout(question=factories.question(image=factories.image(sha256=image))),
            reward=0.0,
            advantage=0.0,
            tokens=one,
        )
        for one, image in zip(tokens, images or ["image"] * len(tokens), strict=True)
    ]
    return plan_micro_batches(
        samples, shared_width=width, step=0, seed=0, num_updates=updates, tokens_per_batch=limit, num_workers=workers
    )


@given(GROUPS, st.integers(1, 12), st.integers(1, 3), st.integers(1, 5000))
def test_there_are_as_many_updates_as_requested_with_equally_many_samples(
    groups: list[list[int]], updates: int, workers: int, width: int
) -> None:
    batch = plan(groups, updates=updates, workers=workers, width=width)
    number = sum(map(len, groups))
    assert len(batch.updates) == min(updates, number)
    assert sorted(member for update in batch.updates for member in update.members()) == list(range(number))
    assert sorted(position for row in batch.rows for position in row) == list(range(number))
    sizes = [len(update.members()) for update in batch.updates]
    assert max(sizes) - min(sizes) <= 1
    for update in batch.updates:
        assert len({len(update.of(rank)) for rank in range(workers)}) == 1


@given(GROUPS, st.integers(1, 5), st.sampled_from([None, 8, 4000]))
def test_the_samples_of_an_update_depend_neither_on_workers_nor_on_the_model(
    groups: list[list[int]], workers: int, width: int | None
) -> None:
    alone = plan(groups, updates=3).updates
    together = plan(groups, updates=3, workers=workers, width=width, limit=3 * LIMIT).updates
    assert [set(update.members()) for update in alone] == [set(update.members()) for update in together]


@given(GROUPS, st.integers(1, 3), st.integers(1, 3))
def test_rows_belong_to_one_group_and_one_micro_batch_and_keep_the_budget(
    groups: list[list[int]], workers: int, updates: int
) -> None:
    batch = plan(groups, workers=workers, updates=updates)
    group_of = [number for number, lengths in enumerate(groups) for _ in lengths]
    sizes = [length for lengths in groups for length in lengths]
    row_of = {position: row for row in batch.rows for position in row}
    for micro in (micro for update in batch.updates for parallel in update.rows for micro in parallel):
        rows = list(dict.fromkeys(row_of[position] for position in micro.members))
        assert [position for row in rows for position in row] == list(micro.members)
        assert all(len({group_of[position] for position in row}) == 1 for row in rows)
        assert len(rows) * max(PROMPT + sum(sizes[position] for position in row) for row in rows) <= LIMIT


def test_a_group_shares_a_row() -> None:
    assert sorted(plan([[3] * 4, [5] * 4]).rows) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_equal_prompts_about_different_images_are_not_shared() -> None:
    assert sorted(plan([[2, 2, 2]], images=["a", "a", "b"]).rows) == [(0, 1), (2,)]


def test_no_row_is_shared_if_the_model_cannot() -> None:
    assert sorted(plan([[3] * 3], width=None).rows) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(("workers", "sizes"), [(1, [8]), (2, [4, 4]), (4, [2, 2, 2, 2])])
def test_no_worker_is_idle_if_there_is_a_single_group(workers: int, sizes: list[int]) -> None:
    batch = plan([[3] * 8], workers=workers)
    (update,) = batch.updates
    assert [len(row) for row in batch.rows] == sizes
    assert all(micro.counts for parallel in update.rows for micro in parallel)


def test_nine_groups_are_divided_evenly_among_eight_workers() -> None:
    """Otherwise seven workers would wait for the one that has two groups."""
    batch = plan([[30] * 8] * 9, workers=8, limit=10_000)
    (update,) = batch.updates
    assert max(len(row) for row in batch.rows) < 8
    loads = [sum(len(update.of(rank)[i].members) for i in range(len(update.rows))) for rank in range(8)]
    assert max(loads) <= 12


def test_no_samples_give_no_updates() -> None:
    batch = plan([], updates=2, workers=2)
    assert (batch.rows, batch.updates) == ((), ())
