from collections import Counter
from typing import Any

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_examples import collected

from vlgenrm_ray.engines.vlm_batch import Tokens
from vlgenrm_ray.policy import lesson
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.lesson import MISFIT, usable
from vlgenrm_ray.policy.rollouts import Group
from vlgenrm_ray.policy.stopping import FailureRule, reward_failures

GRPO = AlgorithmConfig(scale="none")


def group(*rewards: float | None, **over: Any) -> Group:
    return tuple(
        factories.rollout(f"q/s0/r{i}", reward=reward, status="timeout" if reward is None else "ok", **over)
        for i, reward in enumerate(rewards)
    )


def test_a_sample_without_a_reward_is_no_pupil_and_the_others_are_compared_among_themselves() -> None:
    found, fates = lesson.pupils([group(1.0, None, 0.0)], GRPO, max_tokens=8)
    assert [(pupil.rollout.id, pupil.advantage) for pupil in found] == [("q/s0/r0", 0.5), ("q/s0/r2", -0.5)]
    assert fates == {"learnt": 1}


def test_groups_have_fates_and_those_left_out_no_pupils() -> None:
    groups = [group(1.0, 0.0), group(0.5, 0.5), group(0.5, None)]
    found, fates = lesson.pupils(groups, GRPO, max_tokens=8)
    assert fates == {"learnt": 1, "flat": 1, "left_out": 1}
    assert [pupil.advantage for pupil in found] == [0.5, -0.5, 0.0, 0.0]


def test_with_a_critic_every_scored_sample_counts_and_has_no_advantage_yet() -> None:
    found, fates = lesson.pupils([group(0.5, None), group(0.25)], AlgorithmConfig(algorithm="ppo"), max_tokens=8)
    assert [(pupil.reward, pupil.advantage) for pupil in found] == [(0.5, 0.0), (0.25, 0.0)]
    assert fates == {"learnt": 2}


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_sample_that_was_cut_can_be_masked(algorithm: str) -> None:
    config = AlgorithmConfig.model_validate({"algorithm": algorithm, "overlong": {"handling": "mask"}})
    assert lesson.pupils([group(1.0, 0.0, finish="length")], config, max_tokens=3)[0] == []


PROMPT = 5
LIMIT = 64


def planned(
    groups: list[list[int]], *, updates: int = 1, workers: int = 1, width: int = 100, **over: Any
) -> lesson.Lesson:
    """Of groups of samples, by their lengths in tokens; each group has a prompt of its own."""
    found, tokens = [], []
    for number, lengths in enumerate(groups):
        for length in lengths:
            rollout = factories.rollout(ids=(7,) * length, logprobs=(-0.5,) * length, **over)
            found.append(lesson.Pupil(rollout=rollout, reward=0.5, advantage=0.0))
            tokens.append(Tokens((number,) * PROMPT + rollout.ids, PROMPT))
    rows, planned = lesson.plan(
        found, tokens, width=width, step=0, seed=0, updates=updates, tokens_per_batch=LIMIT, workers=workers
    )
    return lesson.Lesson(pupils=tuple(found), rows=rows, updates=planned)


@given(
    st.lists(st.lists(st.integers(1, LIMIT - PROMPT), min_size=1, max_size=9), min_size=1, max_size=9),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5000),
)
def test_every_pupil_is_in_one_update_and_workers_have_equally_many_micro_batches(
    groups: list[list[int]], updates: int, workers: int, width: int
) -> None:
    whole = planned(groups, updates=updates, workers=workers, width=width)
    number = sum(map(len, groups))
    assert min(updates, number) <= len(whole.rows)
    assert len(whole.updates) <= updates
    assert sorted(member for update in whole.updates for member in update.members()) == list(range(number))
    for update in whole.updates:
        assert len({len(update.of(rank)) for rank in range(workers)}) == 1
    assert sum(whole.counts(update)[0] for update in whole.updates) == sum(map(sum, groups))
    assert sum(whole.counts(update)[1] for update in whole.updates) == number


@given(
    st.lists(st.lists(st.integers(1, LIMIT - PROMPT), min_size=1, max_size=9), min_size=1, max_size=9),
    st.integers(1, 3),
)
def test_rows_are_whole_in_a_micro_batch_of_one_group_and_within_the_budget(
    groups: list[list[int]], workers: int
) -> None:
    whole = planned(groups, workers=workers)
    group = [number for number, lengths in enumerate(groups) for _ in lengths]
    sizes = [length for lengths in groups for length in lengths]
    for micro in (micro for update in whole.updates for each in update.rows for micro in each):
        rows = [[micro.members[place] for place in family] for family in whole.families(micro)]
        assert [member for row in rows for member in row] == list(micro.members)
        assert all(len({group[member] for member in row}) == 1 for row in rows)
        assert len(rows) * max(PROMPT + sum(sizes[member] for member in row) for row in rows) <= LIMIT


def test_a_group_shares_a_row() -> None:
    assert planned([[3] * 4, [5] * 4]).rows == (range(4), range(4, 8))


def test_equal_prompts_about_other_pictures_are_not_shared() -> None:
    first, second = (
        lesson.Pupil(
            rollout=factories.rollout(question=factories.question(image=factories.image(sha256=digit * 64))),
            reward=0.5,
            advantage=0.0,
        )
        for digit in "ab"
    )
    same = Tokens((1,) * PROMPT + (7, 7), PROMPT)
    rows, _ = lesson.plan(
        [first, first, second], [same] * 3, width=100, step=0, seed=0, updates=1, tokens_per_batch=64, workers=1
    )
    assert rows == (range(2), range(2, 3))


def test_updates_and_workers_come_before_sharing() -> None:
    whole = planned([[3] * 8], updates=2, workers=2)
    assert [len(row) for row in whole.rows] == [2, 2, 2, 2]
    assert [len(update.of(rank)) for update in whole.updates for rank in range(2)] == [1, 1, 1, 1]


def test_samples_that_fit_no_micro_batch_are_as_good_as_failed() -> None:
    assert usable({"ok": 5, "timeout": 1}, 0) == {"ok": 5, "timeout": 1}
    found = usable({"ok": 5, "timeout": 1}, 5)
    assert found == {"ok": 0, "timeout": 1, MISFIT: 5}
    assert reward_failures([found], FailureRule(window=1)) is not None


def test_nothing_to_learn_is_no_update() -> None:
    assert planned([], updates=2, workers=2).updates == ()


def test_the_figures_of_a_step() -> None:
    stale = group(1.0, 0.5, step=3, version=2)
    unwritten = group(None, ids=(), logprobs=(), finish="", step=3, version=3)
    cut = group(0.0, None, finish="length", step=3, version=3)
    found = lesson.figures(collected(stale, unwritten, cut, statuses={"ok": 7, "timeout": 3}, num_replaced=2))
    assert found == {
        # Those of groups that were replaced are counted as well.
        "samples": 10.0,
        "failed": 3.0,
        "replaced_groups": 2.0,
        "reward": 0.5,
        "reward_std": pytest.approx((2 * 0.25 / 3) ** 0.5),
        "length": 3.0,
        "cut_share": 0.5,
        "staleness": 0.5,
    }


def test_what_nothing_is_known_of_has_no_figure() -> None:
    unwritten = group(None, ids=(), logprobs=(), finish="")
    assert lesson.figures(collected(unwritten, statuses=Counter(timeout=1))) == {
        "samples": 1.0,
        "failed": 1.0,
        "replaced_groups": 0.0,
    }
