"""A Python function as a reward."""

import asyncio
import importlib
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.policy.scored import OK, TIMEOUT, RewardOutput
from vlgenrm_ray.records import Question, Rollout

NOT_FINITE = "not_finite"

Function = Callable[[Question, str], float | Awaitable[float | None] | None]
"""The user's: question and response -> reward, or None where there is none to give."""


class FunctionReward:
    """See `Reward`. What the function raises is a status."""

    def __init__(self, function: Function, deadline_s: float = 300.0) -> None:
        """`deadline_s`: for what is asked at once; a thread that hangs is left behind, for nothing can end it."""
        self.function = function
        self._deadline_s = deadline_s

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward`."""
        until = asyncio.get_running_loop().time() + self._deadline_s
        return [await self._one(rollout, until) for rollout in rollouts]

    async def check(self) -> None:
        """See `Reward`."""

    async def close(self) -> None:
        """See `Reward`."""

    def looking(self) -> None:
        """See `Reward`. It may, but by means of its own: a picture that is not the question's would only mislead it."""

    async def _one(self, rollout: Rollout, until: float) -> RewardOutput:
        late = asyncio.timeout_at(until)
        try:
            async with late:
                given = await self._given(rollout)
            reward = None if given is None else float(given)
        except Exception as error:
            if late.expired():
                return RewardOutput(reward=None, status=TIMEOUT, detail=f"no answer within {self._deadline_s:g} s")
            return RewardOutput(reward=None, status=type(error).__name__, detail=str(error))
        if reward is None:
            return RewardOutput(reward=None, status="no_reward")
        return (
            RewardOutput(reward=reward, status=OK)
            if math.isfinite(reward)
            else RewardOutput(reward=None, status=NOT_FINITE)
        )

    async def _given(self, rollout: Rollout) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(rollout.question, rollout.text)
        # Not in the loop, which others wait for.
        return await asyncio.to_thread(self.function, rollout.question, rollout.text)


def load(name: str) -> Function:
    """The function `module:function`. Raises ConfigError where there is none."""
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"function {name!r}: {error}; give module:function of an importable module") from error
    if not callable(found):
        raise ConfigError(f"function {name!r} is no function; give module:function")
    return found  # type: ignore[no-any-return]
