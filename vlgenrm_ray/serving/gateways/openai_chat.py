"""OpenAI chat completions: `POST /v1/chat/completions`. A conversation that ends with the assistant's turn is judged.

Each choice is a critique with its verdict; `n` is their number. With `logprobs`, `logprobs.content` holds one token,
the verdict, with the probabilities of Yes and No as shares of their sum; None where the verdict cannot be read. The
reply says beside it what OpenAI has no field for: `reward` and `verdict_mass`. How critiques are sampled is the
operator's affair: `temperature`, `max_tokens` and the like are accepted, as clients always send them, without effect.
No reward is an HTTP error in OpenAI's form: 503, which its clients try again, or 422, on which they raise.
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
from vlgenrm_ray.serving.gateways.scoring import item, judge, rewards
from vlgenrm_ray.serving.score import Score

_LEAST = -9999.0
"""OpenAI's log-probability of what is as good as impossible."""


class Completion(BaseModel):
    """The fields that count; others of OpenAI's are taken and left."""

    model: str = ""
    """Left as well: the reply names the version that judged."""
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=64)
    n: int | None = Field(default=None, ge=1, le=MAX_CRITIQUES)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    logprobs: bool | None = None
    stream: bool | None = None


def router(score: Score) -> APIRouter:
    """`POST /v1/chat/completions`."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def completions(asked: Completion) -> JSONResponse:
        try:
            asking = _item(asked)
            replies = await judge(score, [asking])
            rewards(replies)
        except HTTPException as refusal:
            kind = "server_error" if refusal.status_code >= 500 else "invalid_request_error"
            error = {"message": str(refusal.detail), "type": kind, "param": None, "code": None}
            return JSONResponse({"error": error}, refusal.status_code, headers=dict(refusal.headers or {}))
        return JSONResponse(_completion(asking, replies[0], with_logprobs=bool(asked.logprobs)))

    return routes


def _item(asked: Completion) -> ScoreItem:
    if asked.stream:
        raise HTTPException(422, "stream: critiques come whole; leave it out")
    try:
        messages, response = split_last_answer(asked.messages)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    return item("messages", messages=messages, response=response, num_critiques=asked.n, seed=asked.seed)


def _completion(asking: ScoreItem, reply: ScoreReply, *, with_logprobs: bool) -> dict[str, Any]:
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
        "id": "chatcmpl-" + hashlib.sha256(asking.model_dump_json().encode()).hexdigest()[:24],
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
    shares = {"Yes": critique.p_yes, "No": 1.0 - critique.p_yes}
    top = [
        {"token": word, "logprob": math.log(share) if share > 0 else _LEAST, "bytes": list(word.encode())}
        for word, share in sorted(shares.items(), key=lambda pair: -pair[1])
    ]
    # The word that was written may be the less likely one.
    written = "Yes" if critique.text.rstrip(" .*_\n").casefold().endswith("yes") else "No"
    chosen = next(entry for entry in top if entry["token"] == written)
    return {"content": [{**chosen, "top_logprobs": top}]}
