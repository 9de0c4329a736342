import asyncio

import factories
import pytest
from policy_examples import Straw, StrawReward, StrawSampler, questions

from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.policy.collecting import Collected, Collecting
from vlgenrm_ray.policy.config import AlgorithmConfig, OverlongConfig
from vlgenrm_ray.policy.rollouts import RolloutsConfig
from vlgenrm_ray.policy.scored import RewardOutput
from vlgenrm_ray.policy.sight import Look
from vlgenrm_ray.records import Rollout


def by_sample(rollout: Rollout) -> RewardOutput:
    """Samples 0, 1, 2 have rewards 0, 0.5, 1."""
    return RewardOutput(reward=int(rollout.text.split()[1]) / 2, status="ok", critique="seen")


def collecting(straw: Straw, reward: StrawReward, number: int = 12, **algorithm: object) -> Collecting:
    return Collecting(
        questions(number),
        pool=straw.pool,
        reward=reward,
        rollouts=RolloutsConfig(group_size=3),
        algorithm=AlgorithmConfig.model_validate(algorithm),
        questions_per_step=4,
        seed=1,
    )


def ids(collected: Collected) -> list[list[str]]:
    return [[rollout.question.id for rollout in group] for group in collected.groups]


def test_a_step_is_the_same_whoever_collects_it() -> None:
    once, again = (
        asyncio.run(collecting(Straw(*samplers, size=2), StrawReward(by_sample)).step(5))
        for samplers in ((), (StrawSampler(0, lives=1),))
    )
    assert once.groups == again.groups
    assert [len(group) for group in once.groups] == [3, 3, 3, 3]
    assert {(r.step, r.status, r.critique) for r in once.rollouts} == {(5, "ok", "seen")}
    assert once.statuses == {"ok": 12}
    other = asyncio.run(collecting(Straw(size=2), StrawReward(by_sample)).step(6))
    assert ids(other) != ids(once)


def test_rewards_do_not_wait_for_the_last_sample() -> None:
    straw, seen = Straw(StrawSampler(0, pace_s=0.01), size=1), list[int]()

    def judge(rollout: Rollout) -> RewardOutput:
        seen.append(len(straw.made[0].asked))
        return by_sample(rollout)

    asyncio.run(collecting(straw, StrawReward(judge)).step(0))
    assert seen[0] < 4


def test_what_has_no_reward_says_why() -> None:
    def judge(rollout: Rollout) -> RewardOutput:
        late = RewardOutput(reward=None, status="timeout", detail="no answer")
        return late if rollout.text.endswith("1") else by_sample(rollout)

    reward = StrawReward(judge)
    collector = collecting(Straw(size=1), reward)
    blind = factories.question("q99", text="blind")
    collector.questions = [blind, *collector.questions[:3]]
    collected = asyncio.run(collector.step(0))
    assert collected.statuses == {"ok": 6, "timeout": 3, "image_missing": 3}
    assert all((r.reward is None) == (r.status != "ok") for r in collected.rollouts)
    assert "q99" not in reward.asked
    (status, detail), *others = collected.details.items()
    assert (status, others) == ("timeout", [])
    assert detail.startswith("no answer (q")


def test_groups_that_teach_nothing_are_replaced_until_rounds_are_over() -> None:
    def flat(dull: set[str]) -> StrawReward:
        return StrawReward(lambda r: RewardOutput(reward=0.5, status="ok") if r.question.id in dull else by_sample(r))

    plain = asyncio.run(collecting(Straw(size=1), flat(set())).step(2))
    dull = {plain.groups[at][0].question.id for at in (1, 3)}
    assert ids(asyncio.run(collecting(Straw(size=1), flat(dull)).step(2))) == ids(plain), "not asked for"
    found = asyncio.run(collecting(Straw(size=1), flat(dull), resample_rounds=3).step(2))
    assert (found.num_replaced, found.statuses) == (2, {"ok": 18})
    assert [found.groups[at] for at in (0, 2)] == [plain.groups[at] for at in (0, 2)]
    assert len({group[0].question.id for group in found.groups} - dull) == 4
    everything = {question.id for question in questions(12)}
    hopeless = asyncio.run(collecting(Straw(size=1), flat(everything), resample_rounds=9).step(2))
    assert (len(hopeless.groups), hopeless.num_replaced) == (4, 8), "the pool has 8 further questions"


def test_what_is_masked_does_not_teach() -> None:
    """With `mask`, a sample that was cut counts as one without a reward."""
    collector = collecting(
        Straw(size=1), StrawReward(by_sample), resample_rounds=1, overlong=OverlongConfig(handling="mask")
    )
    cut = [[factories.rollout(finish="length", reward=r) for r in (0.0, 1.0)]]
    kept = [[factories.rollout(finish="stop", reward=r) for r in (0.0, 1.0)]]
    assert collector._teaching([tuple(group) for group in cut + kept]) == [False, True]


def test_a_reward_that_is_gone_ends_the_step() -> None:
    def judge(rollout: Rollout) -> RewardOutput:
        raise RemoteError("no reward for 300 s")

    async def scenario() -> int:
        with pytest.raises(RemoteError, match="no reward"):
            await collecting(Straw(size=2), StrawReward(judge)).step(0)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(scenario()) == 0


def test_an_evaluation_has_one_greedy_answer_a_question() -> None:
    collector = collecting(Straw(size=2), StrawReward(by_sample))
    collected = asyncio.run(collector.evaluate(questions(5), 40))
    assert [rollout.id for rollout in collected.rollouts] == [f"q{i}/e40/r0" for i in range(5)]


def test_some_answers_of_an_evaluation_are_judged_by_blank_pictures() -> None:
    def judge(rollout: Rollout) -> RewardOutput:
        return RewardOutput(reward=0.25 if rollout.question.image.uri.startswith("data:") else 0.75, status="ok")

    collector = collecting(Straw(size=2), StrawReward(judge))
    found = asyncio.run(collector.evaluate(questions(5), 40, blank=3))
    assert found.looks == (Look(seen=0.75, blank=0.25),) * 3
    assert found.statuses == {"ok": 5}
    assert asyncio.run(collector.evaluate(questions(5), 40)).looks == ()


def test_a_pool_smaller_than_a_step_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="asks 4 questions and the pool has 3"):
        collecting(Straw(size=1), StrawReward(by_sample), number=3)
