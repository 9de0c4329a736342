"""slime (`--rm-type remote_rm --rm-url .../rm`) and miles: `POST /rm` takes one sample; the reply is the bare reward.

No image is sent; image and question come as JSON in `label`, see `judge.label`. With `?as_dict=true` the reply is an
object, for `--reward-key reward`. A sample without a reward is an HTTP error (422 or 503), unless the operator names a
substitute (`?failed_reward=`): slime tries ten times and then raises, which ends the rollout; miles raises at once.
Neither can mask a sample over this protocol. The adapter
(`vlgenrm_ray.adapters.slime`) sends images too.
"""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.chat_templates import last_question
from vlgenrm_ray.judge.conversation import message_images, refers_to_image
from vlgenrm_ray.judge.thinking import resume_thinking
from vlgenrm_ray.judge.wire import InvalidItem, ScoreItem
from vlgenrm_ray.serving.gateways.scoring import (
    Score,
    build_item,
    build_items,
    parse_label,
    require_rewards,
    row_validator,
    score_items,
)

_Prompt = str | list[dict[str, Any]]


class SlimeSample(BaseModel):
    """One sample."""

    prompt: Annotated[_Prompt | SkipJsonSchema[InvalidItem], row_validator(_Prompt)]
    """Text in the chat template, or messages."""
    response: Annotated[str | SkipJsonSchema[InvalidItem], row_validator(str)]
    label: Any = None


def router(score: Score) -> APIRouter:
    """Serve `POST /rm`."""
    routes = APIRouter()

    @routes.post("/rm", response_model=None)
    async def rm(sample: SlimeSample, as_dict: bool = False) -> float | dict[str, Any]:
        # Built as a batch of one, so that a malformed sample has a status, and a substitute if the operator names one.
        items = await build_items(_build_item, [(sample.prompt, sample.response, sample.label)])
        (reply,) = replies = await score_items(score, items)
        (reward,) = require_rewards(replies)
        if not as_dict:
            return reward
        return {
            "reward": reward,
            "verdict_mass": reply.verdict_mass,
            "num_critiques": len(reply.critiques),
            "model_version": reply.model_version,
        }

    return routes


def _build_item(number: int, prompt: _Prompt, response: str, value: Any) -> ScoreItem:
    label = parse_label("label", value)
    if not prompt and label.question is None:
        raise HTTPException(422, "prompt: empty")
    fields: dict[str, Any] = {"images": label.images}
    try:
        if label.question is None and not isinstance(prompt, str):
            fields["messages"] = prompt
        else:
            fields["question"] = label.question or last_question(str(prompt))
            fields["image_expected"] = refers_to_image(prompt)
            if not label.images and not isinstance(prompt, str):
                # The label replaces the words of the prompt, not its images.
                fields["images"] = message_images(prompt)
    except InputError as error:
        raise HTTPException(422, f"prompt: {error}") from error
    response = resume_thinking(response, prompt) if isinstance(prompt, str) else response
    return build_item("sample", response=response, reference=label.reference, **fields)
