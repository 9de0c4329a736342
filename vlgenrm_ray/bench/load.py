"""Load generator: a constant number of requests in flight against one HTTP server, the same for every server."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from vlgenrm_ray.bench.statistics import percentile
from vlgenrm_ray.errors import RemoteError

_TIMEOUT_S = 600.0
_OnReply = Callable[[int, float, bytes], None]
"""Called with the request's index, its latency in seconds, and the body of the reply."""


@dataclass(frozen=True, slots=True)
class PostRequest:
    """One request with its body encoded in advance, so that encoding is not measured."""

    path: str
    body: bytes


@dataclass(slots=True)
class LoadResult:
    """Measurements of one load."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Seconds of each round trip, in the order of the requests."""
    replies: list[bytes] = field(default_factory=list)
    """Bodies of the replies; parse them after the measurement."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def metrics(self) -> dict[str, float]:
        """Return scores per second and latencies in milliseconds."""
        return {
            "scores_per_s": round(self.rate, 3),
            "p50_ms": round(1000 * percentile(self.latencies, 0.5), 2),
            "p99_ms": round(1000 * percentile(self.latencies, 0.99), 2),
        }


def send_requests(url: str, requests: Sequence[PostRequest], *, concurrency: int) -> LoadResult:
    """Send all requests, `concurrency` of them at a time.

    Raises:
        RemoteError: A request got no reply, or one with a status other than 200.
    """
    result = LoadResult(latencies=[0.0] * len(requests), replies=[b""] * len(requests))

    def record(index: int, latency: float, reply: bytes) -> None:
        result.latencies[index], result.replies[index] = latency, reply

    result.seconds = asyncio.run(_send(url, requests, concurrency, record))
    return result


def completion_times(url: str, requests: Iterable[PostRequest], *, concurrency: int) -> list[float]:
    """Send requests until the iterable ends; return when each reply came, in seconds from the first request.

    Replies are discarded, so the client's own memory hardly grows. Raises RemoteError as `send_requests` does.
    """
    times: list[float] = []
    start = time.perf_counter()

    def record(index: int, latency: float, reply: bytes) -> None:
        times.append(time.perf_counter() - start)

    asyncio.run(_send(url, requests, concurrency, record))
    return times


async def _send(url: str, requests: Iterable[PostRequest], concurrency: int, on_reply: _OnReply) -> float:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    # One iterator for all workers: a free worker takes the next request.
    pending: Iterator[tuple[int, PostRequest]] = iter(enumerate(requests))
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=_TIMEOUT_S, headers=headers, verify=False, trust_env=False
    ) as client:

        async def send_pending() -> None:
            for index, request in pending:
                start = time.perf_counter()
                try:
                    response = await client.post(request.path, content=request.body)
                except httpx.TransportError as error:
                    raise RemoteError(f"{url}{request.path}: {type(error).__name__} {error}") from error
                latency = time.perf_counter() - start
                if response.status_code != 200:
                    raise RemoteError(f"{url}{request.path}: {response.status_code} {response.text[:300]}")
                on_reply(index, latency, response.content)

        start = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(send_pending())
        except ExceptionGroup as failures:
            # The other workers fail for the same reason.
            raise failures.exceptions[0] from None
        return time.perf_counter() - start
