"""OpenAI chat completions: `POST /v1/chat/completions` judges a conversation that ends with the assistant's turn.

Each choice is a critique with its verdict; `n` is their number. With `logprobs`, `logprobs.content` holds one token,
the verdict, with the probabilities of Yes and No normalized to 1; None if the verdict is unreadable. The reply has two
fields that OpenAI does not know: `reward` and `verdict_mass`. The operator's settings determine how critiques are
sampled: `temperature`, `max_tokens` and the like are accepted, because clients always send them, and ignored. A missing
reward is an HTTP error in OpenAI's form: 503, which its clients retry, or 422, on which they raise.
"""

import hashlib
import math
import time
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import split_last_answer
from vlgenrm_ray.judge.wire import MAX_CRITIQUES, ScoreItem, ScoreReply, WireCritique
from vlgenrm_ray.serving.gateways.scoring import Score, build_item, require_rewards, score_items

_MIN_LOGPROB = -9999.0
"""OpenAI's log-probability of a token that is practically impossible."""


class ChatRequest(BaseModel):
    """The fields that have an effect. Others of OpenAI's are accepted and ignored."""

    model: str = ""
    """Ignored: the reply names the version that judged."""
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=64)
    n: int | None = Field(default=None, ge=1, le=MAX_CRITIQUES)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    logprobs: bool | None = None
    stream: bool | None = None


def router(score: Score) -> APIRouter:
    """Serve `POST /v1/chat/completions`."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def completions(request: ChatRequest) -> JSONResponse:
        try:
            item = _build_item(request)
            replies = await score_items(score, [item])
            require_rewards(replies)
        except HTTPException as refusal:
            kind = "server_error" if refusal.status_code >= 500 else "invalid_request_error"
            error = {"message": str(refusal.detail), "type": kind, "param": None, "code": None}
            return JSONResponse({"error": error}, refusal.status_code, headers=dict(refusal.headers or {}))
        return JSONResponse(_completion(item, replies[0], with_logprobs=bool(request.logprobs)))

    return routes


def _build_item(request: ChatRequest) -> ScoreItem:
    if request.stream:
        raise HTTPException(422, "stream: critiques are not streamed; leave it out")
    try:
        messages, response = split_last_answer(request.messages)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    return build_item("messages", messages=messages, response=response, num_critiques=request.n, seed=request.seed)


def _completion(item: ScoreItem, reply: ScoreReply, *, with_logprobs: bool) -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": critique.text},
            "finish_reason": "stop",
            "logprobs": _logprobs(critique) if with_logprobs else None,
        }
        for i, critique in enumerate(reply.critiques)
    ]
    return {
        "id": "chatcmpl-" + hashlib.sha256(item.model_dump_json().encode()).hexdigest()[:24],
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model_version,
        "choices": choices,
        "reward": reply.reward,
        "verdict_mass": reply.verdict_mass,
    }


def _logprobs(critique: WireCritique) -> dict[str, Any] | None:
    if critique.p_yes is None:
        return None
    probabilities = {"Yes": critique.p_yes, "No": 1.0 - critique.p_yes}
    top_logprobs = [
        {"token": word, "logprob": math.log(p) if p > 0 else _MIN_LOGPROB, "bytes": list(word.encode())}
        for word, p in sorted(probabilities.items(), key=lambda pair: -pair[1])
    ]
    # The sampled word may be the less likely one.
    sampled = "Yes" if critique.text.rstrip(" .*_\n").casefold().endswith("yes") else "No"
    entry = next(entry for entry in top_logprobs if entry["token"] == sampled)
    return {"content": [{**entry, "top_logprobs": top_logprobs}]}
