"""LLaMA-Factory's PPO (`reward_model_type: api`, `reward_model: .../v1/score/evaluation`).

The trainer sends whole transcripts as decoded text and never an image, so the judge sees none. It ignores the HTTP
status and reads `scores` from any body. The error body of an item without a reward has no such key, so the trainer
stops with a KeyError instead of training on an invented number. It neither retries nor can mask a sample.
"""

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import last_answer, last_question
from vlgenrm_ray.judge.wire import ScoreItem
from vlgenrm_ray.serving.gateways.scoring import Score, build_item, require_rewards, score_items


class TranscriptsRequest(BaseModel):
    """A batch of transcripts."""

    model: str = ""
    """Ignored: LLaMA-Factory always sends "model"."""
    messages: list[str]


class TranscriptScores(BaseModel):
    """One score per transcript."""

    scores: list[float]


def router(score: Score) -> APIRouter:
    """Serve `POST /v1/score/evaluation`."""
    routes = APIRouter()

    @routes.post("/v1/score/evaluation")
    async def evaluation(batch: TranscriptsRequest) -> TranscriptScores:
        items = [_build_item(i, text) for i, text in enumerate(batch.messages)]
        return TranscriptScores(scores=require_rewards(await score_items(score, items)))

    return routes


def _build_item(number: int, text: str) -> ScoreItem:
    name = f"messages[{number}]"
    try:
        return build_item(name, question=last_question(text), response=last_answer(text))
    except InputError as error:
        raise HTTPException(422, f"{name}: {error}") from error
