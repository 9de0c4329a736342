"""Limits of a request: the size of its body, the client's connection, and the room in the queue."""

import asyncio
import json
from collections.abc import Awaitable
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


class OverloadedError(VlGenRMError, RuntimeError):
    """The queue has no room for any item of a request. Answered with 503 and `Retry-After`."""

    def __str__(self) -> str:
        return f"the queue is full; ask again in {RETRY_AFTER_S} s"


class BodyLimitMiddleware:
    """ASGI middleware that answers 413 to large bodies and cancels the work of a client that disconnects.

    It reads the whole body before the application runs, so that what arrives next can only be a disconnect.
    """

    def __init__(self, app: "ASGIApp", *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        length = headers.get(b"content-length", b"0")
        body = bytearray()
        too_large = not length.isdigit() or int(length) > self.max_bytes
        more = not too_large
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                too_large, more = True, False
        if too_large:
            detail = f"body: larger than {self.max_bytes} bytes; send less, or images by hash"
            await send_error(scope, send, 413, detail)
            return
        await _cancel_on_disconnect(self.app(scope, _replay(bytes(body), receive), send), receive)


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


async def send_error(scope: "Scope", send: "Send", status: int, detail: str) -> None:
    """Send an error response in the form of the API, `{"detail": ...}`, or in OpenAI's form on its paths."""
    openai = any(path in scope["path"] for path in OPENAI_PATHS)
    body = json.dumps(openai_error(status, detail) if openai else {"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: "Receive") -> "Receive":
    """Return a `receive` that yields the body once, then what the client sends."""
    replayed = False

    async def receive_body() -> "Message":
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

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
