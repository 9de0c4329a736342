"""AReaL's adapter: no reward becomes 0 because it waited in the queue of a process pool."""

import asyncio
import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from fake_service import FakeService, listening
from reward_pool import FakeRewardPool, gather_rewards

from vlgenrm_ray.adapters import areal, clients, rewards
from vlgenrm_ray.errors import ConfigError, RemoteError


class FakeSlowService(FakeService):
    """Takes a while for each request."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        time.sleep(0.1)
        return super().__call__(request)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    fake = FakeSlowService()
    rewards.reset_counts()
    with listening(fake) as url:
        monkeypatch.setenv(clients.URL_VARIABLE, url)
        monkeypatch.setenv(areal.DEADLINE_VARIABLE, "0.8")
        yield fake
    rewards.reset_counts()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_full_queue_raises_and_never_returns_zero(service: FakeService, num_processes: int) -> None:
    pool = FakeRewardPool(areal.vlgenrm_reward, timeout_s=1.0, num_processes=num_processes)
    results = asyncio.run(gather_rewards(pool, 60))
    pool.close()
    assert {type(result) for result in results} <= {float, RemoteError}
    assert 0 not in results
    num_scored = results.count(1.0)
    assert num_scored >= 5 * num_processes, "what fits in the time is scored"
    assert num_scored < 60, "the queue was too long"
    error = next(result for result in results if isinstance(result, RemoteError))
    assert "JudgeVisionRLVRWorkflow" in str(error)


def test_a_short_queue_loses_nothing(service: FakeService) -> None:
    pool = FakeRewardPool(areal.vlgenrm_reward, timeout_s=1.0, num_processes=1)
    assert asyncio.run(gather_rewards(pool, 5)) == [1.0] * 5
    pool.close()


def test_the_clock_bounds_the_time_of_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(areal.time, "monotonic", lambda: now)
    clock = areal.QueueClock()
    assert clock.begin(b"a") == 100.0, "an idle process starts a call at once"
    now = 105.0
    clock.end()
    assert clock.begin(b"b") == 100.0, "it may have waited as long as the process was busy"
    clock.reject(b"b")
    clock.end()
    now = 105.1
    assert clock.begin(b"c") == 100.0
    clock.end()
    assert clock.begin(b"b") == 105.0, "submitted again when it was rejected"
    clock.end()
    assert clock.begin(b"d") == 105.0, "hence later calls were submitted later"
    clock.end()
    now = 106.0
    assert clock.begin(b"e") == 106.0


def test_workflows_await_the_judge_instead_of_a_pool(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeWorkflow:
        def __init__(self, reward_fn: Any, gconfig: Any, tokenizer: Any, enable_thinking: bool = False) -> None:
            self.reward_fn, self.tokenizer = reward_fn, tokenizer
            self.async_reward_fn: Any = "AReaL's wrapper"

    modules = {"areal": ModuleType("areal"), "areal.workflow": ModuleType("areal.workflow")}
    modules["areal.workflow.rlvr"] = module = ModuleType("areal.workflow.rlvr")
    module.RLVRWorkflow = FakeWorkflow
    modules["areal"].__spec__ = SimpleNamespace()
    for name, fake in modules.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delenv(areal.DEADLINE_VARIABLE)
    workflow = areal.JudgeRLVRWorkflow(gconfig=None, tokenizer="t")
    monkeypatch.delitem(vars(areal), "JudgeRLVRWorkflow")
    assert isinstance(workflow, FakeWorkflow)
    assert (workflow.tokenizer, callable(workflow.reward_fn)) == ("t", True)
    results = asyncio.run(gather_rewards(workflow.async_reward_fn, 30))
    assert results == [1.0] * 30
    with pytest.raises(RemoteError, match="unreadable_verdict"):
        asyncio.run(workflow.async_reward_fn("What?", "fails:unreadable_verdict"))


def test_a_workflow_without_areal_says_so() -> None:
    with pytest.raises(ConfigError, match="AReaL is not installed"):
        _ = areal.JudgeVisionRLVRWorkflow
    with pytest.raises(AttributeError):
        _ = areal.Another
