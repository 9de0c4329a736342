"""A steady number of requests at a time against one server, and how long each took. One client for all servers."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from vlgenrm_ray.bench.figures import percentile
from vlgenrm_ray.errors import RemoteError

_TIMEOUT_S = 600.0
_Keep = Callable[[int, float, bytes], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, its body written beforehand."""

    path: str
    body: bytes


@dataclass(slots=True)
class Measured:
    """What came of a load."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Seconds of each round trip, in the order of the requests."""
    replies: list[bytes] = field(default_factory=list)
    """Bodies, to be read when the clock stands still."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def figures(self) -> dict[str, float]:
        """Scores/s and latencies, in milliseconds."""
        return {
            "scores_per_s": round(self.rate, 3),
            "p50_ms": round(1000 * percentile(self.latencies, 0.5), 2),
            "p99_ms": round(1000 * percentile(self.latencies, 0.99), 2),
        }


def put(url: str, requests: Sequence[Asked], *, concurrency: int) -> Measured:
    """Send all requests, `concurrency` of them at a time. Raises RemoteError for no answer, or any but 200."""
    measured = Measured(latencies=[0.0] * len(requests), replies=[b""] * len(requests))

    def keep(number: int, latency: float, reply: bytes) -> None:
        measured.latencies[number], measured.replies[number] = latency, reply

    measured.seconds = asyncio.run(_put(url, requests, concurrency, keep))
    return measured


def keep_up(url: str, requests: Iterable[Asked], *, concurrency: int) -> int:
    """Send requests until there are no more; how many. Keeps nothing, so that the client's memory is flat too."""
    count = 0

    def tally(number: int, latency: float, reply: bytes) -> None:
        nonlocal count
        count += 1

    asyncio.run(_put(url, requests, concurrency, tally))
    return count


async def _put(url: str, requests: Iterable[Asked], concurrency: int, keep: _Keep) -> float:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    waiting: Iterator[tuple[int, Asked]] = iter(enumerate(requests))
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=_TIMEOUT_S, headers=headers, verify=False, trust_env=False
    ) as client:

        async def work() -> None:
            # One iterator for all workers: who is free takes the next.
            for number, asked in waiting:
                begin = time.perf_counter()
                try:
                    response = await client.post(asked.path, content=asked.body)
                except httpx.TransportError as error:
                    raise RemoteError(f"{url}{asked.path}: {type(error).__name__} {error}") from error
                latency = time.perf_counter() - begin
                if response.status_code != 200:
                    raise RemoteError(f"{url}{asked.path}: {response.status_code} {response.text[:300]}")
                keep(number, latency, response.content)

        begin = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
        except ExceptionGroup as failed:
            # One says enough.
            raise failed.exceptions[0] from None
        return time.perf_counter() - begin
