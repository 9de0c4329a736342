"""Identical requests at the same time are computed once; what nobody waits for any more is cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vlgenrm_ray.judge.wire import ScoreReply


@dataclass(slots=True)
class Flight:
    """One computation under way."""

    key: str
    task: "asyncio.Future[ScoreReply]"
    deadline: float
    """On the event loop's clock."""
    waiting: int = 0


class Flights:
    """Computations under way, by key."""

    def __init__(self) -> None:
        self.num_under_way = 0
        self._flights: dict[str, Flight] = {}

    def find(self, key: str, deadline: float) -> Flight | None:
        """A computation to wait for: one that will be over by `deadline`, with or without a result."""
        flight = self._flights.get(key)
        return flight if flight is not None and flight.deadline <= deadline and not flight.task.done() else None

    def start(self, key: str, deadline: float, compute: Callable[[], Awaitable[ScoreReply]]) -> Flight:
        """Begin a computation. It is found by its key until it is over."""
        flight = Flight(key, asyncio.ensure_future(compute()), deadline)
        self.num_under_way += 1
        self._flights[key] = flight
        flight.task.add_done_callback(lambda done: self._over(flight))
        return flight

    async def wait(self, flight: Flight) -> ScoreReply:
        """The result. If every one that waits for it is cancelled, so is the computation."""
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                # At once: nobody may join what is about to end without a result.
                self._forget(flight)

    def _over(self, flight: Flight) -> None:
        self.num_under_way -= 1
        self._forget(flight)
        # Whoever waits hears of a failure; where nobody is left, asyncio must not complain of it either.
        if not flight.task.cancelled():
            flight.task.exception()

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
