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
from vlgenrm_ray.records import Judgement, Question, Rollout
from vlgenrm_ray.rewards import composite
from vlgenrm_ray.rewards.composite import RetryConfig, RetryingReward, RewardTerm, WeightedSumReward
from vlgenrm_ray.rewards.config import RewardConfig, build_reward, weighted_sum
from vlgenrm_ray.rewards.function import FunctionReward, load_function
from vlgenrm_ray.rewards.local_judge import LocalJudgeReward
from vlgenrm_ray.rewards.reward import RewardOutput
from vlgenrm_ray.rewards.served_judge import ServedJudgeReward


def served(service: FakeService) -> ServedJudgeReward:
    client = AsyncRemoteJudge("http://judge", retries=0, transport=httpx.MockTransport(service))
    return ServedJudgeReward(client, num_critiques=2)


def rollouts(*texts: str) -> list[Rollout]:
    question = factories.question(reference="a secret", image=factories.image(uri="data:image/png;base64,iVBORw0KGgo="))
    return [factories.rollout(f"q0/s0/r{i}", text=text, question=question) for i, text in enumerate(texts)]


class FailingReward:
    """A reward that is unavailable for its first calls."""

    def __init__(self, num_failures: int, error: type[RemoteError] = RemoteError) -> None:
        self.num_failures = num_failures
        self.error = error
        self.num_calls = 0

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        await self.check()
        return [RewardOutput(reward=1.0, status="ok")] * len(rollouts)

    async def check(self) -> None:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise self.error("connection refused")

    async def close(self) -> None: ...

    def image_dependent_part(self) -> "FailingReward":
        return self


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by one that advances by the pauses alone; return the pauses."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(composite.asyncio, "sleep", sleep)
    monkeypatch.setattr(composite.time, "monotonic", lambda: sum(slept))
    return slept


def test_a_served_judge_gets_the_image_and_not_the_reference_answer() -> None:
    service = FakeService()
    scored = asyncio.run(served(service).score(rollouts("0.25", "fails:timeout", "0.75")))
    assert [(s.reward, s.status) for s in scored] == [(0.25, "ok"), (None, "timeout"), (0.75, "ok")]
    assert scored[0].critique.startswith("Claim: 0.25.")
    assert {(item.reference, item.num_critiques, item.question) for item in service.items} == {
        (None, 2, "Is there a red circle?")
    }
    assert list(service.images) == [service.items[0].images[0]]


def test_a_refusal_differs_from_an_outage() -> None:
    with pytest.raises(RemoteRefusalError, match="401"):
        asyncio.run(served(FakeService(refuse(401))).check())
    with pytest.raises(RemoteError, match="503") as raised:
        asyncio.run(served(FakeService(refuse(503))).check())
    assert not isinstance(raised.value, RemoteRefusalError)


def test_an_unavailable_reward_is_retried_up_to_a_limit(pauses: list[float]) -> None:
    reward = FailingReward(4)
    retrying = RetryingReward(reward, RetryConfig(startup_timeout_s=100, outage_timeout_s=10))
    asyncio.run(retrying.check())
    assert (reward.num_calls, len(pauses)) == (5, 4)
    assert pauses[-1] > pauses[0]
    with pytest.raises(
        RemoteError, match=r"no reward for .* s \(limit 10 s\): connection refused; once the reward is available"
    ):
        asyncio.run(RetryingReward(FailingReward(99), RetryConfig(outage_timeout_s=10)).score(rollouts("a")))


def test_a_refused_request_is_not_retried(pauses: list[float]) -> None:
    with pytest.raises(RemoteRefusalError):
        asyncio.run(RetryingReward(FailingReward(9, RemoteRefusalError), RetryConfig()).check())
    assert pauses == []


def half(question: Question, response: str) -> float | None:
    return {"good": 0.5, "none": None, "endless": float("inf")}[response]


async def always(question: Question, response: str) -> float:
    return 1.0


def test_failures_of_a_function_are_statuses_and_not_zeros() -> None:
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


def test_a_function_that_hangs_times_out() -> None:
    scored = asyncio.run(FunctionReward(endless, deadline_s=0.05).score(rollouts("a", "b")))
    assert [(s.reward, s.status) for s in scored] == [(None, "timeout")] * 2
    assert "0.05 s" in scored[0].detail


def test_the_exception_of_a_function_is_the_detail() -> None:
    (scored,) = asyncio.run(FunctionReward(half).score(rollouts("unknown")))
    assert scored.detail == "'unknown'"


@pytest.mark.parametrize("weight", [-1.0, 0.5])
def test_a_single_reward_has_its_weight(weight: float) -> None:
    function = FunctionReward(always)
    total = weighted_sum([RewardTerm("judge", weight, function)])
    (scored,) = asyncio.run(total.score(rollouts("a")))
    assert scored.reward == weight
    assert weighted_sum([RewardTerm("judge", 1.0, function)]) is function


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "a:b", "num_critiques": 4}, "num_critiques"),
        ({"function": "a:b", "token_variable": "TOKEN"}, "token_variable"),
        ({"url": "http://any:secret@judge:8000"}, "token_variable"),
    ],
)
def test_settings_without_effect_and_tokens_in_urls_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardConfig.model_validate(settings)


