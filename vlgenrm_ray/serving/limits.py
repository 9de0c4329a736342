"""Limits of a request: size, shape and duration of its body, the client's connection, and the room in the queue."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.errors import VlGenRMError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPENAI_PATHS = ("/v1/chat/completions", "/v1/models")
"""Paths whose errors have OpenAI's form."""


RETRY_AFTER_S = 1
"""`Retry-After` of a 503, in seconds."""


REASON_HEADER = "x-vlgenrm-reason"
"""Header of every refusal with its reason, for trainers that log no body."""


_TINY_BODY = 1 << 16
"""Bytes below which a body needs no room."""
_LARGE_BODY = 1 << 20
"""Bytes from which a body is looked at before it is parsed, and needs the room for large ones."""
_SMALL_SHARE = 0.25
"""Share of all room that bodies below `_LARGE_BODY` have for themselves, so that they never wait behind large ones."""
_COSTLY_SIGNS = (b",", b"[", b"{", b"<", b"\\u003")
"""Commas and opening brackets bound the values that the JSON parser makes, `<` (escaped or not) the places at which
special tokens are sought. Both hold the event loop, about a second for every two million signs."""
_MAX_COSTLY_SIGNS = 2_000_000
"""Most of these signs in a large body."""
_MAX_READING = 512
"""Requests whose body is under way."""


class OverloadedError(VlGenRMError, RuntimeError):
    """The queue has no room for any item of a request. Answered with 503 and `Retry-After`."""

    def __str__(self) -> str:
        return f"the queue is full; ask again in {RETRY_AFTER_S} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyDeadlines:
    """Time that a body may take to arrive."""

    stall_s: float = 15.0
    """Longest pause between two parts, in seconds."""
    total_s: float = 30.0
    """Time of any body in seconds, to which that of its size is added."""
    min_rate: float = 256 * 1024.0
    """Bytes per second that a large body must have on average."""

    def of(self, num_bytes: int) -> float:
        """Return the seconds that a body of `num_bytes` may take."""
        return self.total_s + num_bytes / self.min_rate


class ByteRoom:
    """Bound of bytes in memory over all requests; those that do not fit wait in order."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        """Bytes that are held."""
        self._max_bytes = max_bytes
        self._waiting = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, num_bytes: int, deadline: float) -> None:
        """Wait for room and take it. More bytes than the bound are alone.

        Args:
            num_bytes: Room that is needed.
            deadline: Event loop time.

        Raises:
            TimeoutError: There was no room by the deadline.
        """
        async with asyncio.timeout_at(deadline), self._waiting:
            while self.num_bytes and self.num_bytes + num_bytes > self._max_bytes:
                self._freed.clear()
                await self._freed.wait()
            self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Free room that was taken."""
        self.num_bytes -= num_bytes
        self._freed.set()


class BodyRoom:
    """Room for the bodies of all requests until they are answered. Large bodies and small ones have their own."""

    def __init__(self, max_bytes: int, deadline_s: float) -> None:
        """Create a bound of `max_bytes`, for whose room a body waits at most `deadline_s` seconds."""
        small = int(max_bytes * _SMALL_SHARE)
        self.small = ByteRoom(small)
        """Room of bodies below 1 MiB; those below 64 KiB need none."""
        self.large = ByteRoom(max_bytes - small)
        self._deadline_s = deadline_s

    @property
    def num_bytes(self) -> int:
        """Bytes that are held."""
        return self.small.num_bytes + self.large.num_bytes

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold room for a body while the context lasts. Raises TimeoutError if there was none by the deadline."""
        if num_bytes < _TINY_BODY:
            yield
            return
        room = self.small if num_bytes < _LARGE_BODY else self.large
        await room.take(num_bytes, asyncio.get_running_loop().time() + self._deadline_s)
        try:
            yield
        finally:
            room.give_back(num_bytes)


class _BodyRefusedError(Exception):
    """A body that is not read to its end."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class _ClientGoneError(Exception):
    """The client disconnected while its body was read."""


