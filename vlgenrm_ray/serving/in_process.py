"""A lone engine in the gate's own process, as in `vllm serve`: no hop to it. Lost, it is started again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

_log = logging.getLogger("vlgenrm.serving")


class Startable(Protocol):
    """What `engine.Engine` is."""

    @property
    def alive(self) -> bool: ...

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]: ...

    async def trial(self, wanted: Model) -> Finding: ...

    def close(self) -> None:
        """End it; whoever waits for it gets EngineLostError."""


class EngineWithin:
    """`gate.Engines` of one engine. Who asks while it is started again waits for it."""

    def __init__(self, start: Callable[[], Awaitable[Startable]]) -> None:
        """`start`: brings up an engine with the weights that serve at that time."""
        self._start = start
        self._begun: asyncio.Future[Startable] | None = None

    @property
    def alive(self) -> bool:
        """Whether an engine is up."""
        begun = self._begun
        return (
            begun is not None
            and begun.done()
            and not begun.cancelled()
            and begun.exception() is None
            and (begun.result().alive)
        )

    async def up(self) -> Startable:
        """The engine, once it is there. Raises what starting it raised; whoever asks next starts it anew."""
        if self._begun is None or (self._begun.done() and not self.alive):
            self._begun = asyncio.ensure_future(self._again(self._begun))
        # Who goes away must not end it for the others.
        return await asyncio.shield(self._begun)

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        """See `Replica.judge`; the tasks' deadlines run while the engine starts."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        engine = await self.up()
        waited = loop.time() - begin
        left = [replace(task, deadline_s=max(task.deadline_s - waited, 0.0)) for task in tasks]
        return await engine.judge(left, wanted)

    async def trial(self, wanted: Model) -> Finding:
        """See `Replica.trial`."""
        return await (await self.up()).trial(wanted)

    def is_loss(self, error: Exception) -> bool:
        """Whether the engine is gone, and its tasks may be given to the next."""
        return isinstance(error, EngineLostError)

    async def _again(self, before: "asyncio.Future[Startable] | None") -> Startable:
        if before is not None and not before.cancelled() and before.exception() is None:
            _log.warning("the engine was lost; starting another")
            before.result().close()
        return await self._start()
