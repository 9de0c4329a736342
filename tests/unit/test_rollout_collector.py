"""The rollout collector: scoring, replaced groups, evaluations."""

import asyncio

import factories
import pytest
from fake_rollouts import FakeReward, FakeRolloutEngine, FakeRolloutEngines, questions

from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.policy.config import AlgorithmConfig, OverlongConfig
from vlgenrm_ray.policy.orchestrator import RolloutCollector
from vlgenrm_ray.policy.rollouts import RolloutBatch, RolloutsConfig
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.image_ablation import AblationResult
from vlgenrm_ray.rewards.reward import RewardOutput


def by_index(rollout: Rollout) -> RewardOutput:
    """Rollouts 0, 1, 2 of a group have rewards 0, 0.5, 1."""
    return RewardOutput(reward=int(rollout.text.split()[1]) / 2, status="ok", critique="seen")


def make_collector(
    engines: FakeRolloutEngines, reward: FakeReward, num_questions: int = 12, **algorithm: object
) -> RolloutCollector:
    return RolloutCollector(
        questions(num_questions),
        pool=engines.pool,
        reward=reward,
        rollouts=RolloutsConfig(group_size=3),
        algorithm=AlgorithmConfig.model_validate(algorithm),
        questions_per_step=4,
        seed=1,
    )


def question_ids(batch: RolloutBatch) -> list[list[str]]:
    return [[rollout.question.id for rollout in group] for group in batch.groups]


def test_a_step_is_the_same_after_the_loss_of_an_engine() -> None:
    once, again = (
        asyncio.run(make_collector(FakeRolloutEngines(*engines, num_engines=2), FakeReward(by_index)).collect_step(5))
        for engines in ((), (FakeRolloutEngine(0, num_groups=1),))
    )
    assert once.groups == again.groups
    assert [len(group) for group in once.groups] == [3, 3, 3, 3]
    assert {(r.step, r.status, r.critique) for r in once.rollouts} == {(5, "ok", "seen")}
    assert once.statuses == {"ok": 12}
    other = asyncio.run(make_collector(FakeRolloutEngines(num_engines=2), FakeReward(by_index)).collect_step(6))
    assert question_ids(other) != question_ids(once)


def test_scoring_starts_before_the_last_rollout_is_sampled() -> None:
    engines, num_sampled = FakeRolloutEngines(FakeRolloutEngine(0, group_s=0.01), num_engines=1), list[int]()

    def score_one(rollout: Rollout) -> RewardOutput:
        num_sampled.append(len(engines.started[0].sampled))
        return by_index(rollout)

    asyncio.run(make_collector(engines, FakeReward(score_one)).collect_step(0))
    assert num_sampled[0] < 4


def test_a_missing_reward_has_a_status_and_a_detail() -> None:
    def score_one(rollout: Rollout) -> RewardOutput:
        timeout = RewardOutput(reward=None, status="timeout", detail="no answer")
        return timeout if rollout.text.endswith("1") else by_index(rollout)

    reward = FakeReward(score_one)
    collector = make_collector(FakeRolloutEngines(num_engines=1), reward)
    blind = factories.question("q99", text="blind")
    collector.questions = [blind, *collector.questions[:3]]
    batch = asyncio.run(collector.collect_step(0))
    assert batch.statuses == {"ok": 6, "timeout": 3, "image_missing": 3}
    assert all((r.reward is None) == (r.status != "ok") for r in batch.rollouts)
    assert "q99" not in reward.scored
    (status, detail), *others = batch.failure_details.items()
    assert (status, others) == ("timeout", [])
    assert detail.startswith("no answer (q")


