"""Clients of a served judge, blocking and asynchronous.

    judge = RemoteJudge("http://127.0.0.1:8000", token="...")
    (reply,) = judge.score([ScoreInput(image="cat.png", question="What is it?", response="A cat.")])
    reply.reward, reply.status, reply.critiques

An image travels once per content hash and is a reference from then on. Failed connections and 502 or 503 are tried
again with growing pauses (none shorter than `Retry-After`), a refusal (4xx) and an unanswered request never are. A call
that fails raises RemoteError; an item that fails has `reward: None` and a status. Neither is ever 0.
"""

import asyncio
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.protocol import Call, JudgeProtocol, Pause, ScoreInput, Upload
from vlgenrm_ray.judge.wire import CompareResponse, RankResponse, ScoreReply, compare_replies, rank_replies

__all__ = ["AsyncRemoteJudge", "RemoteJudge", "ScoreInput"]

_T = TypeVar("_T")
_TIMEOUT_S = 330.0
"""More than a service takes for a request without a deadline, unless its operator lets it take longer."""


class RemoteJudge:
    """A blocking client; may be shared by threads. Connections are kept open and pooled."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        retries: int = 5,
        max_connections: int = 64,
        limits: ImageLimits | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds one attempt of a call without a deadline, `retries` the further attempts.

        Raises ConfigError for a bad address.
        """
        self._exchange = JudgeProtocol(_checked(url), timeout_s=timeout_s, retries=retries, limits=limits)
        self._http = httpx.Client(transport=transport, **_settings(url, token, max_connections))
        self._uploading: dict[str, threading.Lock] = {}

    def score(self, items: Sequence[ScoreInput], *, deadline_s: float | None = None) -> list[ScoreReply]:
        """One reply per item, in order; after `deadline_s` seconds what is not finished has status `timeout`.

        Raises RemoteError where the service cannot be reached or refuses the request.
        """
        return self._run(self._exchange.score(items, deadline_s))

    def compare(self, item: ScoreInput, first: str, second: str, *, deadline_s: float | None = None) -> CompareResponse:
        """Which of two responses to the item's question is better; `response` of `item` is not looked at."""
        return compare_replies(*self.score(_variants(item, (first, second)), deadline_s=deadline_s))

    def rank(self, item: ScoreInput, responses: Sequence[str], *, deadline_s: float | None = None) -> RankResponse:
        """Responses to the item's question from best to worst; `response` of `item` is not looked at."""
        return rank_replies(self.score(_variants(item, responses), deadline_s=deadline_s))

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, flow: Generator[Any, Any, _T]) -> _T:
        answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer = self._do(step)

    def _do(self, step: Call | Pause | Upload) -> Any:
        if isinstance(step, Call):
            try:
                return self._http.post(step.path, **_request(step))
            except httpx.TransportError as error:
                return error
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        with self._uploading.setdefault(step.name, threading.Lock()):
            # Another thread may have sent it while this one waited.
            refusal = None if step.name in self._exchange.known else self._run(self._exchange.upload(step))
        self._uploading.pop(step.name, None)
        return refusal


class AsyncRemoteJudge:
    """The same for asyncio; belongs to the event loop it is first used in."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        retries: int = 5,
        max_connections: int = 64,
        limits: ImageLimits | None = None,
        known: set[str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As `RemoteJudge`. `known`: a set that clients of one service share, of the images it has been sent."""
        self._exchange = JudgeProtocol(_checked(url), timeout_s=timeout_s, retries=retries, limits=limits, known=known)
        self._http = httpx.AsyncClient(transport=transport, **_settings(url, token, max_connections))
        self._uploading: dict[str, asyncio.Lock] = {}

    async def score(self, items: Sequence[ScoreInput], *, deadline_s: float | None = None) -> list[ScoreReply]:
        """See `RemoteJudge.score`."""
        return await self._run(self._exchange.score(items, deadline_s))

    async def compare(
        self, item: ScoreInput, first: str, second: str, *, deadline_s: float | None = None
    ) -> CompareResponse:
        """See `RemoteJudge.compare`."""
        return compare_replies(*await self.score(_variants(item, (first, second)), deadline_s=deadline_s))

    async def rank(
        self, item: ScoreInput, responses: Sequence[str], *, deadline_s: float | None = None
    ) -> RankResponse:
        """See `RemoteJudge.rank`."""
        return rank_replies(await self.score(_variants(item, responses), deadline_s=deadline_s))

    async def close(self) -> None:
        """Close the pooled connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, flow: Generator[Any, Any, _T]) -> _T:
        answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer = await self._do(step)

    async def _do(self, step: Call | Pause | Upload) -> Any:
        if isinstance(step, Call):
            try:
                return await self._http.post(step.path, **_request(step))
            except httpx.TransportError as error:
                return error
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        async with self._uploading.setdefault(step.name, asyncio.Lock()):
            # Another task may have sent it while this one waited.
            refusal = None if step.name in self._exchange.known else await self._run(self._exchange.upload(step))
        self._uploading.pop(step.name, None)
        return refusal


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"url {url!r}: the address of a served judge begins with http:// or https://")
    return url.rstrip("/")


def _settings(url: str, token: str | None, max_connections: int) -> dict[str, Any]:
    return {
        "base_url": url.rstrip("/"),
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        # Reading the certificates takes longer than many a call, and plain HTTP needs none.
        "verify": url.startswith("https://"),
        "limits": httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
    }


def _request(call: Call) -> dict[str, Any]:
    # Waiting for a free connection of the pool is not the server's fault: it has no limit of its own.
    timeout = httpx.Timeout(call.timeout_s, connect=min(call.timeout_s, 10.0), pool=None)
    return {"content": call.body, "headers": {"Content-Type": call.content_type}, "timeout": timeout}


def _variants(item: ScoreInput, responses: Sequence[str]) -> list[ScoreInput]:
    return [replace(item, response=response) for response in responses]