def test_a_weighted_sum_needs_the_scores_of_all_terms() -> None:
    both = WeightedSumReward(
        [RewardTerm("half", 2.0, FunctionReward(half)), RewardTerm("always", -0.5, FunctionReward(always))]
    )
    scored = asyncio.run(both.score(rollouts("good", "none")))
    assert [(s.reward, s.status) for s in scored] == [(0.5, "ok"), (None, "half: no_reward")]


def test_the_image_dependent_part_of_a_sum_is_its_judges() -> None:
    judge, function = served(FakeService()), FunctionReward(half)
    both = WeightedSumReward([RewardTerm("judge", 2.0, judge), RewardTerm("half", 1.0, function)])
    part = RetryingReward(both, RetryConfig()).image_dependent_part()
    assert isinstance(part, RetryingReward)
    (scored,) = asyncio.run(part.score(rollouts("0.25")))
    assert (scored.reward, scored.status) == (0.5, "ok"), "the function knows no such answer, and is not asked"
    assert RetryingReward(function, RetryConfig()).image_dependent_part() is None
    assert WeightedSumReward([RewardTerm("half", 1.0, function)]).image_dependent_part() is None
    for whole in (judge, WeightedSumReward([RewardTerm("judge", 2.0, judge)]), RetryingReward(judge, RetryConfig())):
        assert whole.image_dependent_part() is whole


class FakeJudge:
    """Takes a moment, then returns the number in each response as its reward. Its first `num_failures` calls fail."""

    def __init__(self, num_failures: int = 0) -> None:
        self.num_failures = num_failures
        self.batches: list[list[str]] = []

    async def __call__(self, items: list[JudgeInput]) -> list[Judgement]:
        self.batches.append([item.response for item in items])
        await asyncio.sleep(0.01)
        if len(self.batches) <= self.num_failures:
            raise RemoteError("the local judge died")
        return [
            Judgement(
                id=item.id,
                reward=float(item.response),
                status="ok",
                critiques=(factories.judge_critique("c"),),
            )
            for item in items
        ]


def test_a_local_judge_that_hangs_times_out() -> None:
    async def hangs(items: list[JudgeInput]) -> list[Judgement]:
        await asyncio.sleep(60.0)
        return []

    async def scenario() -> list[list[RewardOutput]]:
        judge_reward = LocalJudgeReward(hangs, deadline_s=0.05)
        return await asyncio.gather(judge_reward.score(rollouts("a")), judge_reward.score(rollouts("b", "c")))

    outputs = asyncio.run(scenario())
    assert [[(s.reward, s.status) for s in one] for one in outputs] == [[(None, "timeout")], [(None, "timeout")] * 2]


def test_a_local_judge_batches_what_arrives_while_it_scores() -> None:
    judge = FakeJudge()

    async def scenario() -> list[list[RewardOutput]]:
        judge_reward = LocalJudgeReward(judge)
        return await asyncio.gather(*(judge_reward.score(rollouts(f"0.{i}1", f"0.{i}2")) for i in range(4)))

    scored = asyncio.run(scenario())
    assert [[s.reward for s in group] for group in scored] == [[float(f"0.{i}1"), float(f"0.{i}2")] for i in range(4)]
    assert {s.critique for group in scored for s in group} == {"c"}
    assert [len(batch) for batch in judge.batches] == [2, 6]


def test_an_error_or_a_cancelled_caller_does_not_affect_the_next_batch() -> None:
    judge = FakeJudge(num_failures=1)

    async def scenario() -> tuple[object, list[RewardOutput]]:
        judge_reward = LocalJudgeReward(judge)
        first, cancelled, last = (
            asyncio.ensure_future(judge_reward.score(rollouts(text))) for text in ("0.1", "0.2", "0.3")
        )
        await asyncio.sleep(0.015)
        cancelled.cancel()
        return await asyncio.gather(first, last, return_exceptions=True)  # type: ignore[return-value]

    failed, scored = asyncio.run(scenario())
    assert isinstance(failed, RemoteError)
    assert isinstance(scored, list)
    assert [s.reward for s in scored] == [0.3]


def test_mistakes_in_settings_are_named() -> None:
    for settings in ({"url": "http://a", "function": "b:c"}, {"url": "http://a", "handle": "b"}, {}):
        with pytest.raises(ValidationError, match="exactly one of url or handle"):
            RewardConfig.model_validate(settings)
    with pytest.raises(ValidationError, match="handle"):
        RewardConfig(handle="a:b:c")
    for name in ("no_colon", "json:nothing", "not.there:at_all", "json:__name__"):
        with pytest.raises(ConfigError, match=name):
            load_function(name)
    assert load_function("json:loads").__name__ == "loads"
    os.environ.pop("NO_SUCH_TOKEN", None)
    with pytest.raises(ConfigError, match="NO_SUCH_TOKEN is not set"):
        build_reward([RewardConfig(url="http://a", token_variable="NO_SUCH_TOKEN")], RetryConfig(), ImageLimits())
    with pytest.raises(ConfigError, match="at least one"):
        build_reward([], RetryConfig(), ImageLimits())
