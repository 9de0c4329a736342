"""Several engines as one: questions go to whoever is free, and what a lost engine had not finished to another.

Pure asyncio; an engine is whatever keeps `Sampler`. The Ray side is in `collector.py`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, cast

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.weight_sync import Weights
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

    def close(self) -> None:
        """Give back its memory, without waiting."""
        ...


Start = Callable[[], Awaitable[Sampler]]
"""Starts an engine; returns when it can be asked."""


class _Place:
    """Where one engine after another lives."""

    def __init__(self, number: int, start: Start, restarts: int) -> None:
        self.number = number
        self.version = 0
        self._start = start
        self._restarts = restarts
        self._sampler: Sampler | None = None
        self._loaded: Weights[Any] | None = None
        self._deaths = 0
        self._worked = time.monotonic()
        self._lock = asyncio.Lock()

    async def sampler(self, weights: Weights[Any] | None) -> Sampler:
        """The engine, started if there is none, with the present weights. Raises EngineLostError at the limit."""
        async with self._lock:
            while True:
                try:
                    if self._sampler is None:
                        self.version, self._loaded = 0, None
                        self._sampler = await self._start()
                    # Not by version: a learner that went back to a checkpoint makes another of the same number.
                    if weights is not None and self._loaded is not weights:
                        self.version = await self._sampler.load(weights)
                        self._loaded = weights
                    return self._sampler
                except EngineLostError as error:
                    self._bury(error)

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
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def _bury(self, error: EngineLostError) -> None:
        self.close()
        self._deaths += 1
        if self._deaths > self._restarts:
            raise EngineLostError(
                f"rollout engine {self.number} was lost {self._deaths} times in a row, last of: {error}"
            ) from error
        _log.warning("rollout engine %d is lost and started again: %s", self.number, error)


class Pool:
    """Engines that sample from one policy."""

    def __init__(self, start: Start, *, size: int, restarts: int, stall_timeout_s: float) -> None:
        """`restarts`: times in a row that a place's engine is started again without having finished a group.
        `stall_timeout_s`: an engine that has questions and finishes no group for so long is taken for lost.
        """
        self._places = [_Place(number, start, restarts) for number in range(size)]
        self._stall_timeout_s = stall_timeout_s
        self._weights: Weights[Any] | None = None

    @property
    def version(self) -> int:
        """Of the weights that engines sample with, or are about to."""
        return self._weights.version if self._weights else 0

    async def start(self) -> None:
        """Start the engines, all at once. Raises EngineLostError where one does not."""
        await asyncio.gather(*(place.sampler(self._weights) for place in self._places))

    async def load(self, weights: Weights[Any], *, timeout_s: float) -> None:
        """Give every engine new weights, each when it has said what it was asked; an engine lost then starts with them.

        Raises WeightSyncError where one does not take them, or all of this takes longer than `timeout_s`.
        """
        before, self._weights = self._weights, weights
        loading = {asyncio.ensure_future(place.sampler(weights)): place for place in self._places}
        try:
            done, hanging = await asyncio.wait(loading, timeout=timeout_s)
            if hanging:
                named = ", ".join(f"{loading[task].number} (at version {loading[task].version})" for task in hanging)
                raise WeightSyncError(
                    f"weights of version {weights.version}: after {timeout_s:g} s these rollout engines of "
                    f"{len(self._places)} have not taken them: {named}; they hang, or sample still: "
                    "see rollouts.sync_timeout_s"
                )
            for task in done:
                task.result()
        except BaseException:
            self._weights = before
            raise
        finally:
            for task in loading:
                task.cancel()

    async def groups(self, asked: Sequence[Asked], sampling: Sampling) -> AsyncIterator[tuple[int, Group]]:
        """Each question's group with its place in `asked`, as they are finished.

        Raises EngineLostError where engines are lost again and again.
        """
        waiting = deque(range(len(asked)))
        finished: asyncio.Queue[tuple[int, Group]] = asyncio.Queue()
        more = asyncio.Event()
        workers = [
            asyncio.ensure_future(self._work(place, asked, sampling, waiting, finished, more)) for place in self._places
        ]
        try:
            for _ in range(len(asked)):
                getting = asyncio.ensure_future(finished.get())
                await asyncio.wait([getting, *workers], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    # A worker ends by an error only.
                    next(worker for worker in workers if worker.done()).result()
                yield getting.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def close(self) -> None:
        """End the engines."""
        for place in self._places:
            place.close()

    async def _work(
        self,
        place: _Place,
        asked: Sequence[Asked],
        sampling: Sampling,
        waiting: deque[int],
        finished: "asyncio.Queue[tuple[int, Group]]",
        more: asyncio.Event,
    ) -> None:
        """Ask one engine for its share of what waits, again and again; what a loss leaves over waits for anyone."""
        while True:
            while not waiting:
                more.clear()
                await more.wait()
            share = [waiting.popleft() for _ in range(-(-len(waiting) // len(self._places)))]
            left = dict(enumerate(share))
            sampler = await place.sampler(self._weights)
            said = self._said(place, sampler, [asked[number] for number in share], sampling)
            try:
                async with aclosing(cast("Any", said)) as groups:
                    async for at, group in groups:
                        place.worked()
                        finished.put_nowait((left.pop(at), group))
            except EngineLostError as error:
                waiting.extend(left.values())
                more.set()
                place.lost(sampler, error)

    async def _said(
        self, place: _Place, sampler: Sampler, asked: Sequence[Asked], sampling: Sampling
    ) -> AsyncIterator[tuple[int, Group]]:
        """What an engine says. Raises EngineLostError where it is lost, or hangs."""
        began, left = time.monotonic(), len(asked)
        async with aclosing(cast("Any", sampler.sample(asked, sampling))) as groups:
            while left:
                coming = asyncio.ensure_future(anext(groups))
                try:
                    while not coming.done():
                        # The place's silence, not only this stream's: another may have asked the engine before.
                        patience = self._stall_timeout_s - place.silent_s(began)
                        if patience <= 0:
                            raise EngineLostError(
                                f"{sampler.name} hangs: no group finished for {self._stall_timeout_s:g} s "
                                f"(rollouts.stall_timeout_s) with {left} under way"
                            )
                        await asyncio.wait([coming], timeout=patience)
                    yield coming.result()
                finally:
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                left -= 1
