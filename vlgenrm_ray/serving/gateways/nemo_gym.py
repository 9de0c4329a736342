"""NeMo Gym: `POST /verify`, as a resources server answers it, and `POST /seed_session`, which keeps no state.

Prompt and response come in the shapes of OpenAI's Responses API, images as `input_image` data URLs. The reply is the
request with `reward` and statistics added. A sample without a reward is an HTTP error (422 or 503), on which the agent
raises; Gym's own failure rows carry the number 0.0, and an older Gym trains on it.
"""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, ConfigDict

from vlgenrm_ray.judge.label import Label, is_missing
from vlgenrm_ray.serving.gateways.scoring import Score, build_item, parse_label, require_rewards, score_items


class VerifyRequest(BaseModel):
    """A rollout to verify. Extra fields are columns of the data set and are returned; see `_reference`."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


def router(score: Score) -> APIRouter:
    """Serve `POST /verify` and `POST /seed_session`."""
    routes = APIRouter()

    @routes.post("/verify")
    async def verify(rollout: VerifyRequest) -> Response:
        item = build_item(
            "responses_create_params",
            messages=_messages(rollout.responses_create_params.get("input")),
            response=_response_text(rollout.response.get("output")),
            reference=_reference(rollout.model_extra or {}).reference,
        )
        (reply,) = replies = await score_items(score, [item])
        (reward,) = require_rewards(replies)
        added = {
            "verdict_mass": reply.verdict_mass,
            "num_critiques": len(reply.critiques),
            "model_version": reply.model_version,
            "reward": reward,
        }
        # The row must return unchanged, NaN and lone surrogates included, which stricter writers refuse.
        return Response(json.dumps({**rollout.model_dump(), **added}), media_type="application/json")

    @routes.post("/seed_session")
    async def seed_session() -> dict[str, Any]:
        return {}

    return routes


def _messages(value: Any) -> list[Any]:
    """Return the conversation without tool calls and reasoning."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise HTTPException(422, "responses_create_params.input: must be a text or a list of messages")
    return [turn for turn in value if turn.get("type", "message") == "message"]


def _response_text(output: Any) -> str:
    """Return the text of the output's messages, without reasoning and tool calls."""
    if not isinstance(output, list) or not all(isinstance(entry, Mapping) for entry in output):
        raise HTTPException(422, "response.output: must be a list of objects")
    contents = [entry.get("content") or [] for entry in output if entry.get("type") == "message"]
    if not all(isinstance(parts, list) and all(isinstance(p, Mapping) for p in parts) for parts in contents):
        raise HTTPException(422, "response.output: a message's content must be a list of parts")
    return "".join(str(part.get("text", "")) for parts in contents for part in parts)


def _reference(row: Mapping[str, Any]) -> Label:
    """Return the reference answer of a row: its `reference`, `expected_answer` or `answer`."""
    columns = (row.get(name) for name in ("reference", "expected_answer", "answer"))
    answers = (value for value in columns if isinstance(value, str | int | float) and not is_missing(value))
    return parse_label("reference", next(answers, None))
