"""A Python function as a reward.

`FunctionReward` calls it in this process, see `function_calls`. `isolated_function` runs the same in a process of its
own, which is what a run does by default.
"""

import asyncio
import importlib
import inspect
import logging
import math
import operator
import reprlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards.function_calls import CallError, FunctionCaller
from vlgenrm_ray.rewards.reward import OK, TIMEOUT, RewardOutput, SegmentedReward

NOT_FINITE = "not_finite"
"""Status of a rollout for which the function returned NaN or an infinity."""
NO_REWARD = "no_reward"
"""Status of a rollout for which the function returned None."""
NOT_A_NUMBER = "not_a_number"
"""Status of a rollout for which the function returned something else than a number, such as a text or a dict."""
MAX_CONCURRENCY = 64
"""Most calls of a function at the same time, unless a recipe sets another limit."""

RewardValue = float | SegmentedReward | None
RewardFunction = Callable[[Question, str], RewardValue | Awaitable[RewardValue]]
"""User function: question and response -> reward, or None for no reward. The returned value may be awaitable."""

_log = logging.getLogger(__name__)


class FunctionReward:
    """A `Reward` that calls a Python function. Whatever the function does becomes the status of its rollout alone."""

    def __init__(
        self,
        function: RewardFunction,
        deadline_s: float = 300.0,
        *,
        max_concurrency: int = MAX_CONCURRENCY,
        by_segment: bool = False,
    ) -> None:
        """Wrap a function.

        Args:
            function: Function to call once per rollout: a function, a coroutine function, or any other callable.
            deadline_s: Seconds for all rollouts of one call of `score`.
            max_concurrency: Most calls of the function at the same time.
            by_segment: Return the segments of a `SegmentedReward`; False: only its reward.
        """
        self.function = function
        self._deadline_s = deadline_s
        self._max_concurrency = max_concurrency
        self._by_segment = by_segment
        self._caller = FunctionCaller(function, reward_output)
        self._slots = asyncio.Semaphore(max_concurrency)
        self._slots_loop: asyncio.AbstractEventLoop | None = None
        self._logged: set[str] = set()

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`. The rollouts are scored concurrently."""
        loop = asyncio.get_running_loop()
        if self._slots_loop is not loop:
            # A semaphore belongs to one event loop.
            self._slots_loop, self._slots = loop, asyncio.Semaphore(self._max_concurrency)
        deadline = loop.time() + self._deadline_s
        return list(await asyncio.gather(*(self._score_one(rollout, deadline) for rollout in rollouts)))

    async def check(self) -> None:
        """See `Reward.check`."""

    async def close(self) -> None:
        """See `Reward.close`. Calls that hang are not waited for."""
        self._caller.close()

    def image_dependent_part(self) -> None:
        """Return None: a function may use the known answer to the original image, which is wrong for a blank one."""

    async def _score_one(self, rollout: Rollout, deadline: float) -> RewardOutput:
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            detail = f"not called within {self._deadline_s:g} s: {self._max_concurrency} other calls were running"
            return RewardOutput(reward=None, status=TIMEOUT, detail=detail)
        try:
            outcome = await self._caller.call(rollout.question, rollout.text, deadline=deadline)
        finally:
            self._slots.release()
        if outcome is None:
            output = RewardOutput(reward=None, status=TIMEOUT, detail=f"no answer within {self._deadline_s:g} s")
        elif outcome.error is not None:
            output = RewardOutput(reward=None, status=outcome.error.name, detail=outcome.error.detail)
        else:
            output = outcome.value if self._by_segment else replace(outcome.value, segments=())
        if output.reward is None:
            self._log_once(rollout, output, outcome.error.traceback if outcome and outcome.error else "")
        return output

    def _log_once(self, rollout: Rollout, output: RewardOutput, traceback: str) -> None:
        """Log the first failure of each status, with its traceback. All of them are counted in the run's metrics."""
        if output.status not in self._logged:
            self._logged.add(output.status)
            message = "no reward by the function for %s: %s: %s; further cases are only counted\n%s"
            _log.warning(message, rollout.id, output.status, output.detail, traceback)


def reward_output(value: object) -> RewardOutput:
    """Convert the value that a function returned to a reward, or to a status if it is not a number.

    Rewards are numbers: int, float, bool (1 and 0), Decimal, Fraction, and scalars or arrays of one element of numpy,
    torch and their like. A text is not a number, even if it looks like one. A `SegmentedReward` has rewards of parts of
    the response as well.
    """
    if value is None:
        return RewardOutput(reward=None, status=NO_REWARD, detail="the function returned None")
    if isinstance(value, SegmentedReward):
        output = reward_output(value.reward)
        return output if output.reward is None else replace(output, segments=value.segments)
    number = _number(value)
    if number is None:
        detail = f"the function returned {_repr(value)} ({type(value).__name__}); it must return a number, or None"
        return RewardOutput(reward=None, status=NOT_A_NUMBER, detail=detail)
    if not math.isfinite(number):
        return RewardOutput(reward=None, status=NOT_FINITE, detail=f"the function returned {number}")
    return RewardOutput(reward=number, status=OK)


def load_function(name: str) -> RewardFunction:
    """Import the function named `module:function`.

    It may be any callable of (question, response), also an attribute of a class or object (`module:Class.method`). A
    class whose instances are callable is instantiated without arguments.

    Raises:
        ConfigError: The module cannot be imported, or has no such function.
    """
    module, colon, attribute = name.partition(":")
    try:
        function = operator.attrgetter(attribute)(importlib.import_module(module)) if colon else None
        if inspect.isclass(function) and any("__call__" in vars(base) for base in function.__mro__):
            function = function()
    except KeyboardInterrupt:
        raise
    # The user's module may raise anything while it is imported, SystemExit included.
    except BaseException as error:
        reason = f"{type(error).__name__}: {CallError.describe(error).detail}"
        raise ConfigError(f"function {name!r}: {reason}; give module:function of an importable module") from error
    if not callable(function):
        raise ConfigError(f"function {name!r} is not a function; give module:function")
    return function  # type: ignore[no-any-return]


def check_function(name: str) -> None:
    """Check before a run that a function can be imported and takes two arguments. Raises ConfigError."""
    function = load_function(name)
    try:
        # A decorator may add arguments that the decorated function needs.
        signature = inspect.signature(function, follow_wrapped=False)
    # Some callables have no signature.
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, "")
    except TypeError as error:
        problem = f"{error}: its signature is {signature}"
        raise ConfigError(f"function {name!r}: {problem}; it is called with a Question and the response") from error


def _number(value: Any) -> float | None:
    """Return a number as a float, possibly not finite; None for a value that is not a number."""
    if np.ma.is_masked(value):
        return math.nan
    if callable(item := getattr(value, "item", None)):
        try:
            value = item()
        # An array of several elements, or a tensor without data.
        except (TypeError, ValueError, RuntimeError):
            return None
    if isinstance(value, str) or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def _repr(value: object) -> str:
    """Return a short representation of a user's object, whose own one may be long or raise."""
    try:
        return reprlib.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
