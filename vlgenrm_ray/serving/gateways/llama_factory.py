"""LLaMA-Factory's PPO (`reward_model_type: api`, `reward_model: .../v1/score/evaluation`).

The trainer sends whole transcripts as decoded text and never an image: they are refused (`no_image`) unless the service
allows blind judging (`serving.blind_judging`). Question and answer are told apart by the marks of the chat template
(`judge.chat_templates`). The first user turn is the question and everything after the first assistant mark the answer,
so that a policy cannot write a question of its own. Two parameters of the address change this:

- `?turns=last`: the prompts have several user turns, and the last one is the question. Only for policies that are known
  to write no turns themselves.
- `?answer_mark=TEXT`: the text (URL-encoded) with which answers begin, for templates without known marks.

The trainer ignores the HTTP status and reads `scores` from any body. The error body of an item without a reward has no
such key, so the trainer stops with a KeyError instead of training on an invented number, unless the operator names a
substitute (`?failed_reward=`). It neither retries nor can mask a sample.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.chat_templates import num_user_turns, split_transcript
from vlgenrm_ray.judge.wire import InvalidItem, ScoreItem
from vlgenrm_ray.serving.gateways.scoring import (
    MAX_ROWS,
    MAX_TRANSCRIPT,
    Score,
    build_item,
    build_items,
    require_rewards,
    row_validator,
    score_items,
)

_log = logging.getLogger("vlgenrm.serving")


class TranscriptsRequest(BaseModel):
    """A batch of transcripts."""

    model: str = ""
    """Ignored: LLaMA-Factory always sends "model"."""
    messages: list[Annotated[str | SkipJsonSchema[InvalidItem], row_validator(str)]] = Field(max_length=MAX_ROWS)


class TranscriptScores(BaseModel):
    """One score per transcript."""

    scores: list[float]


def router(score: Score) -> APIRouter:
    """Serve `POST /v1/score/evaluation`."""
    routes = APIRouter()
    warned = False

    @routes.post("/v1/score/evaluation")
    async def evaluation(
        batch: TranscriptsRequest, turns: Literal["first", "last"] = "first", answer_mark: str = ""
    ) -> TranscriptScores:
        nonlocal warned
        texts = [text for text in batch.messages if isinstance(text, str) and len(text) <= MAX_TRANSCRIPT]
        # In a thread: finding turns in large texts would block the event loop.
        if not warned and turns == "first" and await asyncio.to_thread(_has_several_turns, texts):
            warned = True
            _log.warning(
                "a transcript of /v1/score/evaluation has several user turns: its first one is the question; if the "
                "data set has several turns, add ?turns=last to the address"
            )
        num_turns = 1 if turns == "first" else None
        items = await build_items(_build_item, ((text, num_turns, answer_mark) for text in batch.messages))
        return TranscriptScores(scores=require_rewards(await score_items(score, items)))

    return routes


def _has_several_turns(texts: Sequence[str]) -> bool:
    return any(num_user_turns(text) > 1 for text in texts)


def _build_item(number: int, text: str, num_turns: int | None, answer_mark: str) -> ScoreItem:
    name = f"messages[{number}]"
    try:
        question, response = split_transcript(text, num_turns=num_turns, answer_mark=answer_mark)
    except InputError as error:
        remedy = "name the text with which answers begin, ?answer_mark=... in the address"
        raise HTTPException(422, f"{name}: {error}; {remedy}") from error
    return build_item(name, question=question, response=response)
