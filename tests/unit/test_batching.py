from collections import Counter
from typing import Any

import factories
import pytest
from policy_examples import collected

from vlgenrm_ray.engines.batch_plan import MicroBatch, Step
from vlgenrm_ray.policy import batching as lesson
from vlgenrm_ray.policy.batching import MISFIT, usable
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.guards import FailureRule, reward_failures
from vlgenrm_ray.policy.rollouts import Group

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


def test_counts_and_families_of_a_lesson() -> None:
    found, _ = lesson.pupils([group(1.0, 0.0), group(0.5, 0.25)], GRPO, max_tokens=8)
    update = Step(((MicroBatch((2, 3, 0)),), (MicroBatch((1,)),)))
    whole = lesson.Lesson(pupils=tuple(found), rows=((0,), (1,), (2, 3)), updates=(update,))
    assert whole.counts(update) == (3 * 4, 4)
    assert [whole.families(micro) for micro in update.of(0)] == [[range(2), range(2, 3)], [range(1)]]


def test_samples_that_fit_no_micro_batch_are_as_good_as_failed() -> None:
    assert usable({"ok": 5, "timeout": 1}, 0) == {"ok": 5, "timeout": 1}
    found = usable({"ok": 5, "timeout": 1}, 5)
    assert found == {"ok": 0, "timeout": 1, MISFIT: 5}
    assert reward_failures([found], FailureRule(window=1)) is not None


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
