"""LLaMA-Factory's PPO (`reward_model_type: api`, `reward_model: .../v1/score/evaluation`).

It sends whole transcripts as decoded text, never an image: the judge is asked without one. It looks at no HTTP status
but reads `scores` from whatever comes; the error body of an item without a reward has no such key, so the trainer stops
with a KeyError and trains on nothing made up. It neither tries again nor can mask a sample.
"""

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import last_answer, last_question
from vlgenrm_ray.judge.wire import ScoreItem
from vlgenrm_ray.serving.gateways.scoring import item, judge, rewards
from vlgenrm_ray.serving.score import Score


class Evaluation(BaseModel):
    """A batch of transcripts."""

    model: str = ""
    """Says nothing: LLaMA-Factory always writes "model"."""
    messages: list[str]


class Scores(BaseModel):
    """One score per transcript."""

    scores: list[float]


def router(score: Score) -> APIRouter:
    """`POST /v1/score/evaluation`."""
    routes = APIRouter()

    @routes.post("/v1/score/evaluation")
    async def evaluation(batch: Evaluation) -> Scores:
        items = [_item(i, text) for i, text in enumerate(batch.messages)]
        return Scores(scores=rewards(await judge(score, items)))

    return routes


def _item(number: int, text: str) -> ScoreItem:
    try:
        return item(f"messages[{number}]", question=last_question(text), response=last_answer(text))
    except InputError as error:
        raise HTTPException(422, f"messages[{number}]: {error}") from error
