"""The ingress' own HTTP socket: it answers, and the work of a client that disconnects is cancelled."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx
import pytest
from fastapi import FastAPI, Request
from ports import free_port

from vlgenrm_ray.serving import http_protocol
from vlgenrm_ray.serving.ingress import ListenAddress, listen
from vlgenrm_ray.serving.limits import BodyDeadlines, BodyLimitMiddleware, BodyRoom

T = TypeVar("T")


class SlowApp:
    """An application that takes long, and records how its work ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.api = FastAPI()
        self.api.add_middleware(BodyLimitMiddleware, max_bytes=1000)
        self.api.post("/work")(self.work)

    async def work(self, request: Request, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return (await request.body()).decode()


def test_it_answers_and_cancels_the_work_of_clients_that_disconnect() -> None:
    async def run() -> tuple[SlowApp, str]:
        slow, port = SlowApp(), free_port()
        server = await listen(slow.api, ListenAddress("127.0.0.1", port))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            reply = (await http.post("/work?seconds=0", content=b"hello")).json()
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/work?seconds=60", content=b"hello", timeout=0.2)
        for _ in range(100):
            if len(slow.ended) == 2:
                break
            await asyncio.sleep(0.02)
        server.cancel()
        return slow, reply

    slow, reply = asyncio.run(run())
    assert reply == "hello"
    assert slow.ended == ["done", "cancelled"]


def test_a_taken_address_is_an_error_at_once() -> None:
    async def run(port: int) -> None:
        await listen(FastAPI(), ListenAddress("127.0.0.1", port))

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        asyncio.run(run(taken.getsockname()[1]))


class Sink:
    """An application that answers with the number of bytes of its body."""

    def __init__(self, **limits: object) -> None:
        self.api = FastAPI()
        self.api.add_middleware(BodyLimitMiddleware, **{"max_bytes": 64 << 20} | limits)  # type: ignore[arg-type]
        self.api.post("/")(self.count)

    async def count(self, request: Request) -> int:
        return len(await request.body())


async def exchange(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts over a socket; return what the server sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 60.0)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def against(sink: Sink, client: Callable[[int], Coroutine[Any, Any, T]]) -> T:
    """Run a client against a served sink."""

    async def run() -> T:
        port = free_port()
        server = await listen(sink.api, ListenAddress("127.0.0.1", port))
        try:
            return await client(port)
        finally:
            server.cancel()

    return asyncio.run(run())


def post(length: int, *headers: bytes) -> bytes:
    lines = [b"POST / HTTP/1.1", b"host: a", b"content-length: %d" % length, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def test_headers_without_end_are_refused_before_they_fill_the_memory() -> None:
    async def client(port: int) -> list[bytes]:
        head = b"POST / HTTP/1.1\r\nhost: a\r\n"
        one_long = exchange(port, head + b"x: ", *[b"a" * 65536] * 64, pause_s=0.001)
        many = exchange(port, head, *[b"x: a\r\n" * 8192] * 64, pause_s=0.001)
        return [await one_long, await many]

    for reply in against(Sink(), client):
        # The rest may still be under way when the connection is closed, which then discards the answer.
        assert reply == b"" or reply.startswith(b"HTTP/1.1 431 ")


def test_headers_that_do_not_end_in_time_close_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_DEADLINE_S", 0.2)
    silent, half, whole = against(
        Sink(),
        lambda port: asyncio.gather(
            exchange(port), exchange(port, b"POST / HT"), exchange(port, post(2, b"connection: close"), b"ab")
        ),
    )
    assert silent.startswith(b"HTTP/1.1 408 ")
    assert half.startswith(b"HTTP/1.1 408 ")
    assert whole.startswith(b"HTTP/1.1 200 ")


def test_several_requests_of_one_connection_are_answered() -> None:
    request = post(200_000) + b"a" * 200_000
    reply = against(Sink(), lambda port: exchange(port, request * 2 + post(3, b"connection: close") + b"abc"))
    assert reply.count(b"HTTP/1.1 200 ") == 3


def test_a_body_that_stalls_is_refused_and_its_room_is_free_again() -> None:
    room = BodyRoom(4 << 20, 60.0)
    sink = Sink(room=room, deadlines=BodyDeadlines(stall_s=1.0))

    async def client(port: int) -> tuple[list[bytes], bytes]:
        length = 3 << 20
        held = [exchange(port, post(length), b"a" * (length - 1)) for _ in range(4)]
        stalled = await asyncio.gather(*held)
        return stalled, await exchange(port, post(length, b"connection: close"), b"a" * length)

    stalled, whole = against(sink, client)
    # On a slow machine a part is unread when the connection is closed, which then discards the answer.
    assert all(reply == b"" or reply.startswith(b"HTTP/1.1 408 ") for reply in stalled)
    assert whole.endswith(b"3145728")
    assert room.num_bytes == 0


def test_large_bodies_wait_for_room_and_never_exceed_it() -> None:
    room = BodyRoom(4 << 20, 10.0)
    largest = 0

    async def client(port: int) -> list[bytes]:
        nonlocal largest
        length = 3 << 20
        requests = [
            asyncio.ensure_future(exchange(port, post(length, b"connection: close"), b"a" * length)) for _ in range(8)
        ]
        while not all(request.done() for request in requests):
            largest = max(largest, room.num_bytes)
            await asyncio.sleep(0)
        return [request.result() for request in requests]

    replies = against(Sink(room=room), client)
    assert all(reply.endswith(b"3145728") for reply in replies)
    assert largest == 3 << 20


def test_small_bodies_are_bounded_as_well_and_never_wait_behind_large_ones() -> None:
    room = BodyRoom(4 << 20, 10.0)
    room.large.num_bytes = 3 << 20
    length, largest = 900_000, 0

    async def client(port: int) -> list[bytes]:
        nonlocal largest
        bodies = [post(length, b"connection: close"), b"a" * length]
        chunks = [b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"]
        chunks.append(b"%x\r\n%s\r\n0\r\n\r\n" % (length, b"a" * length))
        requests = [asyncio.ensure_future(exchange(port, *parts)) for parts in (bodies, chunks) * 4]
        while not all(request.done() for request in requests):
            largest = max(largest, room.small.num_bytes)
            await asyncio.sleep(0)
        return [request.result() for request in requests]

    replies = against(Sink(room=room), client)
    assert all(b"\r\n\r\n900000" in reply or b"900000\r\n0" in reply for reply in replies)
    assert 0 < largest <= 1 << 20
    assert room.small.num_bytes == 0


def test_a_body_that_finds_no_room_may_be_sent_again() -> None:
    room = BodyRoom(1 << 20, 0.1)
    room.large.num_bytes = 1 << 20
    length = 2 << 20
    reply = against(Sink(room=room), lambda port: exchange(port, post(length), b"a" * 1000))
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in reply
