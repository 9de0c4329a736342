"""A Python function as a reward."""

import asyncio
import importlib
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards.reward import OK, TIMEOUT, RewardOutput

NOT_FINITE = "not_finite"
"""Status of a rollout for which the function returned NaN or an infinity."""
NO_REWARD = "no_reward"
"""Status of a rollout for which the function returned None."""

RewardFunction = Callable[[Question, str], float | Awaitable[float | None] | None]
"""User function: question and response -> reward, or None if it has no opinion. It may be a coroutine function."""


class FunctionReward:
    """A `Reward` that calls a Python function. An exception of the function becomes a status of its rollout."""

    def __init__(self, function: RewardFunction, deadline_s: float = 300.0) -> None:
        """Wrap a function.

        Args:
            function: Function to call once per rollout. A plain function runs in a thread.
            deadline_s: Seconds for all rollouts of one call of `score`. A thread that hangs is abandoned, because
                Python cannot terminate it.
        """
        self.function = function
        self._deadline_s = deadline_s

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`."""
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        return [await self._score_one(rollout, deadline) for rollout in rollouts]

    async def check(self) -> None:
        """See `Reward.check`."""

    async def close(self) -> None:
        """See `Reward.close`."""

    def image_dependent_part(self) -> None:
        """Return None: a function may use the known answer to the original image, which is wrong for a blank one."""

    async def _score_one(self, rollout: Rollout, deadline: float) -> RewardOutput:
        timeout = asyncio.timeout_at(deadline)
        try:
            async with timeout:
                value = await self._call(rollout)
            reward = None if value is None else float(value)
        except Exception as error:
            if timeout.expired():
                return RewardOutput(reward=None, status=TIMEOUT, detail=f"no answer within {self._deadline_s:g} s")
            return RewardOutput(reward=None, status=type(error).__name__, detail=str(error))
        if reward is None:
            return RewardOutput(reward=None, status=NO_REWARD)
        if not math.isfinite(reward):
            return RewardOutput(reward=None, status=NOT_FINITE)
        return RewardOutput(reward=reward, status=OK)

    async def _call(self, rollout: Rollout) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(rollout.question, rollout.text)
        # In a thread: a slow function must not block the event loop.
        return await asyncio.to_thread(self.function, rollout.question, rollout.text)


def load_function(name: str) -> RewardFunction:
    """Import the function named `module:function`.

    Raises:
        ConfigError: The module cannot be imported, or has no such function.
    """
    module, colon, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"function {name!r}: {error}; give module:function of an importable module") from error
    if not callable(function):
        raise ConfigError(f"function {name!r} is not a function; give module:function")
    return function  # type: ignore[no-any-return]
