"""Ask an application in memory, without a socket."""

import asyncio
from typing import Any

import fastapi
import httpx
from fake_service import score

from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest, ScoreResponse
from vlgenrm_ray.serving.score import Score


class Gateway:
    """A gateway over a scripted judge; keeps the items it was asked about."""

    def __init__(self, router: Any, judge: Score = score) -> None:
        self.items: list[ScoreItem] = []
        self._judge = judge
        self.app = fastapi.FastAPI()
        self.app.include_router(router(self._score))

    async def _score(self, request: ScoreRequest) -> ScoreResponse:
        self.items.extend(request.items)
        return await self._judge(request)

    def post(self, path: str, body: Any = None, **how: Any) -> httpx.Response:
        """The answer to `POST path`."""
        return self.request("POST", path, **({"json": body} if body is not None else {}), **how)

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        """The answer to any request."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
                return await client.request(method, path, **how)

        return asyncio.run(ask())
