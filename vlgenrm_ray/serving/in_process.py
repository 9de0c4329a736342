"""An engine in the ingress process, as in `vllm serve`: calls need no hop. A lost engine is started again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.engine import ChatResult, ChatTask, ScoreTask
from vlgenrm_ray.serving.engine_worker import EngineWorker
from vlgenrm_ray.serving.model_version import ModelVersion

_log = logging.getLogger("vlgenrm.serving")


class InProcessEngine:
    """The `Engine` of a service with one replica. Started by the first call; later calls wait until it is up."""

    def __init__(self, start: Callable[[], Awaitable[EngineWorker]]) -> None:
        """Create an engine. `start` starts a worker with the weights that are active when it is called."""
        self._start = start
        self._starting: asyncio.Future[EngineWorker] | None = None

    @property
    def alive(self) -> bool:
        """True if the worker is up."""
        starting = self._starting
        return (
            starting is not None
            and starting.done()
            and not starting.cancelled()
            and starting.exception() is None
            and starting.result().alive
        )

    async def worker(self) -> EngineWorker:
        """Return the worker once it is up. Raise the error of its start; the next call starts it again."""
        if self._starting is None or (self._starting.done() and not self.alive):
            self._starting = asyncio.ensure_future(self._restart(self._starting))
        # A caller that is cancelled must not cancel the start for the others.
        return await asyncio.shield(self._starting)

    async def judge(self, tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        """See `Engine.judge`. Deadlines run while the worker starts."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        worker = await self.worker()
        waited_s = loop.time() - arrived
        tasks = [replace(task, deadline_s=max(task.deadline_s - waited_s, 0.0)) for task in tasks]
        return await worker.judge(tasks, model)

    async def chat(self, task: ChatTask, model: ModelVersion) -> tuple[str, ChatResult]:
        """See `Engine.chat`. The deadline runs while the worker starts."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        worker = await self.worker()
        return await worker.chat(replace(task, deadline_s=max(task.deadline_s - (loop.time() - arrived), 0.0)), model)

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        """See `Engine.try_model`."""
        return await (await self.worker()).try_model(model)

    def is_loss(self, error: Exception) -> bool:
        """See `Engine.is_loss`."""
        return isinstance(error, EngineLostError)

    async def _restart(self, previous: "asyncio.Future[EngineWorker] | None") -> EngineWorker:
        if previous is not None and not previous.cancelled() and previous.exception() is None:
            _log.warning("the engine was lost; starting another")
            previous.result().close()
        return await self._start()
