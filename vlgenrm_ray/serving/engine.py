"""One vLLM engine with its judge, in the process that asks it."""

import asyncio
import logging
from pathlib import Path
from typing import Self

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.vllm_async import AsyncVllmGenerator
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.replica import Replica
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

_log = logging.getLogger("vlgenrm.serving")


class Engine:
    """An engine that is up and has judged the canary."""

    def __init__(self, replica: Replica, generator: AsyncVllmGenerator) -> None:
        self._replica = replica
        self._generator = generator

    @classmethod
    async def start(cls, config: ServingConfig, model: Model) -> Self:
        """Seconds to minutes, in which the event loop goes on. Raises InputError, ConfigError, EngineLostError."""
        settings = config.engine.model_copy(update={"model": model.folder})
        generator = await asyncio.to_thread(AsyncVllmGenerator, settings)
        replica = Replica(config, generator, model)
        finding = await replica.examine()
        if finding.problem:
            _log.warning("version %s would not pass its own canary: %s", model.version, finding.problem)
        return cls(replica, generator)

    @property
    def alive(self) -> bool:
        """Whether the engine's process runs and has not failed."""
        return self._generator.is_alive()

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        """See `Replica.judge`."""
        return await self._replica.judge(tasks, wanted)

    async def trial(self, wanted: Model) -> Finding:
        """See `Replica.trial`. Raises InputError also where the present weights' folder is gone."""
        # Without it there would be no way back.
        await asyncio.to_thread(model_folder.check, Path(self._replica.model.folder))
        return await self._replica.trial(wanted)

    def close(self) -> None:
        """End the engine's process; whoever waits for it gets EngineLostError."""
        self._generator.close()
