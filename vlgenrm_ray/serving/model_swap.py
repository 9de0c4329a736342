"""Model swaps: `POST /v1/model` tries new weights on one engine, and makes them the active version if they pass."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from pathlib import Path

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.model_version import ModelVersion, read_version
from vlgenrm_ray.serving.service import Service


class ModelSwap:
    """Swaps the model of a service, one swap at a time."""

    def __init__(self, service: Service, remember: Callable[[ModelVersion], Awaitable[None]]) -> None:
        """Create the swap. `remember` stores the active version for later engines (`ActiveModelRegistry.put`)."""
        self._service = service
        self._remember = remember
        self._lock = asyncio.Lock()
        self._swaps: set[asyncio.Task[CanaryResult]] = set()

    async def swap(self, folder: str) -> CanaryResult:
        """Try the weights in `folder` on one engine. If they pass, other engines load them with their next call.

        A swap runs to its end even if the caller is cancelled.

        Returns:
            The canary's result. The active model changed if and only if the result states no problem.

        Raises:
            InputError: The folder cannot be used, or its weights do not fit.
            EngineLostError: The engine was lost during the trial.
        """
        # A client that disconnects must not leave weights half tried. In an empty context: Ray Serve would cancel the
        # swap together with the request that started it.
        swap = asyncio.get_running_loop().create_task(self._swap(folder), context=contextvars.Context())
        self._swaps.add(swap)
        swap.add_done_callback(self._swaps.discard)
        return await asyncio.shield(swap)

    async def _swap(self, name: str) -> CanaryResult:
        folder = Path(name).absolute()
        await asyncio.to_thread(model_folder.check, folder)
        async with self._lock:
            model = await asyncio.to_thread(read_version, folder, self._service.model.number + 1)
            try:
                result = await self._service.dispatcher.engine.try_model(model)
            except InputError as error:
                # Ray's copy of the error contains the remote traceback; its cause does not.
                raise InputError(str(getattr(error, "cause", error))) from error
            except Exception as error:
                if self._service.dispatcher.is_loss(error):
                    raise EngineLostError("the engine was lost while it tried the version") from error
                raise
            if not result.problem:
                await self._remember(model)
                self._service.model = model
        return result
