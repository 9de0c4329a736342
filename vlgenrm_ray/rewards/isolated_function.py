"""A Python function as a reward, in a Ray actor of the run.

A thread can neither be ended nor outlive its process: a function that holds the interpreter's lock (a regular
expression with nested repetitions, a huge power) stops all other threads, and one that crashes (`os._exit`, a fault in
C code) ends the process. In an actor this costs the rollout at fault alone: the actor is ended, another one is started,
and the rollouts that were scored meanwhile are scored again, each in an actor of its own.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.errors import EngineLostError, RemoteError, RemoteRefusalError
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.function import MAX_CONCURRENCY, FunctionReward, load_function
from vlgenrm_ray.rewards.reward import TIMEOUT, RewardOutput

CRASHED = "crashed"
"""Status of a rollout for which the function ended its process."""
_GRACE_S = 5.0
"""Seconds after a deadline in which a responsive process still answers; without an answer it counts as blocked."""
_START_S = 300.0
"""Seconds that a process may take to start, imports of the user's module included."""
_MAX_SEPARATE = 4
"""Most processes at the same time that score one rollout of a lost process again."""

_log = logging.getLogger(__name__)


class FunctionProcess(Protocol):
    """A process that scores with a function."""

    async def start(self) -> None:
        """Wait until the function is imported. Raises RemoteError, RemoteRefusalError."""
        ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `FunctionReward.score`. Raises EngineLostError if the process ends meanwhile."""
        ...

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        ...


class IsolatedFunctionReward:
    """A `Reward` that calls a function in another process, and starts a new one if the function blocks or ends it."""

    def __init__(
        self, create: Callable[[], FunctionProcess], deadline_s: float = 300.0, *, grace_s: float = _GRACE_S
    ) -> None:
        """Wrap a function in another process.

        Args:
            create: Creates a process.
            deadline_s: Seconds for all rollouts of one call of `score`, as in the process. Rollouts whose process was
                lost are scored again within twice that time; those that are left then have the status `timeout`.
            grace_s: Further seconds after which a process without an answer counts as blocked.
        """
        self._create = create
        self._deadline_s = deadline_s
        self._grace_s = grace_s
        self._process: FunctionProcess | None = None
        self._starting = asyncio.Lock()
        self._separate = asyncio.Semaphore(_MAX_SEPARATE)
        self._idle: list[FunctionProcess] = []
        """Processes that have scored a rollout alone, and may score others."""
        self._num_suspects = 0
        """Number of rollouts whose process was lost, and which are being scored again."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`."""
        process = await self._started()
        try:
            return await self._call(process, rollouts)
        except _ProcessLostError as error:
            message = "the process of the reward function was lost (%s); %d rollouts are scored again, each in another"
            _log.warning(message, error, len(rollouts))
        if self._process is process:
            self._process = None
        end = asyncio.get_running_loop().time() + 2 * self._deadline_s
        self._num_suspects += len(rollouts)
        try:
            return list(await asyncio.gather(*(self._score_alone(rollout, end) for rollout in rollouts)))
        finally:
            self._num_suspects -= len(rollouts)
            if not self._num_suspects:
                self._kill_idle()

    async def check(self) -> None:
        """See `Reward.check`. Waits until the function is imported."""
        await self._started()

    async def close(self) -> None:
        """See `Reward.close`."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        self._kill_idle()

    def image_dependent_part(self) -> None:
        """Return None, see `FunctionReward.image_dependent_part`."""

    async def _score_alone(self, rollout: Rollout, end: float) -> RewardOutput:
        async with self._separate:
            if asyncio.get_running_loop().time() > end:
                detail = f"not scored again within {2 * self._deadline_s:g} s after its process was lost"
                return RewardOutput(reward=None, status=TIMEOUT, detail=detail)
            process = self._idle.pop() if self._idle else await self._start()
            try:
                (output,) = await self._call(process, [rollout])
            except _ProcessLostError as error:
                return RewardOutput(reward=None, status=error.status, detail=str(error))
            except BaseException:
                process.kill()
                raise
            self._idle.append(process)
            return output

    async def _call(self, process: FunctionProcess, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """Score rollouts in a process. If it is blocked or ends, end it for good and raise _ProcessLostError."""
        timeout = asyncio.timeout(self._deadline_s + self._grace_s)
        try:
            async with timeout:
                return await process.score(rollouts)
        except TimeoutError:
            if not timeout.expired():
                raise
            process.kill()
            detail = f"the function blocked its process for more than {self._deadline_s:g} s"
            raise _ProcessLostError(detail, TIMEOUT) from None
        except EngineLostError as error:
            process.kill()
            raise _ProcessLostError(f"the function ended its process: {error}", CRASHED) from error

    async def _started(self) -> FunctionProcess:
        async with self._starting:
            if self._process is None:
                self._process = await self._start()
            return self._process

    async def _start(self) -> FunctionProcess:
        process = self._create()
        try:
            await process.start()
        except BaseException:
            process.kill()
            raise
        return process

    def _kill_idle(self) -> None:
        while self._idle:
            self._idle.pop().kill()


class _ProcessLostError(EngineLostError):
    """A process that a function blocked or ended. `status` is that of the rollout at fault."""

    def __init__(self, detail: str, status: str) -> None:
        super().__init__(detail)
        self.status = status


class FunctionActor:
    """Ray actor that runs a `FunctionReward` in its own process."""

    def __init__(self, function: str, deadline_s: float, max_concurrency: int, by_segment: bool = False) -> None:
        self._reward = FunctionReward(
            load_function(function), deadline_s, max_concurrency=max_concurrency, by_segment=by_segment
        )

    async def start(self) -> None:
        """Return once the actor has started."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `FunctionReward.score`."""
        return await self._reward.score(rollouts)


