"""Steps that gateways share: foreign fields -> items, items -> replies, missing rewards -> HTTP errors.

An item without a reward is never answered with a number. 422: another attempt would fail in the same way (bad or
missing image, empty question, unreadable verdict). 503 with `Retry-After`: a later attempt may succeed (full queue,
deadline, lost engine), see `Status.http_status`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import HTTPException

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import to_openai_messages
from vlgenrm_ray.judge.label import Label, read_label
from vlgenrm_ray.judge.wire import (
    MAX_ITEMS,
    InvalidItem,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    validate_item,
)
from vlgenrm_ray.serving.limits import RETRY_AFTER_S

Score = Callable[[ScoreRequest], Awaitable[ScoreResponse]]
"""Scores a request of at most `MAX_ITEMS` items: `Service.score`.

It never raises for an item: one that could not be scored has a status and no reward. It raises OverloadedError if the
queue has no room for any item; gateways let that pass, and the service answers 503 with `Retry-After`.
"""


def build_item(name: str, **fields: Any) -> ScoreItem:
    """Build an item from foreign fields.

    Args:
        name: Field of the foreign request, for messages.
        **fields: Fields of `ScoreItem`. `messages` may have any form that `to_openai_messages` reads.

    Raises:
        HTTPException: 422, naming the foreign field, if the values make no valid item.
    """
    try:
        if fields.get("messages") is not None:
            fields["messages"] = to_openai_messages(fields["messages"], convert_image)
        fields["images"] = [convert_image(image) for image in fields.get("images", ())]
    except InputError as error:
        raise HTTPException(422, f"{name}: {error}") from error
    item = validate_item(fields)
    if isinstance(item, InvalidItem):
        raise HTTPException(422, f"{name}: {item.detail}")
    return item


def parse_label(name: str, value: Any) -> Label:
    """Read a label (see `judge.label`). Raise HTTPException 422, naming the field, if that is impossible."""
    try:
        return read_label(value)
    except InputError as error:
        raise HTTPException(422, f"{name}: {error}") from error


def convert_image(value: Any) -> str:
    """Convert an image of a trainer's request to the form of `ScoreItem`. Raise InputError for unknown forms."""
    if isinstance(value, Mapping) and not value.get("bytes"):
        value = value.get("path")
    if not isinstance(value, str):
        raise InputError("images: must be text: a data URL, base64, sha256:..., or a path the operator allows")
    # `data:image;base64,` names no format, which `ScoreItem` requires; its base64 alone is accepted.
    return value.partition(",")[2] if value.startswith("data:image;base64,") else value


async def score_items(score: Score, items: Sequence[ScoreItem]) -> list[ScoreReply]:
    """Score any number of items. Returns one reply per item, in order."""
    replies: list[ScoreReply] = []
    for start in range(0, len(items), MAX_ITEMS):
        replies += (await score(ScoreRequest(items=list(items[start : start + MAX_ITEMS])))).items
    return replies


def require_rewards(replies: Sequence[ScoreReply]) -> list[float]:
    """Return the reward of every reply. Raise HTTPException if any is missing: 503 if all may come later, else 422."""
    failures = [(i, reply) for i, reply in enumerate(replies) if reply.reward is None]
    if not failures:
        return [reply.reward for reply in replies if reply.reward is not None]
    permanent = [(i, reply) for i, reply in failures if reply.status.http_status != 503]
    first, reply = (permanent or failures)[0]
    detail = f"{len(failures)} of {len(replies)} items have no reward; the first is {first}: {failure_reason(reply)}"
    # 503 only if all may come later: a retry cannot get past a permanent failure.
    if permanent:
        raise HTTPException(422, detail)
    raise HTTPException(503, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def failure_reason(reply: ScoreReply) -> str:
    """Return why a reply has no reward, in words."""
    return f"{reply.status.value}: {reply.detail}" if reply.detail else reply.status.value
