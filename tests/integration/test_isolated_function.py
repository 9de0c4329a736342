"""Reward functions that block or end their process, in a real actor: the run goes on, and only their rollouts fail."""

import asyncio
import os
import re
import sys

import factories
import pytest

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import RemoteRefusalError
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards.composite import RetryConfig
from vlgenrm_ray.rewards.config import RewardConfig, build_reward
from vlgenrm_ray.rewards.isolated_function import IsolatedFunctionReward, start_isolated_function
from vlgenrm_ray.rewards.reward import RewardOutput

RESPONSES = {"exits": "SystemExit", "dies": "crashed", "backtracks": "timeout"}


def misbehave(question: Question, response: str) -> float:
    match response:
        case "exits":
            sys.exit("enough")
        case "dies":
            os._exit(3)
        case "backtracks":
            # Holds the interpreter's lock for years.
            re.match(r"(a+)+$", "a" * 60 + "b")
    return 1.0


async def in_its_loop(question: Question, response: str) -> float:
    return misbehave(question, response)


def groups(*groups: str) -> list[list[Rollout]]:
    return [
        [factories.rollout(f"q{i}/s0/r{k}", text=text) for k, text in enumerate(texts.split())]
        for i, texts in enumerate(groups)
    ]


@pytest.mark.parametrize("function", ["misbehave", "in_its_loop"])
def test_a_function_that_blocks_or_ends_its_process_costs_its_rollouts_alone(ray_local: None, function: str) -> None:
    texts = ("good dies good", "good good", "backtracks good", "exits good")
    config = RewardConfig(function=f"{__name__}:{function}", deadline_s=6.0)

    async def run() -> list[list[RewardOutput]]:
        reward = build_reward([config], RetryConfig(), ImageLimits())
        assert isinstance(reward.reward, IsolatedFunctionReward)  # type: ignore[attr-defined]
        await reward.check()
        outputs = await asyncio.gather(*(reward.score(group) for group in groups(*texts)))
        outputs.append(await reward.score(groups("good")[0]))
        await reward.close()
        return outputs

    outputs = asyncio.run(run())
    expected = [[RESPONSES.get(text, "ok") for text in group.split()] for group in (*texts, "good")]
    assert [[output.status for output in group] for group in outputs] == expected
    assert all((output.reward is None) == (output.status != "ok") for group in outputs for output in group)


def test_a_module_that_cannot_be_imported_is_refused(ray_local: None) -> None:
    async def run() -> None:
        reward = start_isolated_function("no.such:function")
        with pytest.raises(RemoteRefusalError, match=r"no\.such:function"):
            await reward.check()

    asyncio.run(run())
