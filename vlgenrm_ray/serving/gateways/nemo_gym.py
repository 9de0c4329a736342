"""NeMo Gym: `POST /verify`, as a resources server answers it; `POST /seed_session`, which holds no state.

Prompt and response come in OpenAI's Responses shapes, images as `input_image` data URLs. The reply is the request with
`reward` and figures added. A sample without a reward is an HTTP error (422 or 503), which the agent raises on; Gym's
own failure rows carry the number 0.0, and an older Gym trains on it.
"""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, ConfigDict

from vlgenrm_ray.judge.label import Label
from vlgenrm_ray.serving.gateways.scoring import item, judge, label, rewards
from vlgenrm_ray.serving.score import Score


class Verify(BaseModel):
    """A rollout. What the data set's row holds beside it stays in the reply; see `_reference` for what is used."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


def router(score: Score) -> APIRouter:
    """`POST /verify` and `POST /seed_session`."""
    routes = APIRouter()

    @routes.post("/verify")
    async def verify(rollout: Verify) -> Response:
        asking = item(
            "responses_create_params",
            messages=_messages(rollout.responses_create_params.get("input")),
            response=_text(rollout.response.get("output")),
            reference=_reference(rollout.model_extra or {}).reference,
        )
        replies = await judge(score, [asking])
        (reward,) = rewards(replies)
        figures = {"verdict_mass": replies[0].verdict_mass, "num_critiques": len(replies[0].critiques)}
        told = {**rollout.model_dump(), **figures, "model_version": replies[0].model_version, "reward": reward}
        # What came in goes out as it came, NaN and lone surrogates included, which stricter writers refuse.
        return Response(json.dumps(told), media_type="application/json")

    @routes.post("/seed_session")
    async def seed_session() -> dict[str, Any]:
        return {}

    return routes


def _messages(given: Any) -> list[Any]:
    """The conversation; tool calls and reasoning in it are left out."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(turn, Mapping) for turn in given):
        raise HTTPException(422, "responses_create_params.input: must be a text or a list of messages")
    return [turn for turn in given if turn.get("type", "message") == "message"]


def _text(output: Any) -> str:
    """What the policy says in the messages of its output; reasoning and tool calls are left out."""
    if not isinstance(output, list) or not all(isinstance(entry, Mapping) for entry in output):
        raise HTTPException(422, "response.output: must be a list of objects")
    contents = [entry.get("content") or [] for entry in output if entry.get("type") == "message"]
    if not all(isinstance(parts, list) and all(isinstance(p, Mapping) for p in parts) for parts in contents):
        raise HTTPException(422, "response.output: a message's content must be a list of parts")
    return "".join(str(part.get("text", "")) for parts in contents for part in parts)


def _reference(row: Mapping[str, Any]) -> Label:
    """The right answer beside the rollout: `reference`, `expected_answer` or `answer`."""
    named = (row.get(name) for name in ("reference", "expected_answer", "answer"))
    return label("reference", next((value for value in named if isinstance(value, str | int | float)), None))