class BodyLimitMiddleware:
    """ASGI middleware that bounds bodies, and cancels the work of a client that disconnects.

    It reads the whole body before the application runs, so that what arrives next can only be a disconnect. Refused are
    bodies that are too large or too costly to read (413), take too long (408), or find no room (503).
    """

    def __init__(
        self, app: "ASGIApp", *, max_bytes: int, room: BodyRoom | None = None, deadlines: BodyDeadlines | None = None
    ) -> None:
        """Create the middleware.

        Args:
            app: Application that gets the bodies.
            max_bytes: Largest body.
            room: Bound of all bodies together, held until their requests are answered; default: two of the largest,
                after a minute.
            deadlines: Time that a body may take.
        """
        self.app = app
        self.max_bytes = max_bytes
        self.room = room or BodyRoom(2 * max_bytes, 60.0)
        self.deadlines = deadlines or BodyDeadlines()
        self.num_reading = 0
        """Requests whose body is under way."""

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        async with AsyncExitStack() as held:
            try:
                body = await self._read(scope, receive, held)
            except _ClientGoneError:
                return
            except _BodyRefusedError as refusal:
                # What the client still sends is not read.
                await send_error(scope, send, refusal.status, refusal.detail, close=True)
                return
            replayed = _replay(body, receive)
            del body
            await _cancel_on_disconnect(self.app(scope, replayed, send), receive)

    async def _read(self, scope: "Scope", receive: "Receive", held: AsyncExitStack) -> bytes:
        """Read the body, which holds its room until `held` is closed. Raises _BodyRefusedError."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        length = headers.get(b"content-length", b"0")
        too_large = _BodyRefusedError(413, f"body: larger than {self.max_bytes} bytes; send less, or images by hash")
        if not length.isdigit() or int(length) > self.max_bytes:
            raise too_large
        if self.num_reading >= _MAX_READING:
            raise _BodyRefusedError(503, f"body: {_MAX_READING} others are under way; send it again later")
        self.num_reading += 1
        try:
            await self._take_room(held, int(length))
            body = await self._receive(receive, int(length), held, too_large)
        finally:
            self.num_reading -= 1
        if len(body) >= _LARGE_BODY and sum(map(body.count, _COSTLY_SIGNS)) > _MAX_COSTLY_SIGNS:
            detail = f"body: more than {_MAX_COSTLY_SIGNS} JSON values and `<` signs; send several requests"
            raise _BodyRefusedError(413, detail)
        return body

    async def _receive(
        self, receive: "Receive", length: int, held: AsyncExitStack, too_large: _BodyRefusedError
    ) -> bytes:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        parts: list[bytes] = []
        num_bytes, more, announced = 0, True, max(length, _TINY_BODY)
        while more:
            left_s = begin + self.deadlines.of(max(length, num_bytes)) - loop.time()
            try:
                async with asyncio.timeout(max(0.0, min(self.deadlines.stall_s, left_s))):
                    message = await receive()
            except TimeoutError:
                raise _BodyRefusedError(408, f"body: {num_bytes} bytes in time, more was announced") from None
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            part = message.get("body", b"")
            parts.append(part)
            num_bytes += len(part)
            more = message.get("more_body", False)
            if num_bytes > self.max_bytes:
                raise too_large
            if num_bytes > announced:
                # Of unknown length: room for the largest small body, then for the largest of all, each taken at once:
                # two bodies never wait for each other.
                announced = _LARGE_BODY - 1 if num_bytes < _LARGE_BODY else self.max_bytes
                await self._take_room(held, announced)
        return b"".join(parts)

    async def _take_room(self, held: AsyncExitStack, num_bytes: int) -> None:
        try:
            await held.enter_async_context(self.room.hold(num_bytes))
        except TimeoutError:
            raise _BodyRefusedError(503, "body: no room for it; send it again later") from None


def openai_error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return an error object in OpenAI's form.

    Args:
        status: The HTTP status.
        message: Explanation and remedy.
        param: Field of the request.
        code: Name of the error that programs can compare.
    """
    kinds = {401: "authentication_error", 403: "permission_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def send_error(scope: "Scope", send: "Send", status: int, detail: str, *, close: bool = False) -> None:
    """Send an error response in the form of the API, `{"detail": ...}`, or in OpenAI's form on its paths.

    Args:
        scope: Scope of the request.
        send: Sends to its client.
        status: The HTTP status.
        detail: Explanation and remedy.
        close: Close the connection afterwards, because what the client sends is not read to its end.
    """
    openai = any(path in scope["path"] for path in OPENAI_PATHS)
    body = json.dumps(openai_error(status, detail) if openai else {"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: "Receive") -> "Receive":
    """Return a `receive` that yields the body once, without keeping it, then what the client sends."""
    bodies = [body]

    async def receive_body() -> "Message":
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return receive_body


async def _cancel_on_disconnect(response: Awaitable[None], receive: "Receive") -> None:
    """Await a response, or cancel it when the client disconnects."""
    work = asyncio.ensure_future(response)
    disconnect = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnect.cancel()
        if cancelled := not work.done():
            work.cancel()
    await asyncio.wait((work,))
    if not cancelled:
        work.result()
