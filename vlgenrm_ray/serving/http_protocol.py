"""The ingress' HTTP/1.1 connections: uvicorn's, with bounds on what a client sends before its token is looked at.

uvicorn's parser buffers headers without a bound and waits for them without a deadline. Bodies are bounded by
`limits.BodyLimitMiddleware`, which runs after the token was checked.
"""

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
"""Bytes of request line and headers together, beyond those of the first read of the socket."""
HEADER_DEADLINE_S = 20.0
"""Seconds from the first byte of a request, or from the connection, to the end of its headers."""
MAX_CONNECTIONS = 8192
"""Connections at a time; further ones are closed."""

if TYPE_CHECKING:
    from asyncio import TimerHandle


class BoundedHttpProtocol(HttpToolsProtocol):
    """Connection whose headers are bounded in size and time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_headers = False
        self._has_begun = False
        self._num_header_bytes = 0
        self._header_deadline: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or close it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; close the connection if it makes the headers too large."""
        self._has_begun = False
        super().data_received(data)
        # Data in which a request begins may hold the end of another one; its size is bounded by the socket's buffer.
        if self._in_headers and not self._has_begun:
            self._num_header_bytes += len(data)
            if self._num_header_bytes > MAX_HEADER_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Count the bytes of the next request's headers."""
        self._in_headers = self._has_begun = True
        self._num_header_bytes = 0
        self._start_deadline()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application, which bounds the body."""
        self._in_headers = False
        self._stop_deadline()
        super().on_headers_complete()

    def _start_deadline(self) -> None:
        self._stop_deadline()
        self._header_deadline = self.loop.call_later(HEADER_DEADLINE_S, self._refuse, HTTPStatus.REQUEST_TIMEOUT)

    def _stop_deadline(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer and close, without a response of the application."""
        if self.transport.is_closing():
            return
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode())
        self.transport.close()
