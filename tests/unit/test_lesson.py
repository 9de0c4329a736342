from collections import Counter
from typing import Any

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_examples import collected

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


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 3), st.integers(1, 3))
def test_every_pupil_is_in_one_update_and_workers_have_equally_many_micro_batches(
    lengths: list[int], updates: int, workers: int
) -> None:
    found, _ = lesson.pupils([group(*([0.5, 1.0] * len(lengths)))], GRPO, max_tokens=8)
    found = found[: len(lengths)]
    planned = lesson.plan(found, lengths, step=0, seed=0, updates=updates, tokens_per_batch=64, workers=workers)
    assert len(planned) <= updates
    members = [member for update in planned for member in update.members()]
    assert sorted(members) == list(range(len(lengths)))
    for update in planned:
        assert len({len(update.of(rank)) for rank in range(workers)}) == 1
    whole = lesson.Lesson(pupils=tuple(found), updates=planned)
    assert sum(whole.counts(update)[0] for update in planned) == 3 * len(lengths)
    assert sum(whole.counts(update)[1] for update in planned) == len(lengths)


def test_samples_that_fit_no_micro_batch_are_as_good_as_failed() -> None:
    assert usable({"ok": 5, "timeout": 1}, 0) == {"ok": 5, "timeout": 1}
    found = usable({"ok": 5, "timeout": 1}, 5)
    assert found == {"ok": 0, "timeout": 1, MISFIT: 5}
    assert reward_failures([found], FailureRule(window=1)) is not None


def test_nothing_to_learn_is_no_update() -> None:
    assert lesson.plan([], [], step=0, seed=0, updates=2, tokens_per_batch=64, workers=2) == ()


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