def test_groups_without_a_gradient_are_replaced_until_rounds_are_over() -> None:
    def flat(flat_ids: set[str]) -> FakeReward:
        return FakeReward(lambda r: RewardOutput(reward=0.5, status="ok") if r.question.id in flat_ids else by_index(r))

    def collect(flat_ids: set[str], **algorithm: object) -> RolloutBatch:
        return asyncio.run(
            make_collector(FakeRolloutEngines(num_engines=1), flat(flat_ids), **algorithm).collect_step(2)
        )

    plain = collect(set())
    flat_ids = {plain.groups[at][0].question.id for at in (1, 3)}
    assert question_ids(collect(flat_ids)) == question_ids(plain), "replaced only with resample_rounds"
    batch = collect(flat_ids, resample_rounds=3)
    assert (batch.num_replaced, batch.statuses) == (2, {"ok": 18})
    assert [batch.groups[at] for at in (0, 2)] == [plain.groups[at] for at in (0, 2)]
    assert len({group[0].question.id for group in batch.groups} - flat_ids) == 4
    hopeless = collect({question.id for question in questions(12)}, resample_rounds=9)
    assert (len(hopeless.groups), hopeless.num_replaced) == (4, 8), "the pool has 8 other questions"


def test_a_masked_rollout_gives_no_gradient() -> None:
    """With `mask`, a rollout that was cut counts as one without a reward."""
    collector = make_collector(
        FakeRolloutEngines(num_engines=1),
        FakeReward(by_index),
        resample_rounds=1,
        overlong=OverlongConfig(handling="mask"),
    )
    cut = [[factories.rollout(finish="length", reward=r) for r in (0.0, 1.0)]]
    ended = [[factories.rollout(finish="stop", reward=r) for r in (0.0, 1.0)]]
    assert collector._have_gradient([tuple(group) for group in cut + ended]) == [False, True]


def test_an_unavailable_reward_ends_the_step_and_leaves_no_task() -> None:
    def score_one(rollout: Rollout) -> RewardOutput:
        raise RemoteError("no reward for 300 s")

    async def scenario() -> int:
        with pytest.raises(RemoteError, match="no reward"):
            await make_collector(FakeRolloutEngines(num_engines=2), FakeReward(score_one)).collect_step(0)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(scenario()) == 0


def test_an_evaluation_has_one_answer_per_question() -> None:
    collector = make_collector(FakeRolloutEngines(num_engines=2), FakeReward(by_index))
    batch = asyncio.run(collector.collect_evaluation(questions(5), 40))
    assert [rollout.id for rollout in batch.rollouts] == [f"q{i}/e40/r0" for i in range(5)]


def test_some_answers_of_an_evaluation_are_scored_with_blank_images() -> None:
    def score_one(rollout: Rollout) -> RewardOutput:
        return RewardOutput(reward=0.25 if rollout.question.image.uri.startswith("data:") else 0.75, status="ok")

    collector = make_collector(FakeRolloutEngines(num_engines=2), FakeReward(score_one))
    batch = asyncio.run(collector.collect_evaluation(questions(5), 40, num_ablated=3))
    assert batch.ablations == (AblationResult(original=0.75, blank=0.25),) * 3
    assert batch.statuses == {"ok": 5}
    assert asyncio.run(collector.collect_evaluation(questions(5), 40)).ablations == ()


def test_a_comparison_of_decoding_has_greedy_and_sampled_answers_without_rewards() -> None:
    def refuse(rollout: Rollout) -> RewardOutput:
        raise AssertionError("an answer was scored")

    engines = FakeRolloutEngines(num_engines=2)
    collector = make_collector(engines, FakeReward(refuse))
    batch = asyncio.run(collector.collect_decoding(questions(5), 40, num_samples=3))
    assert [[rollout.id for rollout in group] for group in batch.greedy] == [[f"q{i}/d40/r0"] for i in range(5)]
    assert [[r.id for r in group] for group in batch.sampled] == [
        [f"q{i}/d40/r{k}" for k in range(3)] for i in range(5)
    ]


def test_a_pool_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="questions_per_step is 4, and the pool has 3 questions"):
        make_collector(FakeRolloutEngines(num_engines=1), FakeReward(by_index), num_questions=3)
