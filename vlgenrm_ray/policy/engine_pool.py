"""A pool of rollout engines: distributes requests, restarts lost engines, repeats their unfinished requests.

`RolloutEnginePool` spreads requests over its slots. An `EngineSlot` holds one engine after another: it starts the
engine, loads the current weights into it, and replaces it when it is lost. Everything here is asyncio without Ray; the
engines behind the protocol `RolloutEngine` are actors, see `rollout_worker`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, TypeVar, cast

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.policy.rollouts import RolloutGroup, RolloutRequest
from vlgenrm_ray.weight_sync.coordinator import TransferPhase
from vlgenrm_ray.weight_sync.versions import WeightVersion

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RolloutEngine(Protocol):
    """One rollout engine. Every method raises EngineLostError if the engine is gone."""

    name: str
    """Name of the process, for messages."""

    def sample(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> AsyncIterator[tuple[int, RolloutGroup]]:
        """See `rollout_worker.RolloutWorker.sample`."""
        ...

    async def load(self, weights: WeightVersion[Any]) -> int:
        """See `rollout_worker.RolloutWorker.load`."""
        ...

    async def transfer(self, phase: TransferPhase, info: Mapping[str, Any]) -> Any:
        """See `rollout_worker.RolloutWorker.transfer`."""
        ...

    def close(self) -> None:
        """Terminate the engine without waiting."""
        ...


StartEngine = Callable[[], Awaitable[RolloutEngine]]
"""Starts an engine and returns it when it is ready. Raises EngineLostError if it does not start."""
CurrentWeights = Callable[[], WeightVersion[Any] | None]
"""Returns the weights that engines should have; None: those of the model folder."""


class EngineSlot:
    """A slot of the pool that holds one engine after another."""

    def __init__(self, index: int, start: StartEngine, current_weights: CurrentWeights, max_restarts: int) -> None:
        """Create an empty slot.

        Args:
            index: Index of the slot in the pool.
            start: Starts an engine.
            current_weights: Returns the weights that the engine should have.
            max_restarts: Times in a row that an engine is restarted without having finished a group.
        """
        self.index = index
        self.version = 0
        """Version of the engine's weights."""
        self._start = start
        self._current_weights = current_weights
        self._max_restarts = max_restarts
        self._engine: RolloutEngine | None = None
        self._loaded: WeightVersion[Any] | None = None
        self._num_losses = 0
        self._last_progress = time.monotonic()
        self._lock = asyncio.Lock()
        self._num_streams = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._held = False
        self._starting: asyncio.Task[None] | None = None

    async def ready_engine(self, *, load_timeout_s: float | None = None) -> RolloutEngine:
        """Return the engine with the current weights, started if necessary. Waits while the engine is held.

        Args:
            load_timeout_s: Seconds to load the weights, after which the engine counts as lost. None: no limit.

        Raises:
            EngineLostError: The engine was lost more than `max_restarts` times in a row.
            WeightSyncError: The current weights went from GPU to GPU and must be sent again.
        """
        async with self._lock:
            while True:
                engine = await self._running_engine()
                weights = self._current_weights()
                # By identity: a learner that resumed from a checkpoint sends other weights of the same version.
                if weights is None or self._loaded is weights:
                    return engine
                if not weights.is_stored:
                    raise WeightSyncError(
                        f"rollout engine {self.index} was restarted, and weights of version {weights.version} went "
                        "from the learner's GPU into its predecessor; send them again"
                    )
                try:
                    self.version = await self._load(engine, weights, load_timeout_s)
                except EngineLostError as error:
                    self._discard(error)
                else:
                    self._loaded = weights
                    return engine

    async def _load(self, engine: RolloutEngine, weights: WeightVersion[Any], timeout_s: float | None) -> int:
        timeout = asyncio.timeout(timeout_s)
        try:
            async with timeout:
                return await engine.load(weights)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise EngineLostError(
                f"{engine.name} hangs: it has not loaded weights of version {weights.version} within {timeout_s:g} s "
                "(sync.timeout_s)"
            ) from error

    def can_serve(self) -> bool:
        """Return whether the engine has the current weights, or can load them without the learner."""
        weights = self._current_weights()
        if weights is None or weights.is_stored or self._held:
            return True
        return self._engine is not None and self._loaded is weights

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Mark that the engine is sampling. It cannot be held meanwhile."""
        self._num_streams += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_streams -= 1
            if not self._num_streams:
                self._idle.set()

    async def start(self) -> None:
        """Start an engine without weights if there is none. The start continues if the caller is cancelled."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.ensure_future(self._start_locked())
        await asyncio.shield(self._starting)

    async def hold(self) -> RolloutEngine:
        """Wait until the engine is idle, and keep it idle until `commit` or `release`. Raises EngineLostError."""
        await self._lock.acquire()
        try:
            await self._idle.wait()
            engine = await self._running_engine()
        except BaseException:
            self._lock.release()
            raise
        self._held = True
        return engine

    def commit(self, weights: WeightVersion[Any]) -> None:
        """Record that the held engine has received these weights, and release it."""
        self.version, self._loaded = weights.version, weights
        self.release()

    def release(self) -> None:
        """Let a held engine sample again."""
        if self._held:
            self._held = False
            self._lock.release()

    def discard(self, engine: RolloutEngine, error: EngineLostError) -> None:
        """Discard a lost engine, unless it has been replaced already. Raises EngineLostError at the restart limit."""
        if engine is self._engine:
            self._discard(error)

    def record_progress(self) -> None:
        """Record that the engine has finished a group."""
        self._num_losses = 0
        self._last_progress = time.monotonic()

    def stalled_s(self, since: float) -> float:
        """Return the seconds without progress, counted from `since` (a time of `time.monotonic`) at the earliest."""
        return time.monotonic() - max(since, self._last_progress)

    def close(self) -> None:
        """Terminate the engine, if there is one."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    async def _start_locked(self) -> None:
        async with self._lock:
            await self._running_engine()

    async def _running_engine(self) -> RolloutEngine:
        """Return the engine, started if there is none. The caller holds the lock."""
        while self._engine is None:
            self.version, self._loaded = 0, None
            try:
                self._engine = await self._start()
            except EngineLostError as error:
                self._discard(error)
        return self._engine

    def _discard(self, error: EngineLostError) -> None:
        self.close()
        self._num_losses += 1
        if self._num_losses > self._max_restarts:
            raise EngineLostError(
                f"rollout engine {self.index} was lost {self._num_losses} times in a row, last error: {error}"
            ) from error
        _log.warning("rollout engine %d was lost and is restarted: %s", self.index, error)


class RolloutEnginePool:
    """Several rollout engines that sample from one policy."""

    def __init__(
        self, start: StartEngine, *, num_engines: int, max_restarts: int, stall_timeout_s: float, load_timeout_s: float
    ) -> None:
        """Create the pool. Engines are started by `start`, or when they are first needed.

        Args:
            start: Starts an engine.
            num_engines: Number of engines.
            max_restarts: Times in a row that an engine is restarted without having finished a group.
            stall_timeout_s: Seconds that an engine with requests may take to finish the next group, before it counts as
                lost.
            load_timeout_s: Seconds that a restarted engine may take to load the current weights, before it counts as
                lost.
        """
        self._slots = [EngineSlot(index, start, lambda: self._weights, max_restarts) for index in range(num_engines)]
        self._stall_timeout_s = stall_timeout_s
        self._load_timeout_s = load_timeout_s
        self._weights: WeightVersion[Any] | None = None

    @property
    def version(self) -> int:
        """Version of the weights that engines sample with, or will load before they sample."""
        return self._weights.version if self._weights else 0

    async def start(self) -> None:
        """Start all engines concurrently. Raises EngineLostError if one does not start."""
        await asyncio.gather(*(slot.ready_engine() for slot in self._slots))

    async def load(self, weights: WeightVersion[Any], *, timeout_s: float) -> None:
        """Load new weights into every engine, after the requests it is working on. A restarted engine loads them too.

        Raises:
            WeightSyncError: An engine refuses them, or not all have loaded them within `timeout_s` seconds. The
                pool then keeps the previous weights as the current ones.
        """
        previous, self._weights = self._weights, weights
        try:
            loading = [slot.ready_engine() for slot in self._slots]
            await self.gather(loading, timeout_s, f"weights of version {weights.version}", "loaded them")
        except BaseException:
            self._weights = previous
            raise

    # -- weight transfers between GPUs -------------------------------------------------------------------------

    async def hold(self, *, timeout_s: float) -> tuple[RolloutEngine, ...]:
        """Wait until all engines are idle, and keep them idle until `commit`, `release` or `restart_all`.

        Raises:
            WeightSyncError: An engine still samples after `timeout_s` seconds.
            EngineLostError: An engine does not start.
        """
        # Starting has a time limit of its own.
        await asyncio.gather(*(slot.start() for slot in self._slots))
        try:
            holding = [slot.hold() for slot in self._slots]
            return tuple(await self.gather(holding, timeout_s, "new weights", "stopped sampling"))
        except BaseException:
            self.release()
            raise

    def commit(self, weights: WeightVersion[Any]) -> None:
        """Record that all held engines have received these weights, and let them sample."""
        self._weights = weights
        for slot in self._slots:
            slot.commit(weights)

    def release(self) -> None:
        """Let held engines sample again, with the weights they have."""
        for slot in self._slots:
            slot.release()

    def restart_all(self, reason: str) -> None:
        """Terminate held engines, whose weights are undefined. New ones are started when they are needed."""
        _log.warning("all rollout engines are restarted: %s", reason)
        for slot in self._slots:
            slot.close()
            slot.release()

    async def gather(
        self, awaitables: Sequence[Awaitable[_T]], timeout_s: float, subject: str, action: str
    ) -> list[_T]:
        """Wait for one awaitable per slot.

        Args:
            awaitables: One per slot, in order. They run concurrently.
            timeout_s: Seconds for all of them.
            subject: Beginning of the error message.
            action: End of the error message after "have not", such as "loaded them".

        Raises:
            WeightSyncError: `timeout_s` is over; the message names the engines that are late.
            Exception: The first exception of an awaitable.
        """
        tasks = {asyncio.ensure_future(one): slot for one, slot in zip(awaitables, self._slots, strict=True)}
        try:
            done, late = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if late:
                slots = [slot for task, slot in tasks.items() if task in late]
                names = ", ".join(f"{slot.index} (at version {slot.version})" for slot in slots)
                raise WeightSyncError(
                    f"{subject}: after {timeout_s:g} s these rollout engines of {len(self._slots)} have not {action}: "
                    f"{names}; they hang or are still sampling; raise sync.timeout_s if they need longer"
                )
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    # -- sampling ----------------------------------------------------------------------------------------------

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> AsyncIterator[tuple[int, RolloutGroup]]:
        """Sample the groups of some requests on all engines.

        Several such iterators may run at the same time.

        Yields:
            Index of the request and its group, in the order in which groups are finished.

        Raises:
            EngineLostError: An engine was lost more than `max_restarts` times in a row.
            WeightSyncError: No engine has the current weights any more.
        """
        waiting = deque(range(len(requests)))
        finished: asyncio.Queue[tuple[int, RolloutGroup]] = asyncio.Queue()
        requeued = asyncio.Event()
        workers = [
            asyncio.ensure_future(self._serve(slot, requests, sampling, waiting, finished, requeued))
            for slot in self._slots
        ]
        try:
            for _ in range(len(requests)):
                next_group = asyncio.ensure_future(finished.get())
                await asyncio.wait([next_group, *workers], return_when=asyncio.FIRST_COMPLETED)
                if not next_group.done():
                    next_group.cancel()
                    # A worker task only ends by an exception.
                    next(worker for worker in workers if worker.done()).result()
                yield next_group.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def close(self) -> None:
        """Terminate the engines."""
        for slot in self._slots:
            slot.close()

    async def _serve(
        self,
        slot: EngineSlot,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        waiting: deque[int],
        finished: "asyncio.Queue[tuple[int, RolloutGroup]]",
        requeued: asyncio.Event,
    ) -> None:
        """Sample a share of the waiting requests, repeatedly. Requests of a lost engine are queued again."""
        while True:
            while not waiting:
                requeued.clear()
                await requeued.wait()
            if not slot.can_serve():
                await self._wait_for_weights(slot)
            share = [waiting.popleft() for _ in range(-(-len(waiting) // len(self._slots)))]
            unfinished = dict(enumerate(share))
            engine = await slot.ready_engine(load_timeout_s=self._load_timeout_s)
            stream = self._sample_with_timeout(slot, engine, [requests[index] for index in share], sampling)
            with slot.streaming():
                try:
                    async with aclosing(cast("Any", stream)) as groups:
                        async for position, group in groups:
                            slot.record_progress()
                            finished.put_nowait((unfinished.pop(position), group))
                except EngineLostError as error:
                    waiting.extend(unfinished.values())
                    requeued.set()
                    slot.discard(engine, error)

    async def _wait_for_weights(self, slot: EngineSlot) -> None:
        """Restart a slot's engine, and leave the requests to the others until new weights are sent. Never returns.

        Raises:
            WeightSyncError: No other engine has the current weights.
        """
        if not any(other.can_serve() for other in self._slots):
            raise WeightSyncError(f"no rollout engine has weights of version {self.version} any more; send them again")
        _log.warning("rollout engine %d has no weights until the next ones are sent; others do its work", slot.index)
        await slot.start()
        await asyncio.Event().wait()

    async def _sample_with_timeout(
        self, slot: EngineSlot, engine: RolloutEngine, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> AsyncIterator[tuple[int, RolloutGroup]]:
        """Yield the groups of an engine. Raises EngineLostError if the engine is lost or stalls."""
        began, num_left = time.monotonic(), len(requests)
        async with aclosing(cast("Any", engine.sample(requests, sampling))) as groups:
            while num_left:
                next_group = asyncio.ensure_future(anext(groups))
                try:
                    while not next_group.done():
                        # Progress of the slot, not of this stream alone: the engine may be busy with an earlier one.
                        remaining_s = self._stall_timeout_s - slot.stalled_s(began)
                        if remaining_s <= 0:
                            raise EngineLostError(
                                f"{engine.name} hangs: no group finished for {self._stall_timeout_s:g} s "
                                f"(rollouts.stall_timeout_s) with {num_left} requests left"
                            )
                        await asyncio.wait([next_group], timeout=remaining_s)
                    yield next_group.result()
                finally:
                    next_group.cancel()
                    await asyncio.gather(next_group, return_exceptions=True)
                num_left -= 1
