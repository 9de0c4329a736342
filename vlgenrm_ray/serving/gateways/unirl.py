"""UniRL's reward service: `POST /score` and `GET /rewards`. The one reward served has the name `vlgenrm`, by which
UniRL's client finds it in the service's `GET /health` before it asks for scores.

The last turn of a history counts: its image, and its text as a description of that image; `metadata` with `question`
and `response` says what is to be judged instead. Failures are the protocol's own: the reward is absent from
`results[i]` and `errors[i]` says why, upon which UniRL marks the sample as failed. No video.
"""

from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from vlgenrm_ray.judge.wire import ScoreItem
from vlgenrm_ray.serving.gateways.scoring import item, judge, why
from vlgenrm_ray.serving.score import Score

REWARD = "vlgenrm"
_DESCRIBE = "Describe the image."


class Turn(BaseModel):
    """A text with what was made of it."""

    text: str = ""
    image_b64: str | None = None
    video_b64: str | None = None
    video_path: str | None = None


class Request(BaseModel):
    """One sample."""

    history: list[Turn]
    required_rewards: list[str]
    metadata: dict[str, Any] | None = None


class Batch(BaseModel):
    """Samples to score together."""

    requests: list[Request]


def router(score: Score) -> APIRouter:
    """`POST /score`, `GET /rewards`."""
    routes = APIRouter()

    @routes.get("/rewards")
    async def rewards() -> dict[str, list[str]]:
        return {"rewards": [REWARD]}

    @routes.post("/score")
    async def scores(batch: Batch) -> dict[str, list[Any]]:
        results: list[dict[str, dict[str, float]]] = [{} for _ in batch.requests]
        errors = [
            {name: f"not served; this service serves {REWARD}" for name in request.required_rewards if name != REWARD}
            for request in batch.requests
        ]
        items: dict[int, ScoreItem] = {}
        for i, request in enumerate(batch.requests):
            if REWARD in request.required_rewards:
                try:
                    items[i] = _item(i, request)
                except HTTPException as refusal:
                    errors[i][REWARD] = str(refusal.detail)
        for i, reply in zip(items, await judge(score, list(items.values())), strict=True):
            if reply.reward is None:
                errors[i][REWARD] = why(reply)
            else:
                results[i][REWARD] = {REWARD: reply.reward}
        return {"results": results, "errors": errors}

    return routes


def _item(number: int, request: Request) -> ScoreItem:
    name = f"requests[{number}]"
    if not request.history or request.history[-1].image_b64 is None:
        raise HTTPException(422, f"{name}.history: the last turn has no image; videos are not judged")
    last, told = request.history[-1], request.metadata or {}
    asked = {"question": told.get("question", _DESCRIBE), "response": told.get("response", last.text)}
    return item(name, images=[last.image_b64], reference=told.get("reference"), **asked)
