"""Steps that gateways share: foreign fields -> items, items -> replies, missing rewards -> HTTP errors.

A row that makes no valid item, and an item without a reward, is never answered with an invented number. 422: another
attempt would fail in the same way (bad or missing image, empty question, unreadable verdict). 503 with `Retry-After`: a
later attempt may succeed (full queue, deadline, lost engine), see `Status.http_status`.

A sample without a reward ends in one of three ways, each of which is counted and logged:

- `require_rewards` refuses the request, for trainers that cannot mask a sample and lose a step or die on that.
- `require_rewards` gives the operator's substitute instead: `serving.failed_reward`, or `?failed_reward=` in the
  address that one trainer uses. Not while more than half of the latest samples have no reward: that is a 503.
- `record_masked`: the protocol has a form for such a sample, and the trainer masks it. Of the operator's choices only
  that in the address counts here (`requested_rewards`): the service's setting would replace a better answer.

A request for none of whose items the queue has room is 503 in any case: the sample is not at fault, and may be sent
again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import HTTPException, Query
from pydantic import TypeAdapter, ValidationError, WrapValidator

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
from vlgenrm_ray.serving.refusals import RecurrenceLog

MAX_ROWS = 1 << 14
"""Most rows of a trainer's batch; the validation of millions would hold the event loop."""
MAX_TRANSCRIPT = 8 * MAX_TEXT
"""Most characters of a text in which turns are searched for."""
_MAX_FIELD = 200
_MAX_REASON = 300
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
    default: float | None = None
    """The service's reward of samples without one. None: such a sample is an HTTP error."""
    requested: float | None = None
    """The same as the address of the request names it, which takes precedence."""
    failed_rewards: FailedRewards = field(default_factory=FailedRewards)
    """Samples of requests for which there was a substitute. Others fail one by one, and are often sent again."""
    recurrence_log: RecurrenceLog = field(default_factory=RecurrenceLog)
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
    recurrence_log = RecurrenceLog()

    async def scope(
        failed_reward: Annotated[
            float | None, Query(description="Reward in [0, 1] of samples without one.", ge=0.0, le=1.0)
        ] = None,
    ) -> None:
        _context.set(GatewayContext(name, default, failed_reward, failed_rewards, recurrence_log, metrics))

    return scope


def row_validator(kind: Any) -> WrapValidator:
    """Return a validator for a row or cell of a batch: an InvalidItem instead of a value that is no `kind`.

    Without it one null in a list would cost the whole batch its rewards:

        texts: list[Annotated[str | SkipJsonSchema[InvalidItem], row_validator(str)]]
    """
    adapter = TypeAdapter(kind)

    def validate(value: Any, _: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))[:_MAX_FIELD]
            return InvalidItem(status=Status.BAD_REQUEST, field=field, problem=first["msg"])

    return WrapValidator(validate)


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
    return [_build_row(build, index, row) for index, row in enumerate(rows)]


def _build_row(build: Callable[..., ScoreItem], index: int, row: Sequence[Any]) -> ScoreItem | InvalidItem:
    for cell in row:
        if isinstance(cell, InvalidItem):
            return cell.model_copy(update={"problem": f"row {index}: {cell.detail}", "field": ""})
        if isinstance(cell, str) and len(cell) > MAX_TRANSCRIPT:
            problem = f"row {index}: {len(cell)} characters; limit {MAX_TRANSCRIPT}"
            return InvalidItem(status=Status.TOO_LARGE, field="", problem=problem)
    try:
        return build(index, *row)
    except HTTPException as refusal:
        status = refusal.status if isinstance(refusal, ItemRefusalError) else Status.BAD_REQUEST
        return InvalidItem(status=status, field="", problem=str(refusal.detail))
    # An unexpected error of one row must not cost the other rows their rewards.
    except Exception as error:
        _log.exception("a row failed")
        return InvalidItem(status=Status.INTERNAL, field="", problem=f"row {index}: {type(error).__name__}")


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
    context = _current_context()
    substitute = context.default if context.requested is None else context.requested
    rewards, outage = _substitute(context, replies, substitute)
    if outage:
        last = [reply for reply in replies if reply.reward is None][-1]
        raise _unavailable(f"{outage}, and none is substituted; the last said {failure_reason(last)}", "outage")
    if substitute is None:
        refuse_missing(replies)
    return [reward for reward in rewards if reward is not None]


def requested_rewards(replies: Sequence[ScoreReply]) -> list[float | None]:
    """Return the reward of every reply, the substitute that the request's address names, or None.

    For protocols that have a form for samples without a reward. No substitute hides that more than half of the
    gateway's latest samples have no reward.
    """
    context = _current_context()
    return _substitute(context, replies, context.requested)[0]


def record_masked(reply: ScoreReply) -> None:
    """Count and log a sample without a reward that is answered in the protocol's own form."""
    context = _current_context()
    if context.metrics is not None:
        context.metrics.record_masked(context.name, reply.status)
    message = f"{context.name}: a sample has no reward, {_short_reason(reply)}"
    context.recurrence_log.warn(("masked", reply.status.value), message)


def _substitute(
    context: GatewayContext, replies: Sequence[ScoreReply], substitute: float | None
) -> tuple[list[float | None], str]:
    """Return the rewards with the substitute for missing ones; without it and an explanation during an outage."""
    rewards = [reply.reward for reply in replies]
    if substitute is None:
        return rewards, ""
    context.failed_rewards.record(replies)
    failures = [reply for reply in replies if reply.reward is None]
    if failures and (outage := context.failed_rewards.outage()):
        return rewards, outage
    for reply in failures:
        if context.metrics is not None:
            context.metrics.record_substitute(context.name, reply.status)
        message = f"{context.name}: a sample gets the reward {substitute:g} instead of none, {_short_reason(reply)}"
        context.recurrence_log.warn(("substitute", reply.status.value), message)
    return [substitute if reward is None else reward for reward in rewards], ""


def _current_context() -> GatewayContext:
    # None in an application that mounts a gateway's router by itself.
    return _context.get() or GatewayContext("gateway")


def _short_reason(reply: ScoreReply) -> str:
    return failure_reason(reply)[:_MAX_REASON]


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
