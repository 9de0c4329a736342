"""OpenAI chat completions: `POST /v1/chat/completions`, and `GET /v1/models`.

The last turn decides:

- The assistant's: the conversation is judged. Each choice is a critique with its verdict; `n` is their number. With
  `logprobs`, `logprobs.content` holds one token, the verdict, with the probabilities of Yes and No normalized to 1;
  None if the verdict is unreadable. The reply has two fields that OpenAI does not know: `reward` and `verdict_mass`.
  The operator's settings determine how critiques are sampled: `temperature`, `max_tokens` and the like are ignored.
- The user's: the model itself answers as a chat model, for trainers that bring their own judge's prompt (generative
  rewards of verl, ms-swift, ROLL, verifiers, SkyRL). Fields that would change the answer and are not supported are
  refused.

An error has OpenAI's form, with the item's status as its `code`: 503, which its clients retry, or 422, on which they
raise.
"""

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import split_last_answer, to_openai_messages
from vlgenrm_ray.judge.wire import MAX_CRITIQUES, ScoreItem, ScoreReply, Status, WireCritique
from vlgenrm_ray.serving.chat import ChatReply, ChatService
from vlgenrm_ray.serving.gateways.scoring import (
    Score,
    build_item,
    convert_image,
    refuse_missing,
    requested_rewards,
    score_items,
)
from vlgenrm_ray.serving.limits import REASON_HEADER, RETRY_AFTER_S, OverloadedError, openai_error

_MIN_LOGPROB = -9999.0
"""OpenAI's log-probability of a token that is practically impossible."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "guided_json": (),
    "structured_outputs": (),
}
"""Fields that would change a chat answer and are not supported -> values that change nothing, beside null."""

_StopText = Annotated[str, Field(min_length=1, max_length=256)]


class ChatRequest(BaseModel):
    """The fields that have an effect. Others are ignored, or refused for a chat if they would change the answer."""

    model_config = ConfigDict(extra="allow")

    model: str = ""
    """Ignored: the reply names the version that judged or answered."""
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=64)
    n: int | None = Field(default=None, ge=1, le=MAX_CRITIQUES)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    logprobs: bool | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    """Default 1, as OpenAI's. This and the following fields have an effect on chats only."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """Older name of `max_completion_tokens`."""
    stop: Annotated[list[_StopText] | None, BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)] = (
        Field(default=None, max_length=16)
    )
    """One text or several."""


def router(
    score: Score, chat: ChatService | None = None, model_name: Callable[[], str] = lambda: "vlgenrm"
) -> APIRouter:
    """Serve `POST /v1/chat/completions` and `GET /v1/models`.

    Args:
        score: Judges conversations that end with the assistant's turn.
        chat: Answers those that end with the user's turn. None: they are refused.
        model_name: Returns the version of the active model.
    """
    routes = APIRouter()
    started = int(time.time())

    @routes.post("/v1/chat/completions", openapi_extra=_REQUEST_BODY)
    async def completions(request: Request) -> JSONResponse:
        parsed = _parse(await request.body())
        if isinstance(parsed, JSONResponse):
            return parsed
        try:
            if chat is not None and parsed.messages[-1].get("role") != "assistant":
                return await _chat(parsed, chat)
            return await _judge(parsed, score)
        except HTTPException as refusal:
            return _refusal(refusal)
        except OverloadedError as error:
            return _error(503, str(error), code="overloaded")

    @routes.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model(model_name(), started)]})

    @routes.get("/v1/models/{model:path}")
    async def one_model(model: str) -> JSONResponse:
        if model != model_name():
            detail = f"model: {model[:200]!r} is not served; this service serves {model_name()!r}"
            return _error(404, detail, param="model", code="model_not_found")
        return JSONResponse(_model(model, started))

    return routes


_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ChatRequest.model_json_schema()}}}
}


def _parse(body: bytes) -> ChatRequest | JSONResponse:
    """Return the request, or the error response to one that is malformed."""
    try:
        return ChatRequest.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        return _error(422, f"{field}: {first['msg']}", param=field)
    except (ValueError, RecursionError) as error:
        return _error(422, f"body: not valid JSON: {type(error).__name__}", param="body")


