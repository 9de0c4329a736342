"""One version of the weights takes over from another: tried on one engine, remembered, told to the service."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from pathlib import Path

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.engine_worker import model_in
from vlgenrm_ray.serving.service import Service
from vlgenrm_ray.serving.tasks import Model


class Handover:
    """Takes versions into service, one at a time."""

    def __init__(
        self,
        service: Service,
        trial: Callable[[Model], Awaitable[Finding]],
        remember: Callable[[Model], Awaitable[None]],
        is_loss: Callable[[Exception], bool],
    ) -> None:
        """`trial`: see `Engines.trial`. `remember`: that a version serves, for gates and engines to come."""
        self._service = service
        self._trial = trial
        self._remember = remember
        self._is_loss = is_loss
        self._one_at_a_time = asyncio.Lock()
        self._under_way: set[asyncio.Task[Finding]] = set()

    async def to(self, name: str) -> Finding:
        """Try the version in a folder on one engine; where it passes, the others follow with their next call.

        Once begun it comes to its end, whether or not anybody waits for it. Raises InputError, EngineLostError.
        """
        # An operator's client that goes away must not leave weights half tried. In a context of its own: Ray Serve
        # would cancel the trial together with the request that asked for it.
        work = asyncio.get_running_loop().create_task(self._to(name), context=contextvars.Context())
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)
        return await asyncio.shield(work)

    async def _to(self, name: str) -> Finding:
        folder = Path(name).absolute()
        await asyncio.to_thread(model_folder.check, folder)
        async with self._one_at_a_time:
            wanted = await asyncio.to_thread(model_in, folder, self._service.model.number + 1)
            try:
                finding = await self._trial(wanted)
            except InputError as error:
                # Ray's copy of it says the remote traceback as well.
                raise InputError(str(getattr(error, "cause", error))) from error
            except Exception as error:
                if self._is_loss(error):
                    raise EngineLostError("the engine was lost while it tried the version") from error
                raise
            if not finding.problem:
                await self._remember(wanted)
                self._service.model = wanted
        return finding
