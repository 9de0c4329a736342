"""Several engines as one: questions go to whoever is free, and what a lost engine had not finished to another.

Pure asyncio.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.weight_sync import Weights
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.policy.place import Place, Sampler, Start
from vlgenrm_ray.policy.rollouts import Asked, Group

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Pool:
    """Engines that sample from one policy."""

    def __init__(
        self, start: Start, *, size: int, restarts: int, stall_timeout_s: float, load_timeout_s: float
    ) -> None:
        """`restarts`: times in a row that a place's engine is started again without having finished a group.
        `stall_timeout_s`: an engine that has questions and finishes no group for so long is taken for lost; so is one
        that was started again and does not take the present weights within `load_timeout_s`.
        """
        self._places = [Place(number, start, lambda: self._weights, restarts) for number in range(size)]
        self._stall_timeout_s = stall_timeout_s
        self._load_timeout_s = load_timeout_s
        self._weights: Weights[Any] | None = None

    @property
    def version(self) -> int:
        """Of the weights that engines sample with, or are about to."""
        return self._weights.version if self._weights else 0

    async def start(self) -> None:
        """Start the engines, all at once. Raises EngineLostError where one does not."""
        await asyncio.gather(*(place.sampler() for place in self._places))

    async def load(self, weights: Weights[Any], *, timeout_s: float) -> None:
        """Give every engine new weights, each when it has said what it was asked; an engine lost then starts with them.

        Raises WeightSyncError where one does not take them, or all of this takes longer than `timeout_s`.
        """
        before, self._weights = self._weights, weights
        try:
            loading = [place.sampler() for place in self._places]
            await self.together(loading, timeout_s, f"weights of version {weights.version}", "taken them")
        except BaseException:
            self._weights = before
            raise

    # -- weights that go straight into the engines, past this one ----------------------------------------------

    async def hold(self, *, timeout_s: float) -> tuple[Sampler, ...]:
        """All engines, when none samples any more; none will until `settle`, `let_go` or `abandon`.

        Raises WeightSyncError where one samples still after `timeout_s`, EngineLostError where one does not start.
        """
        # Starting has a limit of its own.
        await asyncio.gather(*(place.start() for place in self._places))
        try:
            holding = [place.hold() for place in self._places]
            return tuple(await self.together(holding, timeout_s, "new weights", "come to rest"))
        except BaseException:
            self.let_go()
            raise

    def settle(self, weights: Weights[Any]) -> None:
        """Say that all engines held have got these weights, and let them sample."""
        self._weights = weights
        for place in self._places:
            place.given(weights)

    def let_go(self) -> None:
        """Let the engines that are held sample again, with what they have."""
        for place in self._places:
            place.let_go()

    def abandon(self, why: str) -> None:
        """End engines that are held, for what they have is no version; others are started when they are asked for."""
        _log.warning("all rollout engines are started again: %s", why)
        for place in self._places:
            place.close()
            place.let_go()

    async def together(
        self, doings: Sequence[Awaitable[_T]], timeout_s: float, subject: str, done_what: str
    ) -> list[_T]:
        """What each place's engine gives, all at once. Raises the first error, and WeightSyncError after `timeout_s`,
        which names the engines that have not `done_what`.
        """
        tasks = {asyncio.ensure_future(doing): place for doing, place in zip(doings, self._places, strict=True)}
        try:
            done, hanging = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if hanging:
                late = [place for task, place in tasks.items() if task in hanging]
                named = ", ".join(f"{place.number} (at version {place.version})" for place in late)
                raise WeightSyncError(
                    f"{subject}: after {timeout_s:g} s these rollout engines of {len(self._places)} have not "
                    f"{done_what}: {named}; they hang, or sample still: see sync.timeout_s"
                )
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    # -- sampling ----------------------------------------------------------------------------------------------

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
        place: Place,
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
            if not place.able():
                await self._sit_out(place)
            share = [waiting.popleft() for _ in range(-(-len(waiting) // len(self._places)))]
            left = dict(enumerate(share))
            sampler = await place.sampler(load_timeout_s=self._load_timeout_s)
            said = self._said(place, sampler, [asked[number] for number in share], sampling)
            with place.asking():
                try:
                    async with aclosing(cast("Any", said)) as groups:
                        async for at, group in groups:
                            place.worked()
                            finished.put_nowait((left.pop(at), group))
                except EngineLostError as error:
                    waiting.extend(left.values())
                    more.set()
                    place.lost(sampler, error)

    async def _sit_out(self, place: Place) -> None:
        """Start a place's engine again, and leave the work to the others until new weights come. Never returns.

        Raises WeightSyncError where there are no others.
        """
        if not any(one.able() for one in self._places):
            raise WeightSyncError(f"no rollout engine has weights of version {self.version} any more; send them again")
        _log.warning("rollout engine %d has no weights until the next are sent; others do its work", place.number)
        await place.start()
        await asyncio.Event().wait()

    async def _said(
        self, place: Place, sampler: Sampler, asked: Sequence[Asked], sampling: Sampling
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
