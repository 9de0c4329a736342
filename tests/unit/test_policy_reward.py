import asyncio
import os
from collections.abc import Sequence

import factories
import httpx
import pytest
from fake_service import FakeService, refuse
from pydantic import ValidationError

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import ConfigError, RemoteError, RemoteRefusalError
from vlgenrm_ray.judge.judge import JudgeInput
from vlgenrm_ray.judge.remote import AsyncRemoteJudge
from vlgenrm_ray.policy import function_reward, reward
from vlgenrm_ray.policy.function_reward import FunctionReward
from vlgenrm_ray.policy.own_judge import OwnJudge
from vlgenrm_ray.policy.reward import (
    PatienceConfig,
    Patient,
    RewardConfig,
    ServedJudge,
    WeightedSum,
)
from vlgenrm_ray.policy.scored import RewardOutput
from vlgenrm_ray.records import Judgement, Question, Rollout


def served(service: FakeService, **over: object) -> ServedJudge:
    config = RewardConfig.model_validate({"url": "http://judge", "num_critiques": 2} | over)
    transport = httpx.MockTransport(service)
    return ServedJudge(config, ImageLimits(), AsyncRemoteJudge("http://judge", retries=0, transport=transport))


def rollouts(*texts: str) -> list[Rollout]:
    asked = factories.question(reference="a secret", image=factories.image(uri="data:image/png;base64,iVBORw0KGgo="))
    return [factories.rollout(f"q0/s0/r{i}", text=text, question=asked) for i, text in enumerate(texts)]


class Failing:
    """A reward that cannot be had for a while."""

    def __init__(self, times: int, error: type[RemoteError] = RemoteError) -> None:
        self.times = times
        self.error = error
        self.asked = 0

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        await self.check()
        return [RewardOutput(reward=1.0, status="ok")] * len(rollouts)

    async def check(self) -> None:
        self.asked += 1
        if self.asked <= self.times:
            raise self.error("connection refused")

    async def close(self) -> None: ...

    def looking(self) -> "Failing":
        return self


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses instead of which time goes on."""
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(reward.asyncio, "sleep", sleep)
    monkeypatch.setattr(reward.time, "monotonic", lambda: sum(paused))
    return paused


def test_a_served_judge_is_asked_with_the_image_and_without_the_right_answer() -> None:
    service = FakeService()
    scored = asyncio.run(served(service).score(rollouts("0.25", "fails:timeout", "0.75")))
    assert [(s.reward, s.status) for s in scored] == [(0.25, "ok"), (None, "timeout"), (0.75, "ok")]
    assert scored[0].critique.startswith("Claim: 0.25.")
    assert {(item.reference, item.num_critiques, item.question) for item in service.items} == {
        (None, 2, "Is there a red circle?")
    }
    assert list(service.images) == [service.items[0].image]


def test_a_refusal_is_told_from_an_absence() -> None:
    with pytest.raises(RemoteRefusalError, match="401"):
        asyncio.run(served(FakeService(refuse(401))).check())
    with pytest.raises(RemoteError, match="503") as raised:
        asyncio.run(served(FakeService(refuse(503))).check())
    assert not isinstance(raised.value, RemoteRefusalError)


def test_an_absent_reward_is_waited_for(waits: list[float]) -> None:
    late = Failing(4)
    patient = Patient(late, PatienceConfig(start_s=100, run_s=10))
    asyncio.run(patient.check())
    assert (late.asked, len(waits)) == (5, 4)
    assert waits[-1] > waits[0]
    with pytest.raises(
        RemoteError, match=r"no reward for .* s \(limit 10 s\): connection refused; once it answers, run"
    ):
        asyncio.run(Patient(Failing(99), PatienceConfig(run_s=10)).score(rollouts("a")))


def test_a_refused_request_is_not_waited_for(waits: list[float]) -> None:
    with pytest.raises(RemoteRefusalError):
        asyncio.run(Patient(Failing(9, RemoteRefusalError), PatienceConfig()).check())
    assert waits == []


def half(question: Question, response: str) -> float | None:
    return {"good": 0.5, "none": None, "endless": float("inf")}[response]


async def always(question: Question, response: str) -> float:
    return 1.0


def test_a_function_is_a_reward_and_its_failures_are_no_zeros() -> None:
    scored = asyncio.run(FunctionReward(half).score(rollouts("good", "none", "endless", "unknown")))
    assert [(s.reward, s.status) for s in scored] == [
        (0.5, "ok"),
        (None, "no_reward"),
        (None, "not_finite"),
        (None, "KeyError"),
    ]


async def endless(question: Question, response: str) -> float:
    await asyncio.sleep(60.0)
    return 1.0


def test_a_function_that_hangs_leaves_its_samples_without_a_reward() -> None:
    scored = asyncio.run(FunctionReward(endless, deadline_s=0.05).score(rollouts("a", "b")))
    assert [(s.reward, s.status) for s in scored] == [(None, "timeout")] * 2
    assert "0.05 s" in scored[0].detail


def test_why_a_function_failed_is_told() -> None:
    (scored,) = asyncio.run(FunctionReward(half).score(rollouts("unknown")))
    assert scored.detail == "'unknown'"


@pytest.mark.parametrize("weight", [-1.0, 0.5])
def test_a_lone_reward_has_its_weight(weight: float) -> None:
    made = FunctionReward(always)
    whole = reward.weighted([("judge", weight, made)])
    (scored,) = asyncio.run(whole.score(rollouts("a")))
    assert scored.reward == weight
    assert reward.weighted([("judge", 1.0, made)]) is made


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"function": "a:b", "num_critiques": 4}, "num_critiques"),
        ({"function": "a:b", "token_variable": "TOKEN"}, "token_variable"),
        ({"url": "http://any:secret@judge:8000"}, "token_variable"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardConfig.model_validate(settings)


def test_several_rewards_are_a_weighted_sum_of_what_all_scored() -> None:
    both = WeightedSum([("half", 2.0, FunctionReward(half)), ("always", -0.5, FunctionReward(always))])
    scored = asyncio.run(both.score(rollouts("good", "none")))
    assert [(s.reward, s.status) for s in scored] == [(0.5, "ok"), (None, "half: no_reward")]


def test_of_several_rewards_those_look_that_are_judges() -> None:
    judge, function = served(FakeService()), FunctionReward(half)
    both = WeightedSum([("judge", 2.0, judge), ("half", 1.0, function)])
    part = Patient(both, PatienceConfig()).looking()
    assert isinstance(part, Patient)
    (scored,) = asyncio.run(part.score(rollouts("0.25")))
    assert (scored.reward, scored.status) == (0.5, "ok"), "the function knows no such answer, and is not asked"
    assert Patient(function, PatienceConfig()).looking() is None
    assert WeightedSum([("half", 1.0, function)]).looking() is None
    for whole in (judge, WeightedSum([("judge", 2.0, judge)]), Patient(judge, PatienceConfig())):
        assert whole.looking() is whole


class StrawJudge:
    """Takes a while, then gives each item the same reward; the first `failures` times it is gone."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.batches: list[list[str]] = []

    async def __call__(self, items: list[JudgeInput]) -> list[Judgement]:
        self.batches.append([item.response for item in items])
        await asyncio.sleep(0.01)
        if len(self.batches) <= self.failures:
            raise RemoteError("the run's own judge died")
        return [
            Judgement(
                id=item.id,
                reward=float(item.response),
                status="ok",
                critiques=(factories.judge_critique("c"),),
            )
            for item in items
        ]


