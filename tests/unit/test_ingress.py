"""The gate's own HTTP socket: it answers, and a client that goes away takes its work along."""

import asyncio
import socket

import httpx
import pytest
from fastapi import FastAPI, Request

from vlgenrm_ray.serving.auth import Tokens
from vlgenrm_ray.serving.limits import Guard
from vlgenrm_ray.serving.listener import Address, listen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Slow:
    """An application that takes long, and remembers how its work ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.api = FastAPI()
        self.api.add_middleware(Guard, tokens=Tokens(), max_bytes=1000)
        self.api.post("/work")(self.work)

    async def work(self, request: Request, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return (await request.body()).decode()


def test_it_answers_and_ends_the_work_of_who_goes_away() -> None:
    async def run() -> tuple[Slow, str]:
        slow, port = Slow(), free_port()
        serving = await listen(slow.api, Address("127.0.0.1", port))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            reply = (await http.post("/work?seconds=0", content=b"hello")).json()
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/work?seconds=60", content=b"hello", timeout=0.2)
        for _ in range(100):
            if len(slow.ended) == 2:
                break
            await asyncio.sleep(0.02)
        serving.cancel()
        return slow, reply

    slow, reply = asyncio.run(run())
    assert reply == "hello"
    assert slow.ended == ["done", "cancelled"]


def test_an_address_that_is_taken_is_an_error_at_once() -> None:
    async def run(port: int) -> None:
        await listen(FastAPI(), Address("127.0.0.1", port))

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        asyncio.run(run(taken.getsockname()[1]))
