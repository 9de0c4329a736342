"""OpenRLHF (`--reward.remote_url`), OpenRLHF-M and lmm-r1 (`--remote_rm_url`): `POST /get_reward`.

OpenRLHF sends decoded text and no image; image and question come as JSON in the label, see `judge/label.py`.
OpenRLHF-M and lmm-r1 send the conversation, images included, as text that is JSON, in `prompts`.
An item without a reward makes the whole answer an HTTP error (422 or 503). All three try five times; then OpenRLHF has
no reward for the sample and its step fails, the other two raise. None of them can mask a sample.
"""

import json
from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import last_answer, last_question
from vlgenrm_ray.judge.wire import ScoreItem
from vlgenrm_ray.serving.gateways.scoring import item, judge, label, rewards
from vlgenrm_ray.serving.score import Score


class GetReward(BaseModel):
    """Lists of one length; `prompts` and `labels` may be left out."""

    query: list[str]
    """Prompt and response, decoded with special tokens."""
    prompts: list[str] = []
    labels: list[Any] = []


def router(score: Score) -> APIRouter:
    """`POST /get_reward`."""
    routes = APIRouter()

    @routes.post("/get_reward")
    async def get_reward(asks: GetReward) -> dict[str, Any]:
        for name, values in (("prompts", asks.prompts), ("labels", asks.labels)):
            if values and len(values) != len(asks.query):
                raise HTTPException(422, f"{name}: {len(values)} values for {len(asks.query)} queries")
        prompts = asks.prompts or [""] * len(asks.query)
        labels = asks.labels or [None] * len(asks.query)
        items = [_item(i, *row) for i, row in enumerate(zip(asks.query, prompts, labels, strict=True))]
        replies = await judge(score, items)
        values = rewards(replies)
        logs = {
            "verdict_mass": [reply.verdict_mass for reply in replies],
            "num_critiques": [len(reply.critiques) for reply in replies],
        }
        # OpenRLHF-M turns every value into a tensor, which a nested object would break.
        if any(_conversation(prompt) for prompt in prompts):
            return {"rewards": values, **logs}
        return {"rewards": values, "scores": values, "extra_logs": logs}

    return routes


def _item(number: int, query: str, prompt: str, value: Any) -> ScoreItem:
    told = label(f"labels[{number}]", value)
    messages = _conversation(prompt)
    try:
        response = last_answer(query, None if messages else prompt)
    except InputError as error:
        raise HTTPException(422, f"query[{number}]: {error}") from error
    if messages and told.question is None:
        fields: dict[str, Any] = {"messages": messages, "images": list(told.images)}
    else:
        fields = {"question": told.question or last_question(prompt or query), "images": list(told.images)}
    return item(f"item {number}", response=response, reference=told.reference, **fields)


def _conversation(prompt: str) -> list[Any] | None:
    """The messages that a prompt is the text of; None where it is plain text."""
    if not prompt.lstrip().startswith("["):
        return None
    try:
        found = json.loads(prompt)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(m, dict) and "role" in m for m in found) else None
