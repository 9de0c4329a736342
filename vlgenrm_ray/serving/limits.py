"""What every request must pass before its body is looked at: who sends it, and how large it is."""

import asyncio
import json
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette._utils import get_route_path

from vlgenrm_ray.serving.auth import Caller, Tokens

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = frozenset({"/", "/health", "/ready", "/metrics", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
"""What shows nothing of what is judged, and must be had by probes, scrapers and browsers."""
OPERATORS = frozenset({"/v1/model"})


class Guard:
    """ASGI middleware: 401 and 403 by token, 413 by size; a client that goes away takes its request's work along.

    The body is read whole, so no handler waits for it.
    """

    def __init__(self, app: "ASGIApp", *, tokens: Tokens, max_bytes: int) -> None:
        self.app = app
        self.tokens = tokens
        self.max_bytes = max_bytes

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers.get(b"authorization", b"").decode("latin-1")):
            return await _answer(send, *refusal)
        length = headers.get(b"content-length", b"0")
        body = bytearray()
        too_large = not length.isdigit() or int(length) > self.max_bytes
        more = not too_large
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                too_large, more = True, False
        if too_large:
            return await _answer(send, 413, f"body: larger than {self.max_bytes} bytes; send less, or images by hash")
        await _unless_gone(self.app(scope, _replay(bytes(body), receive), send), receive)
        return None

    def _refusal(self, scope: "Scope", authorization: str) -> tuple[int, str] | None:
        """Status and reason, or None where the caller may go on."""
        # As the router sees it: below a `route_prefix` of Ray Serve the scope's path is longer than the routes.
        path, caller = get_route_path(scope), self.tokens.caller(authorization)
        if path in OPERATORS and scope["method"] != "GET":
            if not self.tokens.operator:
                return 403, "authorization: this service was started without an operator's token"
            return None if caller is Caller.OPERATOR else (401, "authorization: needs the operator's token")
        if path in OPEN or caller >= Caller.USER:
            return None
        return 401, "authorization: needs `Bearer <the service's token>`"


def _replay(body: bytes, receive: "Receive") -> "Receive":
    given = False

    async def again() -> "Message":
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _unless_gone(answering: Awaitable[None], receive: "Receive") -> None:
    """Answer a request, or give that up when its client disconnects: all that can be received after the body."""
    work = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if given_up := not work.done():
            work.cancel()
    await asyncio.wait((work,))
    if not given_up:
        work.result()


async def _answer(send: "Send", status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
