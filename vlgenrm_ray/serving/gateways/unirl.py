"""UniRL's reward service: `POST /score` and `GET /rewards`.

The only reward has the name `vlgenrm`; UniRL's client looks for it in `GET /health` before it requests scores. The last
turn of a history is judged: its image, and its text as a description of that image. `metadata` with `question` and
`response` replaces these texts. Failures have the protocol's own form: `results[i]` lacks the reward and `errors[i]`
states why, upon which UniRL marks the sample as failed. Videos are not judged.
"""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from vlgenrm_ray.judge.failed_rewards import failure_reason
from vlgenrm_ray.judge.label import reference_text
from vlgenrm_ray.judge.wire import InvalidItem, ScoreItem, ScoreReply, Status
from vlgenrm_ray.serving.gateways.scoring import (
    MAX_ROWS,
    Score,
    build_item,
    build_items,
    record_masked,
    requested_rewards,
    row_validator,
    score_items,
)
from vlgenrm_ray.serving.limits import OverloadedError

REWARD = "vlgenrm"
_DEFAULT_QUESTION = "Describe the image."


class UniRlTurn(BaseModel):
    """A text and the image or video that was generated from it."""

    text: str = ""
    image_b64: str | None = None
    video_b64: str | None = None
    video_path: str | None = None


class UniRlRequest(BaseModel):
    """One sample."""

    history: list[UniRlTurn]
    required_rewards: list[str]
    metadata: dict[str, Any] | None = None


class UniRlBatch(BaseModel):
    """Samples to score together."""

    requests: list[Annotated[UniRlRequest | SkipJsonSchema[InvalidItem], row_validator(UniRlRequest)]] = Field(
        max_length=MAX_ROWS
    )


def router(score: Score) -> APIRouter:
    """Serve `POST /score` and `GET /rewards`."""
    routes = APIRouter()

    @routes.get("/rewards")
    async def rewards() -> dict[str, list[str]]:
        return {"rewards": [REWARD]}

    @routes.post("/score")
    async def scores(batch: UniRlBatch) -> dict[str, list[Any]]:
        results: list[dict[str, dict[str, float]]] = [{} for _ in batch.requests]
        # A malformed request may not say which rewards it needs; its error is that of the only reward.
        required = [[REWARD] if isinstance(r, InvalidItem) else r.required_rewards for r in batch.requests]
        errors = [
            {name: f"not served; this service serves {REWARD}" for name in names if name != REWARD}
            for names in required
        ]
        numbers = [i for i, names in enumerate(required) if REWARD in names]
        items = await build_items(_build_item, [(i, batch.requests[i]) for i in numbers])
        try:
            replies = await score_items(score, items)
        except OverloadedError as error:
            replies = [ScoreReply(reward=None, status=Status.OVERLOADED, detail=str(error))] * len(items)
        for i, reply, reward in zip(numbers, replies, requested_rewards(replies), strict=True):
            if reward is None:
                record_masked(reply)
                errors[i][REWARD] = failure_reason(reply)
            else:
                results[i][REWARD] = {REWARD: reward}
        return {"results": results, "errors": errors}

    return routes


def _build_item(_: int, number: int, request: UniRlRequest) -> ScoreItem:
    name = f"requests[{number}]"
    if not request.history or request.history[-1].image_b64 is None:
        raise HTTPException(422, f"{name}.history: the last turn has no image; videos are not judged")
    last, metadata = request.history[-1], request.metadata or {}
    return build_item(
        name,
        images=[last.image_b64],
        question=metadata.get("question", _DEFAULT_QUESTION),
        response=metadata.get("response", last.text),
        reference=reference_text(metadata.get("reference")),
    )
