"""NeMo Gym: the routes of a resources server, as Gym 0.7.0 calls them.

`POST /verify` takes prompt and response in the shapes of OpenAI's Responses API, images as `input_image` data URLs. The
reply is the request with `reward` and statistics added. A sample without a reward has Gym's own mask: `mask_sample`,
`failure_kind` and `failure_reason`, beside the reward 0.0 that its reply must have; Gym leaves it out of every score.
Failures of the judge also have `_ng_failure_class`, so that Gym keeps them apart and may try them again. Gym before
0.7 knows no mask at `/verify`.

The service keeps no state: sessions are confirmed (`/seed_session`, `/close_session`), verifying again is possible at
any time (`/reverify_mode`), and `/aggregate_metrics` computes Gym's statistics of the replies. With observability, Gym
calls each route below `/ng-rollout/<id>`.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.failed_rewards import failure_reason
from vlgenrm_ray.judge.label import Label, is_missing
from vlgenrm_ray.judge.wire import ScoreItem, ScoreReply, Status
from vlgenrm_ray.serving.gateways.scoring import (
    Score,
    build_item,
    build_items,
    parse_label,
    record_masked,
    requested_rewards,
    score_items,
)
from vlgenrm_ray.serving.gym_metrics import aggregate_metrics
from vlgenrm_ray.serving.limits import OverloadedError

_PREFIXES = ("", "/ng-rollout/{rollout_id}")
_COOKIE = "vlgenrm_session"
"""Cookie that Gym requires of a seeded session. Nothing depends on it."""
_MAX_REASON = 2000
"""Most characters of `failure_reason`, as in Gym."""
_KINDS = {
    Status.UNREADABLE_VERDICT: "judge_unparseable",
    Status.TIMEOUT: "judge_failed",
    Status.OVERLOADED: "judge_failed",
    Status.INTERNAL: "judge_failed",
    Status.EMPTY_TEXT: "vlgenrm:empty_text",
    Status.FORGED_CRITIQUE: "vlgenrm:forged_critique",
}
"""Status -> name in Gym's vocabulary of failures; of the others `verifier_error`."""
_POLICY_FAULTS = (Status.EMPTY_TEXT, Status.FORGED_CRITIQUE)
"""Statuses that are properties of the response: masked, but no failure of the environment that Gym might repeat."""


class VerifyRequest(BaseModel):
    """A rollout to verify. Extra fields are columns of the data set and are returned; see `_reference`."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


class SeedSessionRequest(BaseModel):
    """A session to confirm. An agent's own body has no id and gets an empty reply."""

    model_config = ConfigDict(extra="allow")

    resources_session_id: str | None = Field(default=None, min_length=1, max_length=1024)


class CloseSessionRequest(BaseModel):
    """A session to end. Any id is accepted, as often as it comes."""

    model_config = ConfigDict(extra="allow")

    resources_session_id: str = Field(min_length=1, max_length=1024)


class AggregateMetricsRequest(BaseModel):
    """Replies of `/verify`, without prompts and outputs."""

    verify_responses: list[dict[str, Any]]


def router(score: Score) -> APIRouter:
    """Serve `POST /verify`, `/seed_session`, `/close_session`, `/aggregate_metrics` and `GET /reverify_mode`."""
    routes = APIRouter()

    async def verify(rollout: VerifyRequest) -> Response:
        added = await _judge(rollout, score)
        # The row must return unchanged, NaN and lone surrogates included, which stricter writers refuse.
        return Response(json.dumps({**rollout.model_dump(), **added}), media_type="application/json")

    async def seed_session(session: SeedSessionRequest) -> JSONResponse:
        body: dict[str, Any] = {}
        if session.resources_session_id is not None:
            body = {"resources_session_id": session.resources_session_id}
        reply = JSONResponse(body)
        reply.set_cookie(_COOKIE, secrets.token_hex(16), httponly=True, samesite="lax")
        return reply

    async def close_session(session: CloseSessionRequest) -> dict[str, str]:
        return {"resources_session_id": session.resources_session_id}

    async def aggregate(body: AggregateMetricsRequest) -> JSONResponse:
        try:
            return JSONResponse(aggregate_metrics(body.verify_responses))
        except InputError as error:
            raise HTTPException(422, str(error)) from error

    async def reverify_mode() -> str:
        return "stateless"

    for prefix in _PREFIXES:
        shown = not prefix
        routes.post(f"{prefix}/verify", include_in_schema=shown)(verify)
        routes.post(f"{prefix}/seed_session", include_in_schema=shown)(seed_session)
        routes.post(f"{prefix}/close_session", include_in_schema=shown)(close_session)
        routes.post(f"{prefix}/aggregate_metrics", include_in_schema=shown)(aggregate)
        routes.get(f"{prefix}/reverify_mode", include_in_schema=shown)(reverify_mode)
    return routes


async def _judge(rollout: VerifyRequest, score: Score) -> dict[str, Any]:
    """Return the fields to add to a rollout: its reward, or its mask."""
    try:
        (reply,) = await score_items(score, await build_items(_build_item, [(rollout,)]))
    except OverloadedError as error:
        reply = ScoreReply(reward=None, status=Status.OVERLOADED, detail=str(error))
    statistics = {
        "verdict_mass": reply.verdict_mass,
        "num_critiques": len(reply.critiques),
        "model_version": reply.model_version,
    }
    (reward,) = requested_rewards([reply])
    if reward is not None:
        return {
            **statistics,
            "reward": reward,
            "mask_sample": False,
            "failure_kind": None,
            "failure_reason": None,
        }
    record_masked(reply)
    return {**statistics, **_mask(reply, (rollout.model_extra or {}).get("instance_config"))}


def _build_item(_: int, rollout: VerifyRequest) -> ScoreItem:
    return build_item(
        "responses_create_params",
        messages=_messages(rollout.responses_create_params.get("input")),
        response=_response_text(rollout.response.get("output")),
        reference=_reference(rollout.model_extra or {}).reference,
    )


def _mask(reply: ScoreReply, instance_config: Any) -> dict[str, Any]:
    """Return the fields by which Gym recognises a sample without a reward."""
    kind = _KINDS.get(reply.status, "verifier_error")
    reason = failure_reason(reply)[:_MAX_REASON]
    mask = {
        "reward": 0.0,
        "mask_sample": True,
        "failure_kind": kind,
        "failure_reason": reason,
        # Where NeMo-RL before Gym 0.7 reads the mask.
        "instance_config": {**(instance_config if isinstance(instance_config, Mapping) else {}), "mask_sample": True},
    }
    if reply.status in _POLICY_FAULTS:
        return mask
    mask |= {"_ng_failure_class": kind, "_ng_failure_judge_error": reason}
    # What would fail again is not tried again.
    return mask if reply.status.http_status == 503 else mask | {"_ng_failure_terminal": True}


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