class _ActorProcess:
    """A `FunctionActor` as a `FunctionProcess`."""

    def __init__(self, function: str, deadline_s: float, max_concurrency: int, by_segment: bool) -> None:
        import ray

        self._function = function
        # It reserves no CPU: a function shares those of the orchestrator, in which it would run otherwise.
        actor_class = ray.remote(FunctionActor).options(num_cpus=0, max_concurrency=_MAX_CALLS)
        self._actor: Any = actor_class.remote(function, deadline_s, max_concurrency, by_segment)

    async def start(self) -> None:
        from ray.exceptions import RayActorError

        try:
            async with asyncio.timeout(_START_S):
                await self._actor.start.remote()
        except TimeoutError:
            raise RemoteError(f"the process of function {self._function!r} did not start in {_START_S:g} s") from None
        except RayActorError as error:
            kind = RemoteRefusalError if error.actor_init_failed else RemoteError
            raise kind(f"function {self._function!r}: {connection.actor_death_cause(error)}") from error

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        from ray.exceptions import RayActorError

        try:
            outputs: list[RewardOutput] = await self._actor.score.remote(rollouts)
        except RayActorError as error:
            raise EngineLostError(_exit_cause(error)) from error
        return outputs

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


def _exit_cause(error: Exception) -> str:
    """Return how the process of an actor ended. Ray's message begins with ids and addresses, which are left out."""
    return connection.actor_death_cause(error).partition("The actor is dead because ")[2] or str(error)[:_MAX_CAUSE]


_MAX_CAUSE = 200
_MAX_CALLS = 10_000
"""Calls of `score` that an actor takes at a time; the function's own limit is `max_concurrency`."""


def start_isolated_function(
    function: str, deadline_s: float = 300.0, *, max_concurrency: int = MAX_CONCURRENCY, by_segment: bool = False
) -> IsolatedFunctionReward:
    """Return the reward of a function in an actor, which starts with the first call.

    Args:
        function: `module:function`, see `load_function`. Every node must be able to import it.
        deadline_s: Seconds for all rollouts of one call of `score`.
        max_concurrency: Most calls of the function at the same time.
        by_segment: See `FunctionReward`.
    """
    return IsolatedFunctionReward(lambda: _ActorProcess(function, deadline_s, max_concurrency, by_segment), deadline_s)
