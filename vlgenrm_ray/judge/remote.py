"""Clients of a served judge, blocking and asynchronous.

    judge = RemoteJudge("http://127.0.0.1:8000", token="...")
    (reply,) = judge.score([ScoreInput(image="cat.png", question="What is it?", response="A cat.")])
    reply.reward, reply.status, reply.critiques

Each image is uploaded once per content hash and sent as a reference afterwards. A call that fails raises RemoteError;
an item that fails has `reward: None` and a status. A failure is never reported as the reward 0. The rules of
retries are in `protocol.py`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Generator, Sequence
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

import httpx
from typing_extensions import Self

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.protocol import HttpCall, JudgeProtocol, Pause, ScoreInput, Upload
from vlgenrm_ray.judge.wire import CompareResponse, RankResponse, ScoreReply

__all__ = ["AsyncRemoteJudge", "RemoteJudge", "ScoreInput"]

_T = TypeVar("_T")
_TIMEOUT_S = 330.0
"""Longer than a service takes for a request without a deadline, by its default limits."""
_CHECK_TIMEOUT_S = 10.0
_CHECK_PAUSE_S = 1.0
_log = logging.getLogger("vlgenrm_ray.client")


class RemoteJudge:
    """Blocking client. Threads may share it; connections are pooled and kept open."""

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
        """Create the client; the first call connects.

        Args:
            url: Address of the service, `http://` or `https://`. `http://any:TOKEN@host` contains the token too.
            token: Bearer token, if the service requires one.
            timeout_s: Limit of one attempt of a call without a deadline, in seconds.
            retries: Attempts after the first, see `protocol.py`.
            max_connections: Size of the connection pool.
            limits: Bounds for images that the client reads.
            transport: Replaces HTTP over sockets, for tests.

        Raises:
            ConfigError: `url` has another scheme.
        """
        url, token = _split_token(_check_url(url), token)
        self._protocol = JudgeProtocol(url, timeout_s=timeout_s, retries=retries, limits=limits)
        self._http = httpx.Client(transport=transport, **_client_settings(url, token, max_connections))
        self._uploading: dict[str, threading.Lock] = {}

    def score(self, items: Sequence[ScoreInput], *, deadline_s: float | None = None) -> list[ScoreReply]:
        """Score responses.

        Args:
            items: Responses to score; any number, split into several requests if needed.
            deadline_s: Seconds after which items without a finished critique get the status `timeout`.

        Returns:
            One reply per item, in order.

        Raises:
            RemoteError: The service cannot be reached, or its reply is not valid.
            RemoteRefusalError: The service refuses the request (4xx).
            InputError: An item is incomplete or contradictory.
        """
        return self._run(self._protocol.score(items, deadline_s))

    def compare(self, item: ScoreInput, first: str, second: str, *, deadline_s: float | None = None) -> CompareResponse:
        """Compare two responses to the item's question; `response` of `item` is ignored."""
        return self._run(self._protocol.compare(item, first, second, deadline_s))

    def rank(self, item: ScoreInput, responses: Sequence[str], *, deadline_s: float | None = None) -> RankResponse:
        """Rank responses to the item's question from best to worst; `response` of `item` is ignored."""
        return self._run(self._protocol.rank(item, responses, deadline_s))

    def check(self, *, patience_s: float = 0.0) -> str:
        """Ask the service for its model, without scoring anything.

        Args:
            patience_s: Seconds in which a failed connection is tried again, for a service that is starting.

        Returns:
            The version of its model; "" while the service is starting.

        Raises:
            RemoteError: There is no service at the address, or it is no judge.
            RemoteRefusalError: The service refuses the token.
        """
        end = time.monotonic() + patience_s
        while True:
            answer = self._get("/v1/model")
            if not isinstance(answer, httpx.TransportError) or time.monotonic() >= end:
                return self._protocol.read_model(answer)
            if patience_s:
                _log.warning(
                    "%s cannot be reached (%s); trying for %.0f s",
                    self._protocol.url,
                    type(answer).__name__,
                    patience_s,
                )
                patience_s = 0.0
            time.sleep(_CHECK_PAUSE_S)

    def is_pairwise(self) -> bool:
        """Return True if the service's model is a pairwise judge. Raises as `check` does."""
        answer = self._get("/v1/model")
        self._protocol.read_model(answer)
        return isinstance(answer, httpx.Response) and answer.is_success and answer.json().get("kind") == "pairwise"

    def _get(self, path: str) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.get(path, timeout=_CHECK_TIMEOUT_S)
        except httpx.TransportError as error:
            return error

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, steps: Generator[Any, Any, _T]) -> _T:
        result = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            result = self._do(step)

    def _do(self, step: HttpCall | Pause | Upload) -> Any:
        if isinstance(step, HttpCall):
            try:
                return self._http.post(step.path, **_request_arguments(step))
            except httpx.TransportError as error:
                return error
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        with self._uploading.setdefault(step.reference, threading.Lock()):
            # Another thread may have uploaded it while this one waited for the lock.
            uploaded = step.reference in self._protocol.uploaded
            refusal = None if uploaded else self._run(self._protocol.upload(step))
        self._uploading.pop(step.reference, None)
        return refusal


