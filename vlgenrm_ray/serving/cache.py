"""Result cache and single-flight: equal requests are computed once, one after another as well as at the same time."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from cachetools import LRUCache

from vlgenrm_ray.judge.wire import ScoreReply

_REPLY_BYTES = 1200
"""Estimated bytes of a reply and its cache entry without texts; measured, rounded up."""
_CRITIQUE_BYTES = 400


class ResultCache:
    """Least-recently-used cache of replies, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache of at most `max_bytes`; 0 caches nothing."""
        self._replies: LRUCache[str, ScoreReply] = LRUCache(max_bytes, getsizeof=_size)

    def __len__(self) -> int:
        return len(self._replies)

    @property
    def num_bytes(self) -> int:
        """Estimated bytes of the cached replies."""
        return int(self._replies.currsize)

    @property
    def max_bytes(self) -> int:
        """Bound of `num_bytes`."""
        return int(self._replies.maxsize)

    def get(self, key: str) -> ScoreReply | None:
        """Return the reply of `key`, or None if it is not cached."""
        return self._replies.get(key)

    def put(self, key: str, reply: ScoreReply) -> None:
        """Cache a reply. One that is larger than the whole cache is ignored."""
        with suppress(ValueError):
            self._replies[key] = reply


def _size(reply: ScoreReply) -> int:
    return _REPLY_BYTES + sum(sys.getsizeof(critique.text) + _CRITIQUE_BYTES for critique in reply.critiques)


@dataclass(slots=True)
class Flight:
    """One running computation."""

    key: str
    task: "asyncio.Future[ScoreReply]"
    deadline: float
    """Event loop time by which it ends, with or without a result."""
    num_waiting: int = 0


class SingleFlight:
    """Running computations by key. A computation that nobody waits for any more is cancelled."""

    def __init__(self) -> None:
        self.num_running = 0
        self._by_key: dict[str, Flight] = {}

    def find(self, key: str, deadline: float) -> Flight | None:
        """Return the running computation of `key` if it ends by `deadline`."""
        flight = self._by_key.get(key)
        return flight if flight is not None and flight.deadline <= deadline and not flight.task.done() else None

    def start(self, key: str, deadline: float, compute: Callable[[], Awaitable[ScoreReply]]) -> Flight:
        """Start a computation. `find` returns it until it ends."""
        flight = Flight(key, asyncio.ensure_future(compute()), deadline)
        self.num_running += 1
        self._by_key[key] = flight
        flight.task.add_done_callback(lambda _: self._end(flight))
        return flight

    async def wait(self, flight: Flight) -> ScoreReply:
        """Return the result. If the caller is cancelled and nobody else waits, cancel the computation."""
        flight.num_waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting and not flight.task.done():
                flight.task.cancel()
                # At once: nobody may join a computation that is about to end without a result.
                self._remove(flight)

    def _end(self, flight: Flight) -> None:
        self.num_running -= 1
        self._remove(flight)
        # Waiters receive the error. Without a waiter, asyncio would log an exception that was never retrieved.
        if not flight.task.cancelled():
            flight.task.exception()

    def _remove(self, flight: Flight) -> None:
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
