"""The ingress' own HTTP socket: it answers, and the work of a client that disconnects is cancelled."""

import asyncio
import socket

import httpx
import pytest
from fastapi import FastAPI, Request
from ports import free_port

from vlgenrm_ray.serving.ingress import ListenAddress, listen
from vlgenrm_ray.serving.limits import BodyLimitMiddleware


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
