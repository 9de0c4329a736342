"""A pool of reward processes with the semantics of AReaL's `AsyncRewardWrapper`, at any scale of time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any


class FakeRewardPool:
    """Counts the time of a call from its submission to the pool, repeats it, and then returns 0."""

    def __init__(self, function: Callable[..., float], *, timeout_s: float, num_processes: int) -> None:
        self.function = function
        self.timeout_s = timeout_s
        self._pool = ProcessPoolExecutor(num_processes)

    async def __call__(self, *args: Any, **kwargs: Any) -> float:
        for attempt in range(4):
            call = asyncio.get_running_loop().run_in_executor(self._pool, partial(self.function, *args, **kwargs))
            try:
                return await asyncio.wait_for(call, self.timeout_s)
            except TimeoutError:
                continue
            except Exception:
                if attempt == 3:
                    raise
        return 0

    def close(self) -> None:
        """Terminate the processes."""
        self._pool.shutdown(cancel_futures=True)


async def gather_rewards(pool: Any, num_rewards: int) -> list[Any]:
    """Request rewards of distinct samples at once. Returns each reward or exception."""
    calls = [pool(f"What is number {i}?", "1", [1], [2]) for i in range(num_rewards)]
    return await asyncio.gather(*calls, return_exceptions=True)