class AsyncRemoteJudge:
    """Asynchronous client. It belongs to the event loop in which it is first used."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        retries: int = 5,
        max_connections: int = 64,
        limits: ImageLimits | None = None,
        uploaded: set[str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Create the client, see `RemoteJudge`. `uploaded`: image references that clients of one service share."""
        url, token = _split_token(_check_url(url), token)
        self._protocol = JudgeProtocol(url, timeout_s=timeout_s, retries=retries, limits=limits, uploaded=uploaded)
        self._http = httpx.AsyncClient(transport=transport, **_client_settings(url, token, max_connections))
        self._uploading: dict[str, asyncio.Lock] = {}

    async def score(self, items: Sequence[ScoreInput], *, deadline_s: float | None = None) -> list[ScoreReply]:
        """Score responses, see `RemoteJudge.score`."""
        return await self._run(self._protocol.score(items, deadline_s))

    async def compare(
        self, item: ScoreInput, first: str, second: str, *, deadline_s: float | None = None
    ) -> CompareResponse:
        """Compare two responses, see `RemoteJudge.compare`."""
        return await self._run(self._protocol.compare(item, first, second, deadline_s))

    async def rank(
        self, item: ScoreInput, responses: Sequence[str], *, deadline_s: float | None = None
    ) -> RankResponse:
        """Rank responses, see `RemoteJudge.rank`."""
        return await self._run(self._protocol.rank(item, responses, deadline_s))

    async def close(self) -> None:
        """Close the pooled connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Generator[Any, Any, _T]) -> _T:
        result = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            result = await self._do(step)

    async def _do(self, step: HttpCall | Pause | Upload) -> Any:
        if isinstance(step, HttpCall):
            try:
                return await self._http.post(step.path, **_request_arguments(step))
            except httpx.TransportError as error:
                return error
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        async with self._uploading.setdefault(step.reference, asyncio.Lock()):
            # Another task may have uploaded it while this one waited for the lock.
            refusal = (
                None if step.reference in self._protocol.uploaded else await self._run(self._protocol.upload(step))
            )
        self._uploading.pop(step.reference, None)
        return refusal


def _check_url(url: str) -> str:
    shown = "(not shown, it contains a token)" if "@" in url else repr(url)
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"url {shown}: the address of a served judge must begin with http:// or https://")
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"url {shown}: {'not a valid address' if '@' in url else error}") from None
    return url.rstrip("/")


def _split_token(url: str, token: str | None) -> tuple[str, str | None]:
    """Split `http://any:TOKEN@host` into address and token, since messages name the address."""
    address = httpx.URL(url)
    if not address.userinfo:
        return url, token
    _warn_of_token_in_url()
    return str(address.copy_with(userinfo=b"")).rstrip("/"), token or address.password or address.username


@cache
def _warn_of_token_in_url() -> None:
    _log.warning(
        "the token of the judge is part of its URL, which many programs print; give it as VLGENRM_TOKEN, or as `token`"
    )


def _client_settings(url: str, token: str | None, max_connections: int) -> dict[str, Any]:
    return {
        "base_url": url.rstrip("/"),
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        # Loading the certificates takes longer than many calls, and plain HTTP needs none.
        "verify": url.startswith("https://"),
        "limits": httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
    }


def _request_arguments(call: HttpCall) -> dict[str, Any]:
    # Waiting for a free connection of the pool is not limited: the server is not the cause.
    timeout = httpx.Timeout(call.timeout_s, connect=min(call.timeout_s, 10.0), pool=None)
    return {"content": call.body, "headers": {"Content-Type": call.content_type}, "timeout": timeout}
