"""Steps that gateways share: foreign fields -> items, items -> replies, missing rewards -> HTTP errors.

A row that makes no valid item, and an item without a reward, is never answered with an invented number. 422: another
attempt would fail in the same way (bad or missing image, empty question, unreadable verdict). 503 with `Retry-After`: a
later attempt may succeed (full queue, deadline, lost engine), see `Status.http_status`.

Trainers that cannot mask a sample lose a step or die on such an error. For them the operator may name a substitute
reward: `serving.failed_reward`, or `?failed_reward=` in the address that one trainer uses. Each use of it is counted
and logged, and none happens while more than half of the latest samples have no reward: that is a 503.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import HTTPException, Query

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import to_openai_messages
from vlgenrm_ray.judge.failed_rewards import FailedRewards, failure_reason
from vlgenrm_ray.judge.label import Label, read_label
from vlgenrm_ray.judge.wire import (
    MAX_ITEMS,
    MAX_TEXT,
    InvalidItem,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    Status,
    validate_item,
)
from vlgenrm_ray.serving.limits import REASON_HEADER, RETRY_AFTER_S
from vlgenrm_ray.serving.metrics import ServiceMetrics

MAX_TRANSCRIPT = 8 * MAX_TEXT
"""Most characters of a text in which turns are searched for."""
_log = logging.getLogger("vlgenrm.serving")

Score = Callable[[ScoreRequest], Awaitable[ScoreResponse]]
"""Scores a request of at most `MAX_ITEMS` items: `Service.score`.