def test_an_own_judge_that_hangs_leaves_its_samples_without_a_reward() -> None:
    async def hangs(items: list[JudgeInput]) -> list[Judgement]:
        await asyncio.sleep(60.0)
        return []

    async def scenario() -> list[list[RewardOutput]]:
        own = OwnJudge(hangs, deadline_s=0.05)
        return await asyncio.gather(own.score(rollouts("a")), own.score(rollouts("b", "c")))

    found = asyncio.run(scenario())
    assert [[(s.reward, s.status) for s in one] for one in found] == [[(None, "timeout")], [(None, "timeout")] * 2]


def test_an_own_judge_takes_together_what_comes_while_it_judges() -> None:
    judge = StrawJudge()

    async def scenario() -> list[list[RewardOutput]]:
        own = OwnJudge(judge)
        return await asyncio.gather(*(own.score(rollouts(f"0.{i}1", f"0.{i}2")) for i in range(4)))

    scored = asyncio.run(scenario())
    assert [[s.reward for s in group] for group in scored] == [[float(f"0.{i}1"), float(f"0.{i}2")] for i in range(4)]
    assert {s.critique for group in scored for s in group} == {"c"}
    assert [len(batch) for batch in judge.batches] == [2, 6]


def test_an_own_judge_that_is_gone_or_not_waited_for_harms_nobody_else() -> None:
    judge = StrawJudge(failures=1)

    async def scenario() -> tuple[object, list[RewardOutput]]:
        own = OwnJudge(judge)
        first, given_up, last = (asyncio.ensure_future(own.score(rollouts(text))) for text in ("0.1", "0.2", "0.3"))
        await asyncio.sleep(0.015)
        given_up.cancel()
        return await asyncio.gather(first, last, return_exceptions=True)  # type: ignore[return-value]

    failed, scored = asyncio.run(scenario())
    assert isinstance(failed, RemoteError)
    assert isinstance(scored, list)
    assert [s.reward for s in scored] == [0.3]


def test_mistakes_are_named() -> None:
    for given in ({"url": "http://a", "function": "b:c"}, {"url": "http://a", "handle": "b"}, {}):
        with pytest.raises(ValidationError, match="exactly one of url or handle"):
            RewardConfig.model_validate(given)
    with pytest.raises(ValidationError, match="handle"):
        RewardConfig(handle="a:b:c")
    for name in ("no_colon", "json:nothing", "not.there:at_all", "json:__name__"):
        with pytest.raises(ConfigError, match=name):
            function_reward.load(name)
    assert function_reward.load("json:loads").__name__ == "loads"
    os.environ.pop("NO_SUCH_TOKEN", None)
    with pytest.raises(ConfigError, match="NO_SUCH_TOKEN is not set"):
        reward.build([RewardConfig(url="http://a", token_variable="NO_SUCH_TOKEN")], PatienceConfig(), ImageLimits())
    with pytest.raises(ConfigError, match="at least one"):
        reward.build([], PatienceConfig(), ImageLimits())
