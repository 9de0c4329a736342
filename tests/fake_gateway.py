"""A gateway mounted in an application of its own, over the fake judge; requests are made in memory."""

import asyncio
from typing import Any

import fastapi
import httpx
from fake_service import score

from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest, ScoreResponse
from vlgenrm_ray.serving.gateways.scoring import Score


class FakeGateway:
    """An application with one gateway. `items` are those that the gateway asked to score."""

    def __init__(self, router: Any, judge: Score = score) -> None:
        self.items: list[ScoreItem] = []
        self._judge = judge
        self.app = fastapi.FastAPI()
        self.app.include_router(router(self._score))

    async def _score(self, request: ScoreRequest) -> ScoreResponse:
        self.items.extend(item for item in request.items if isinstance(item, ScoreItem))
        return await self._judge(request)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """The response to `POST path`."""
        return self.request("POST", path, **({"json": body} if body is not None else {}), **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The response to any request."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())