It never raises for an item: one that could not be scored has a status and no reward. It raises OverloadedError if the
queue has no room for any item; gateways let that pass, and the service answers 503 with `Retry-After`.
"""


class ItemRefusalError(HTTPException):
    """A foreign row that makes no valid item: 422, or the status of its own item in a batch."""

    def __init__(self, detail: str, status: Status = Status.BAD_REQUEST) -> None:
        super().__init__(422, detail, headers={REASON_HEADER: status.value})
        self.status = status


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """Name, substitute reward and counts of the gateway that serves the current request."""

    name: str
    substitute: float | None = None
    """Reward of samples without one. None: such a sample is an HTTP error."""
    failed_rewards: FailedRewards = field(default_factory=FailedRewards)
    metrics: ServiceMetrics | None = None


_context: ContextVar[GatewayContext | None] = ContextVar("gateway", default=None)


def gateway_scope(name: str, default: float | None, metrics: ServiceMetrics) -> Callable[..., Awaitable[None]]:
    """Return a FastAPI dependency that sets the context of a gateway's requests.

    Args:
        name: Name of the gateway, for counters.
        default: The service's substitute reward.
        metrics: Counts substituted rewards.
    """
    failed_rewards = FailedRewards()

    async def scope(
        failed_reward: Annotated[float | None, Query(description="Reward of samples without one.")] = None,
    ) -> None:
        if failed_reward is not None and not math.isfinite(failed_reward):
            raise HTTPException(422, "failed_reward: must be a finite number")
        substitute = default if failed_reward is None else failed_reward
        _context.set(GatewayContext(name, substitute, failed_rewards, metrics))

    return scope


def build_item(name: str, **fields: Any) -> ScoreItem:
    """Build an item from foreign fields.

    Args:
        name: Field of the foreign request, for messages.
        **fields: Fields of `ScoreItem`. `messages` may have any form that `to_openai_messages` reads.

    Raises:
        ItemRefusalError: 422, naming the foreign field, if the values make no valid item.
    """
    try:
        if fields.get("messages") is not None:
            fields["messages"] = to_openai_messages(fields["messages"], convert_image)
        fields["images"] = [convert_image(image) for image in fields.get("images", ())]
    except InputError as error:
        raise ItemRefusalError(f"{name}: {error}") from error
    item = validate_item(fields)
    if isinstance(item, InvalidItem):
        raise ItemRefusalError(f"{name}: {item.detail}", item.status)
    return item


async def build_items(build: Callable[..., ScoreItem], rows: Iterable[Sequence[Any]]) -> list[ScoreItem | InvalidItem]:
    """Build the item of every row of a batch, in a thread: finding turns in large texts would block the event loop.

    Args:
        build: Builds the item of one row, called with the row's index and fields. It raises HTTPException if the row
            makes no valid item.
        rows: Fields of each row.

    Returns:
        One entry per row. A row that makes no valid item costs only its own reward.
    """
    return await asyncio.to_thread(_build_items, build, list(rows))


def _build_items(build: Callable[..., ScoreItem], rows: Sequence[Sequence[Any]]) -> list[ScoreItem | InvalidItem]:
    items: list[ScoreItem | InvalidItem] = []
    for index, row in enumerate(rows):
        try:
            for text in row:
                if isinstance(text, str) and len(text) > MAX_TRANSCRIPT:
                    raise ItemRefusalError(
                        f"row {index}: {len(text)} characters; limit {MAX_TRANSCRIPT}", Status.TOO_LARGE
                    )
            items.append(build(index, *row))
        except HTTPException as refusal:
            status = refusal.status if isinstance(refusal, ItemRefusalError) else Status.BAD_REQUEST
            items.append(InvalidItem(status=status, field="", problem=str(refusal.detail)))
    return items


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


async def score_items(score: Score, items: Sequence[ScoreItem | InvalidItem]) -> list[ScoreReply]:
    """Score any number of items. Returns one reply per item, in order."""
    replies: list[ScoreReply] = []
    for start in range(0, len(items), MAX_ITEMS):
        replies += (await score(ScoreRequest(items=list(items[start : start + MAX_ITEMS])))).items
    return replies


def require_rewards(replies: Sequence[ScoreReply]) -> list[float]:
    """Return the reward of every reply, the operator's substitute for those without one.

    Raises:
        HTTPException: A reward is missing and there is no substitute, see `refuse_missing`; or 503 if more than half
            of the gateway's latest samples have no reward.
    """
    # None in an application that mounts a gateway's router by itself.
    context = _context.get() or GatewayContext("gateway")
    context.failed_rewards.record(replies)
    if context.substitute is None:
        refuse_missing(replies)
    elif failures := [reply for reply in replies if reply.reward is None]:
        if outage := context.failed_rewards.outage():
            detail = f"{outage}, and none is substituted; the last said {failure_reason(failures[-1])}"
            raise _unavailable(detail, "outage")
        _record_substitutes(context, failures)
    rewards = (context.substitute if reply.reward is None else reply.reward for reply in replies)
    return [reward for reward in rewards if reward is not None]


def _record_substitutes(context: GatewayContext, failures: Sequence[ScoreReply]) -> None:
    for reply in failures:
        if context.metrics is not None:
            context.metrics.record_substitute(context.name, reply.status)
    _log.warning(
        "%s: %d samples get the reward %g instead of none (%d without one so far); the first: %s",
        context.name,
        len(failures),
        context.substitute,
        context.failed_rewards.num_failed,
        failure_reason(failures[0])[:300],
    )


def refuse_missing(replies: Sequence[ScoreReply]) -> None:
    """Raise HTTPException if a reward is missing: 503 if all of the missing ones may come later, else 422."""
    failures = [(i, reply) for i, reply in enumerate(replies) if reply.reward is None]
    if not failures:
        return
    permanent = [(i, reply) for i, reply in failures if reply.status.http_status != 503]
    first, reply = (permanent or failures)[0]
    detail = f"{len(failures)} of {len(replies)} items have no reward; the first is {first}: {failure_reason(reply)}"
    # 503 only if all may come later: a retry cannot get past a permanent failure.
    if permanent:
        raise HTTPException(422, detail, headers={REASON_HEADER: reply.status.value})
    raise _unavailable(detail, reply.status.value)


def _unavailable(detail: str, reason: str) -> HTTPException:
    return HTTPException(503, detail, headers={"Retry-After": str(RETRY_AFTER_S), REASON_HEADER: reason})
