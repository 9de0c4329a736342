"""Where one rollout engine after another lives: started, given the present weights, buried, started again.

Pure asyncio. An engine is whatever keeps `Sampler`; the Ray side is in `collector.py`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.weight_sync import Weights
from vlgenrm_ray.engines.weight_transfer import Phase
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
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

    async def transfer(self, phase: Phase, info: Mapping[str, Any]) -> Any:
        """See `rollouts.RolloutEngine.transfer`."""
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
        self._num_asking = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._held = False
        self._starting: asyncio.Task[None] | None = None

    async def sampler(self, *, load_timeout_s: float | None = None) -> Sampler:
        """The engine, started if there is none, with the present weights; not before it is let go, if it is held.

        `load_timeout_s`: an engine that has not taken them by then is taken for lost. Raises EngineLostError at the
        limit, WeightSyncError where the present weights cannot be had again.
        """
        async with self._lock:
            while True:
                sampler = await self._living()
                weights = self._present()
                # Not by version: a learner that went back to a checkpoint makes another of the same number.
                if weights is None or self._loaded is weights:
                    return sampler
                if not weights.kept:
                    raise WeightSyncError(
                        f"rollout engine {self.number} was started again, and weights of version {weights.version} "
                        "went straight from the learner into its forerunner; send them again"
                    )
                try:
                    self.version = await self._taken(sampler, weights, load_timeout_s)
                except EngineLostError as error:
                    self._bury(error)
                else:
                    self._loaded = weights
                    return sampler

    async def _taken(self, sampler: Sampler, weights: Weights[Any], timeout_s: float | None) -> int:
        late = asyncio.timeout(timeout_s)
        try:
            async with late:
                return await sampler.load(weights)
        except TimeoutError as error:
            if not late.expired():
                raise
            raise EngineLostError(
                f"{sampler.name} hangs: it has not taken weights of version {weights.version} within {timeout_s:g} s "
                "(sync.timeout_s)"
            ) from error

    def able(self) -> bool:
        """Whether an engine here has the present weights, or can have them without the learner."""
        weights = self._present()
        if weights is None or weights.kept or self._held:
            return True
        return self._sampler is not None and self._loaded is weights

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While its engine is asked to sample. No engine is held meanwhile."""
        self._num_asking += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._num_asking -= 1
            if not self._num_asking:
                self._quiet.set()

    async def start(self) -> None:
        """Start an engine if there is none, without weights; goes on where whoever awaits it gives up."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.ensure_future(self._start_alone())
        await asyncio.shield(self._starting)

    async def hold(self) -> Sampler:
        """The engine, when it samples nothing; until `let_go` or `given` it will not. Raises EngineLostError."""
        await self._lock.acquire()
        try:
            await self._quiet.wait()
            sampler = await self._living()
        except BaseException:
            self._lock.release()
            raise
        self._held = True
        return sampler

    def given(self, weights: Weights[Any]) -> None:
        """Say that the engine that is held has got these weights, and let it go."""
        self.version, self._loaded = weights.version, weights
        self.let_go()

    def let_go(self) -> None:
        """Let an engine that is held sample again."""
        if self._held:
            self._held = False
            self._lock.release()

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

    async def _start_alone(self) -> None:
        async with self._lock:
            await self._living()

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
