"""One vLLM engine with its judge, in the process that asks it."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Self

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.vllm_async import AsyncVllmGenerator
from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine_worker import Replica
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
        # Under the version that is really there: replies must name what made them.
        replica = Replica(config, generator, await loaded(model), loaded)
        finding = await replica.examine()
        if finding.problem:
            _log.warning("version %s would not pass its own canary: %s", replica.model.version, finding.problem)
        return cls(replica, generator)

    @property
    def alive(self) -> bool:
        """Whether the engine's process runs and has not failed."""
        return self._generator.is_alive()

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        """See `Replica.judge`."""
        return await self._replica.judge(tasks, wanted)

    async def trial(self, wanted: Model) -> Finding:
        """See `Replica.trial`. Raises InputError also where the present weights' folder is gone or holds others."""
        await asyncio.to_thread(check_way_back, self._replica.model)
        try:
            return await self._replica.trial(wanted)
        except EngineLostError:
            # Alive, perhaps, but with weights that must not serve: another is started with those that may.
            self.close()
            raise

    def close(self) -> None:
        """End the engine's process; whoever waits for it gets EngineLostError."""
        self._generator.close()


async def loaded(model: Model) -> Model:
    """Weights that were just loaded from their folder, under the version that it holds."""
    try:
        held = await asyncio.to_thread(_held, model)
    except InputError as error:
        _log.warning("version %s was loaded, and its folder cannot be read any more: %s", model.version, error)
        return model
    if held == model.version:
        return model
    _log.warning("%s holds other weights than it did: serving version %s, not %s", model.folder, held, model.version)
    return replace(model, version=held)


def check_way_back(model: Model) -> None:
    """Raise InputError unless a version can be loaded once more from its folder."""
    model_folder.check(Path(model.folder))
    if (held := _held(model)) != model.version:
        raise InputError(
            f"model folder {model.folder}: holds {held} by now, not {model.version}, which serves; were the new "
            "one refused, there would be no way back: put the old weights there, or start the service with others"
        )


def _held(model: Model) -> str:
    return model_folder.version(Path(model.folder), model.version.rpartition("-")[0])
