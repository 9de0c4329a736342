"""Where one rollout engine after another lives: started, given the present weights, buried, started again.

Pure asyncio. An engine is whatever keeps `Sampler`; the Ray side is in `collector.py`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.weight_sync import Weights
from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.policy.rollouts import Asked, Group

_log = logging.getLogger(__name__)


class Sampler(Protocol):
    """One engine, wherever it is. Every method raises EngineLostError where it is gone."""

    name: str
    """Which it is, for whoever looks for it."""

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> AsyncIterator[tuple[int, Group]]:
        """See `rollouts.RolloutEngine.sample`."""
        ...

    async def load(self, weights: Weights[Any]) -> int:
        """See `rollouts.RolloutEngine.load`."""
        ...

    def close(self) -> None:
        """Give back its memory, without waiting."""
        ...


Start = Callable[[], Awaitable[Sampler]]
"""Starts an engine; returns when it can be asked."""
Present = Callable[[], Weights[Any] | None]
"""The weights that engines should have; None: those they start with."""


class Place:
    """Where one engine after another lives."""

    def __init__(self, number: int, start: Start, present: Present, restarts: int) -> None:
        """`restarts`: times in a row that an engine is started again without having finished a group."""
        self.number = number
        self.version = 0
        self._start = start
        self._present = present
        self._restarts = restarts
        self._sampler: Sampler | None = None
        self._loaded: Weights[Any] | None = None
        self._deaths = 0
        self._worked = time.monotonic()
        self._lock = asyncio.Lock()

    async def sampler(self) -> Sampler:
        """The engine, started if there is none, with the present weights. Raises EngineLostError at the limit."""
        async with self._lock:
            while True:
                sampler = await self._living()
                weights = self._present()
                # Not by version: a learner that went back to a checkpoint makes another of the same number.
                if weights is None or self._loaded is weights:
                    return sampler
                try:
                    self.version = await sampler.load(weights)
                except EngineLostError as error:
                    self._bury(error)
                else:
                    self._loaded = weights
                    return sampler

    def lost(self, sampler: Sampler, error: EngineLostError) -> None:
        """Say that an engine is gone; nothing where another is there already."""
        if sampler is self._sampler:
            self._bury(error)

    def worked(self) -> None:
        """Say that it finished something."""
        self._deaths = 0
        self._worked = time.monotonic()

    def silent_s(self, since: float) -> float:
        """Seconds in which it finished nothing, of those since a time of `time.monotonic`."""
        return time.monotonic() - max(since, self._worked)

    def close(self) -> None:
        """End the engine, if there is one."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    async def _living(self) -> Sampler:
        """The engine, started if there is none; the lock is held."""
        while self._sampler is None:
            self.version, self._loaded = 0, None
            try:
                self._sampler = await self._start()
            except EngineLostError as error:
                self._bury(error)
        return self._sampler

    def _bury(self, error: EngineLostError) -> None:
        self.close()
        self._deaths += 1
        if self._deaths > self._restarts:
            raise EngineLostError(
                f"rollout engine {self.number} was lost {self._deaths} times in a row, last of: {error}"
            ) from error
        _log.warning("rollout engine %d is lost and started again: %s", self.number, error)
