"""OpenRLHF (`--reward.remote_url`), OpenRLHF-M and lmm-r1 (`--remote_rm_url`): `POST /get_reward`.

OpenRLHF sends decoded text and no image; image and question come as JSON in the label, see `judge.label`. OpenRLHF-M
and lmm-r1 send the conversation, images included, as JSON text in `prompts`. An item without a reward makes the whole
answer an HTTP error (422 or 503), unless the operator names a substitute (`?failed_reward=`). All three trainers try
five times; then OpenRLHF has no reward for the sample and its step fails, the other two raise. None of them can mask a
sample.
"""

import json
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.chat_templates import (
    answer_after_prompt,
    answer_after_question,
    last_question,
    split_transcript,
)
from vlgenrm_ray.judge.conversation import message_images, message_text, refers_to_image
from vlgenrm_ray.judge.wire import InvalidItem, ScoreItem
from vlgenrm_ray.serving.gateways.scoring import (
    MAX_ROWS,
    Score,
    build_item,
    build_items,
    parse_label,
    require_rewards,
    row_validator,
    score_items,
)

_Text = Annotated[str | SkipJsonSchema[InvalidItem], row_validator(str)]


class GetRewardRequest(BaseModel):
    """Lists of equal length; `prompts` and `labels` may be left out."""

    query: list[_Text] = Field(max_length=MAX_ROWS)
    """Prompt and response, decoded with special tokens."""
    prompts: list[_Text] = Field(default=[], max_length=MAX_ROWS)
    labels: list[Any] = Field(default=[], max_length=MAX_ROWS)


def router(score: Score) -> APIRouter:
    """Serve `POST /get_reward`."""
    routes = APIRouter()

    @routes.post("/get_reward")
    async def get_reward(request: GetRewardRequest) -> dict[str, Any]:
        for name, values in (("prompts", request.prompts), ("labels", request.labels)):
            if values and len(values) != len(request.query):
                raise HTTPException(422, f"{name}: {len(values)} values for {len(request.query)} queries")
        prompts: list[_Text] = request.prompts or [""] * len(request.query)
        labels = request.labels or [None] * len(request.query)
        items = await build_items(_build_item, zip(request.query, prompts, labels, strict=True))
        replies = await score_items(score, items)
        rewards = require_rewards(replies)
        logs = {
            "verdict_mass": [reply.verdict_mass for reply in replies],
            "num_critiques": [len(reply.critiques) for reply in replies],
        }
        # OpenRLHF-M turns every value into a tensor, which fails on a nested object.
        if any(_parse_conversation(prompt) for prompt in prompts if isinstance(prompt, str)):
            return {"rewards": rewards, **logs}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    return routes


def _build_item(number: int, query: str, prompt: str, value: Any) -> ScoreItem:
    label = parse_label(f"labels[{number}]", value)
    messages = _parse_conversation(prompt)
    try:
        question, response = _split(query, prompt, messages)
        fields: dict[str, Any] = {"question": label.question or question, "images": list(label.images)}
        if messages and label.question is None:
            fields = {"messages": messages, "images": list(label.images)}
        elif not label.images:
            # The label replaces the words of the prompt, not its images.
            fields |= {
                "images": message_images(messages or []),
                "image_expected": refers_to_image(messages or prompt or question),
            }
    except InputError as error:
        remedy = "" if prompt else "; send `prompts` as well"
        raise HTTPException(422, f"query[{number}]: {error}{remedy}") from error
    return build_item(f"item {number}", response=response, reference=label.reference, **fields)


def _split(query: str, prompt: str, messages: list[Any] | None) -> tuple[str, str]:
    """Return question and answer. What the policy wrote is never searched for turns."""
    if messages:
        users = [message for message in messages if message.get("role") == "user"]
        question = message_text(users[-1]) if users else ""
        return question, answer_after_question(query, question, len(users))
    if prompt:
        return last_question(prompt), answer_after_prompt(query, prompt)
    return split_transcript(query)


def _parse_conversation(prompt: str) -> list[Any] | None:
    """Return the messages that a prompt encodes as JSON, or None if it is plain text."""
    if not prompt.lstrip().startswith("["):
        return None
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError):
        return None
    if isinstance(messages, list) and all(isinstance(message, dict) and "role" in message for message in messages):
        return messages
    return None
