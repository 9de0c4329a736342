"""Tasks -> calls of engine replicas: gathered, cancelled when nobody waits, made again where a replica was lost."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from vlgenrm_ray.serving.metrics import Metrics
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

Call = Callable[[list[Task], Model], Awaitable[list[Outcome]]]
"""One call of a replica. Cancelled, it cancels the replica's work."""

_log = logging.getLogger("vlgenrm.serving")
_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.25


@dataclass(slots=True, eq=False)
class _Waiting:
    task: Task
    model: Model
    since: float
    outcome: "asyncio.Future[Outcome]"


class Dispatcher:
    """Gathers the tasks of one turn of the event loop into calls.

    A call that is lost with its replica is made again, each task by itself then, so that one that kills its replica
    takes no other along for long.
    """

    def __init__(self, call: Call, is_loss: Callable[[Exception], bool], metrics: Metrics, *, max_chunk: int) -> None:
        """`is_loss`: whether an error of `call` means that the replica is gone, and another may be asked."""
        self._call = call
        self._is_loss = is_loss
        self._metrics = metrics
        self._max_chunk = max_chunk
        self._gathered: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, task: Task, model: Model) -> Outcome:
        """The outcome of a task. Raises what the last attempt raised."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(task, model, loop.time(), loop.create_future())
        if not self._gathered:
            # In a context of its own: Ray Serve would cancel the call together with the request that caused it, though
            # others may be waiting for the same.
            loop.call_soon(self._flush, context=contextvars.Context())
        self._gathered.append(waiting)
        return await waiting.outcome

    def _flush(self) -> None:
        gathered, self._gathered = [w for w in self._gathered if not w.outcome.done()], []
        for model in dict.fromkeys(w.model for w in gathered):
            same = [w for w in gathered if w.model == model]
            for start in range(0, len(same), self._max_chunk):
                self._begin(same[start : start + self._max_chunk], 0)

    def _begin(self, chunk: Sequence[_Waiting], attempt: int) -> None:
        work = asyncio.get_running_loop().create_task(self._run(chunk, attempt), context=contextvars.Context())
        self._calls.add(work)
        work.add_done_callback(self._calls.discard)

        def cancel_if_alone(_: object) -> None:
            if all(w.outcome.done() for w in chunk):
                work.cancel()

        for waiting in chunk:
            waiting.outcome.add_done_callback(cancel_if_alone)

    async def _run(self, chunk: Sequence[_Waiting], attempt: int) -> None:
        now = asyncio.get_running_loop().time()
        tasks = [replace(w.task, deadline_s=max(w.task.deadline_s - (now - w.since), 0.0)) for w in chunk]
        self._metrics.called(len(tasks))
        try:
            outcomes = await self._call(tasks, chunk[0].model)
        except Exception as error:
            if not self._is_loss(error) or attempt + 1 == _ATTEMPTS:
                for waiting in chunk:
                    if not waiting.outcome.done():
                        waiting.outcome.set_exception(error)
                return
            self._metrics.lost()
            _log.warning("an engine replica was lost with %d items (%s)", len(chunk), type(error).__name__)
            await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
            for waiting in chunk:
                if not waiting.outcome.done():
                    self._begin([waiting], attempt + 1)
            return
        for waiting, outcome in zip(chunk, outcomes, strict=True):
            if not waiting.outcome.done():
                waiting.outcome.set_result(outcome)