# -- conversations that are judged ---------------------------------------------------------------------------------


async def _judge(request: ChatRequest, score: Score) -> JSONResponse:
    if request.stream:
        return _error(422, "stream: critiques are not streamed; leave it out", param="stream")
    try:
        messages, response = split_last_answer(request.messages)
    except InputError as error:
        return _error(422, str(error), param="messages")
    item = build_item("messages", messages=messages, response=response, num_critiques=request.n, seed=request.seed)
    (reply,) = replies = await score_items(score, [item])
    (reward,) = requested_rewards(replies)
    try:
        if reward is None:
            refuse_missing(replies)
    except HTTPException as refusal:
        return _refusal(refusal, code=reply.status.value)
    completion = _completion(item, reply, with_logprobs=bool(request.logprobs))
    return JSONResponse(completion | {"reward": reward})


def _completion(item: ScoreItem, reply: ScoreReply, *, with_logprobs: bool) -> dict[str, Any]:
    choices = [
        _choice(i, critique.text, "stop", _logprobs(critique) if with_logprobs else None)
        for i, critique in enumerate(reply.critiques)
    ]
    identity = hashlib.sha256(item.model_dump_json().encode()).hexdigest()
    usage = _usage(reply.usage.prompt_tokens, reply.usage.completion_tokens)
    completion = _envelope(identity, reply.model_version, choices, usage)
    return completion | {"reward": reply.reward, "verdict_mass": reply.verdict_mass}


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


# -- conversations that the model answers --------------------------------------------------------------------------


async def _chat(request: ChatRequest, chat: ChatService) -> JSONResponse:
    if refused := _unsupported(request, chat.max_tokens):
        return refused
    try:
        messages = to_openai_messages(request.messages, convert_image)
    except InputError as error:
        return _error(422, str(error), param="messages")
    if messages[-1]["role"] != "user":
        detail = "messages: the last turn must be the user's, to be answered, or the assistant's, to be judged"
        return _error(422, detail, param="messages")
    sampling = Sampling(
        n=request.n or 1,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        max_tokens=request.max_completion_tokens or request.max_tokens or chat.max_tokens,
        stop=tuple(request.stop or ()),
    )
    reply = await chat.answer(messages, sampling, request.seed)
    if reply.status is not Status.OK:
        detail = f"{reply.status.value}: {reply.detail}"
        return _error(reply.status.http_status, detail, code=reply.status.value)
    return JSONResponse(_chat_completion(reply))


def _unsupported(request: ChatRequest, max_tokens: int) -> JSONResponse | None:
    """Return the error response to a request that asks for what a chat answer does not have."""
    if request.stream:
        return _error(422, "stream: answers are not streamed; leave it out", param="stream")
    if request.logprobs:
        detail = "logprobs: only critiques have them, in conversations that end with the assistant's turn"
        return _error(422, detail, param="logprobs")
    for name, value in (request.model_extra or {}).items():
        if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
            return _error(422, f"{name}: not supported; leave it out", param=name)
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := getattr(request, name)) is not None and value > max_tokens:
            detail = f"{name}: {value}; this service allows {max_tokens} (serving.limits.max_chat_tokens)"
            return _error(422, detail, param=name)
    return None


def _chat_completion(reply: ChatReply) -> dict[str, Any]:
    choices = [_choice(i, answer.text, answer.finish, None) for i, answer in enumerate(reply.answers)]
    usage = _usage(reply.num_prompt_tokens, sum(answer.num_tokens for answer in reply.answers))
    return _envelope(uuid.uuid4().hex, reply.model_version, choices, usage)


# -- OpenAI's objects ----------------------------------------------------------------------------------------------


def _choice(index: int, text: str, finish: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": logprobs}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _envelope(identity: str, model: str, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{identity[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage,
    }


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "vlgenrm"}


def _refusal(refusal: HTTPException, code: str | None = None) -> JSONResponse:
    body = openai_error(refusal.status_code, str(refusal.detail), code=code)
    return JSONResponse(body, refusal.status_code, headers=dict(refusal.headers or {}))


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    if code is not None:
        headers[REASON_HEADER] = code
    return JSONResponse(openai_error(status, message, param=param, code=code), status, headers=headers)
