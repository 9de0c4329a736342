"""Several engines as one: questions go to whoever is free, and what a lost engine had not finished to another.

Pure asyncio.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.weight_sync import Weights
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.policy.place import Place, Sampler, Start
from vlgenrm_ray.policy.rollouts import Asked, Group


class Pool:
    """Engines that sample from one policy."""

    def __init__(self, start: Start, *, size: int, restarts: int, stall_timeout_s: float) -> None:
        """`restarts`: times in a row that a place's engine is started again without having finished a group.
        `stall_timeout_s`: an engine that has questions and finishes no group for so long is taken for lost.
        """
        self._places = [Place(number, start, lambda: self._weights, restarts) for number in range(size)]
        self._stall_timeout_s = stall_timeout_s
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
        loading = {asyncio.ensure_future(place.sampler()): place for place in self._places}
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
            share = [waiting.popleft() for _ in range(-(-len(waiting) // len(self._places)))]
            left = dict(enumerate(share))
            sampler = await place.sampler()
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
