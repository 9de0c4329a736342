"""slime (`--rm-type remote_rm --rm-url .../rm`) and miles: `POST /rm`, one sample, and the reply IS the reward.

No image is sent; image and question come as JSON in `label`, see `judge/label.py`. With `?as_dict=true` the reply is
an object, for `--reward-key reward`. A sample without a reward is an HTTP error (422 or 503): slime tries ten times
and then raises, which ends the rollout; miles raises at once. Neither can mask a sample over this protocol; the
adapter (`vlgenrm_ray.adapters.slime`) sends images as well.
"""

from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from vlgenrm_ray.judge.conversation import last_question
from vlgenrm_ray.serving.gateways.scoring import item, judge, label, rewards
from vlgenrm_ray.serving.score import Score


class Sample(BaseModel):
    """One sample."""

    prompt: str | list[dict[str, Any]]
    """Text in the chat template, or messages."""
    response: str
    label: Any = None


def router(score: Score) -> APIRouter:
    """`POST /rm`."""
    routes = APIRouter()

    @routes.post("/rm", response_model=None)
    async def rm(sample: Sample, as_dict: bool = False) -> float | dict[str, Any]:
        told = label("label", sample.label)
        if told.question is not None or isinstance(sample.prompt, str):
            question = told.question or last_question(str(sample.prompt))
            fields: dict[str, Any] = {"question": question}
        elif sample.prompt:
            fields = {"messages": sample.prompt}
        else:
            raise HTTPException(422, "prompt: empty")
        asking = item("sample", response=sample.response, images=told.images, reference=told.reference, **fields)
        replies = await judge(score, [asking])
        (reward,) = rewards(replies)
        if not as_dict:
            return reward
        return {
            "reward": reward,
            "verdict_mass": replies[0].verdict_mass,
            "num_critiques": len(replies[0].critiques),
            "model_version": replies[0].model_version,
        }

    return routes
