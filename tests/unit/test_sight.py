"""What judges make of answers by blank pictures."""

import asyncio

import factories
import pytest
from policy_examples import StrawReward

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.policy.function_reward import FunctionReward
from vlgenrm_ray.policy.reward import WeightedSum
from vlgenrm_ray.policy.scored import RewardOutput
from vlgenrm_ray.policy.sight import Look, figures, looks
from vlgenrm_ray.records import Question, Rollout


def by_picture(rollout: Rollout) -> RewardOutput:
    if rollout.text == "?":
        return RewardOutput(reward=None, status="timeout")
    return RewardOutput(reward=0.25 if rollout.question.image.uri.startswith("data:") else 0.75, status="ok")


def answers(number: int, **over: object) -> list[Rollout]:
    asked = [factories.question(f"q{i}", image=factories.image(width=20 + i, height=10)) for i in range(number)]
    return [factories.rollout(f"{q.id}/e0/r0", question=q, reward=0.75, **over) for q in asked]


def test_a_blank_picture_has_the_size_of_the_one_it_replaces() -> None:
    shown: list[Rollout] = []

    def judge(rollout: Rollout) -> RewardOutput:
        shown.append(rollout)
        return by_picture(rollout)

    asked = answers(2)
    assert asyncio.run(looks(StrawReward(judge), asked, 9)) == (Look(seen=0.75, blank=0.25),) * 2
    assert [images.read(r.question.image, ImageLimits()).size for r in shown] == [(20, 10), (21, 10)]
    assert [r.id for r in shown] == [r.id for r in asked], "judged by the same chances"


def test_those_asked_about_are_spread_over_all() -> None:
    chosen: list[str] = []

    def judge(rollout: Rollout) -> RewardOutput:
        chosen.append(rollout.question.id)
        return by_picture(rollout)

    asyncio.run(looks(StrawReward(judge), answers(10), 3))
    assert chosen == ["q0", "q3", "q6"]
    assert asyncio.run(looks(StrawReward(judge), [], 3)) == ()


def yes(question: Question, text: str) -> float:
    return 1.0


def test_a_function_is_not_asked_and_has_no_part_in_it() -> None:
    judge = StrawReward(by_picture)
    both = WeightedSum([("judge", 0.5, judge), ("yes", 10.0, FunctionReward(yes))])
    assert asyncio.run(looks(both, answers(1), 4)) == (Look(seen=0.375, blank=0.125),)
    assert asyncio.run(looks(FunctionReward(yes), answers(1), 4)) == ()


def test_figures_are_of_answers_judged_both_times() -> None:
    found = (
        Look(seen=0.9, blank=0.5),
        Look(seen=None, blank=0.1),
        Look(seen=0.3, blank=0.3),
        Look(seen=1.0, blank=None),
    )
    assert figures(found) == {"blank_reward": pytest.approx(0.4), "sight": pytest.approx(0.2)}
    assert figures(found[1:2]) == {"blank_reward": None, "sight": None}
    # What had no reward by its picture is not asked again.
    unscored = answers(1, status="timeout")
    assert asyncio.run(looks(StrawReward(by_picture), unscored, 4)) == ()
