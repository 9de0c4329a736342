"""What every gateway does: foreign fields -> items, items -> replies, and an item without a reward -> an HTTP error.

The errors: 422 for what will fail again however often it is asked (a bad image, a verdict nobody can read), 503 with
`Retry-After` for what may go better later (a full queue, a deadline, an engine that was lost). Never a number.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException
from pydantic import ValidationError

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import to_openai_messages
from vlgenrm_ray.judge.label import Label, read_label
from vlgenrm_ray.judge.wire import MAX_ITEMS, ScoreItem, ScoreReply, ScoreRequest, Status
from vlgenrm_ray.serving.score import Score

RETRY_AFTER_S = 1
_PASSING = (Status.OVERLOADED, Status.TIMEOUT, Status.INTERNAL)


def item(name: str, **fields: Any) -> ScoreItem:
    """An item; HTTP 422 that names the foreign field it came from where it is none."""
    try:
        if fields.get("messages") is not None:
            fields["messages"] = to_openai_messages(fields["messages"], picture)
        fields["images"] = [picture(image) for image in fields.get("images", ())]
        return ScoreItem.model_validate(fields)
    except InputError as error:
        raise HTTPException(422, f"{name}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise HTTPException(422, f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def label(name: str, value: Any) -> Label:
    """What a foreign label says; HTTP 422 that names it where it cannot be read."""
    try:
        return read_label(value)
    except InputError as error:
        raise HTTPException(422, f"{name}: {error}") from error


def picture(value: Any) -> str:
    """A foreign image as the wire takes it. Raises InputError unless it is a text."""
    if not isinstance(value, str):
        raise InputError("images: must be text: a data URL, base64, sha256:..., or a path the operator allows")
    # `data:image;base64,` names no format, which the wire insists on; base64 alone will do.
    return value.partition(",")[2] if value.startswith("data:image;base64,") else value


async def judge(score: Score, items: Sequence[ScoreItem]) -> list[ScoreReply]:
    """One reply per item, in order, of however many."""
    replies: list[ScoreReply] = []
    for start in range(0, len(items), MAX_ITEMS):
        replies += (await score(ScoreRequest(items=list(items[start : start + MAX_ITEMS])))).items
    return replies


def rewards(replies: Sequence[ScoreReply]) -> list[float]:
    """The reward of every reply; an HTTP error where one has none."""
    failed = [(i, reply) for i, reply in enumerate(replies) if reply.reward is None]
    if not failed:
        return [reply.reward for reply in replies if reply.reward is not None]
    first, reply = failed[0]
    told = f"{len(failed)} of {len(replies)} items have no reward; the first is {first}: {why(reply)}"
    if any(reply.status in _PASSING for _, reply in failed):
        raise HTTPException(503, told, headers={"Retry-After": str(RETRY_AFTER_S)})
    raise HTTPException(422, told)


def why(reply: ScoreReply) -> str:
    """Why a reply has no reward."""
    return f"{reply.status.value}: {reply.detail}" if reply.detail else reply.status.value
