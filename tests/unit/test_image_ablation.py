"""Image ablation: answers scored with blank images."""

import asyncio

import factories
import pytest
from fake_rollouts import FakeReward

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards.composite import RewardTerm, WeightedSumReward
from vlgenrm_ray.rewards.function import FunctionReward
from vlgenrm_ray.rewards.image_ablation import AblationResult, ablate_image, ablation_metrics
from vlgenrm_ray.rewards.reward import RewardOutput


def by_image(rollout: Rollout) -> RewardOutput:
    if rollout.text == "?":
        return RewardOutput(reward=None, status="timeout")
    return RewardOutput(reward=0.25 if rollout.question.image.uri.startswith("data:") else 0.75, status="ok")


def answers(count: int, **over: object) -> list[Rollout]:
    questions = [factories.question(f"q{i}", image=factories.image(width=20 + i, height=10)) for i in range(count)]
    return [factories.rollout(f"{q.id}/e0/r0", question=q, reward=0.75, **over) for q in questions]


def test_a_blank_image_has_the_size_of_the_original() -> None:
    blank_rollouts: list[Rollout] = []

    def score_one(rollout: Rollout) -> RewardOutput:
        blank_rollouts.append(rollout)
        return by_image(rollout)

    originals = answers(2)
    assert (
        asyncio.run(ablate_image(FakeReward(score_one), originals, 9))
        == (AblationResult(original=0.75, blank=0.25),) * 2
    )
    assert [images.read(r.question.image, ImageLimits()).size for r in blank_rollouts] == [(20, 10), (21, 10)]
    assert [r.id for r in blank_rollouts] == [r.id for r in originals], "so that the judge samples with the same seeds"


def test_the_answers_of_the_ablation_are_spread_evenly() -> None:
    chosen: list[str] = []

    def score_one(rollout: Rollout) -> RewardOutput:
        chosen.append(rollout.question.id)
        return by_image(rollout)

    asyncio.run(ablate_image(FakeReward(score_one), answers(10), 3))
    assert chosen == ["q0", "q3", "q6"]
    assert asyncio.run(ablate_image(FakeReward(score_one), [], 3)) == ()


def yes(question: Question, text: str) -> float:
    return 1.0


def test_functions_have_no_part_in_the_ablation() -> None:
    judge = FakeReward(by_image)
    both = WeightedSumReward([RewardTerm("judge", 0.5, judge), RewardTerm("yes", 10.0, FunctionReward(yes))])
    assert asyncio.run(ablate_image(both, answers(1), 4)) == (AblationResult(original=0.375, blank=0.125),)
    assert asyncio.run(ablate_image(FunctionReward(yes), answers(1), 4)) == ()


def test_metrics_are_means_over_answers_with_both_rewards() -> None:
    results = (
        AblationResult(original=0.9, blank=0.5),
        AblationResult(original=None, blank=0.1),
        AblationResult(original=0.3, blank=0.3),
        AblationResult(original=1.0, blank=None),
    )
    assert ablation_metrics(results) == {
        "blank_image_reward": pytest.approx(0.4),
        "image_reward_gain": pytest.approx(0.2),
    }
    assert ablation_metrics(results[1:2]) == {"blank_image_reward": None, "image_reward_gain": None}
    # An answer without a reward is not scored again.
    unscored = answers(1, status="timeout")
    assert asyncio.run(ablate_image(FakeReward(by_image), unscored, 4)) == ()
