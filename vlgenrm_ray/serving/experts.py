"""`POST /v1/evidence`: what the experts see in an image, and what they make of each claim of some responses.

Beside the judge, never in its way: a deployment of its own, few requests at a time, and a status instead of an error.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge.wire import MAX_TEXT, Status
from vlgenrm_ray.records import ClaimKind, Truth
from vlgenrm_ray.serving.config import ServedExperts
from vlgenrm_ray.serving.images import ImageStore, Stored
from vlgenrm_ray.serving.metrics import Metrics

_log = logging.getLogger("vlgenrm.serving")
_MAX_RESPONSES = 16


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvidenceRequest(_Strict):
    """One image, and responses that make claims about it."""

    image: str = Field(max_length=64 * 1024 * 1024)
    """As in `ScoreItem`."""
    responses: list[Annotated[str, Field(max_length=MAX_TEXT)]] = Field(min_length=1, max_length=_MAX_RESPONSES)
    deadline_s: float | None = Field(default=None, gt=0, le=3600)

    @model_validator(mode="before")
    @classmethod
    def _one_image(cls, given: Any) -> Any:
        if isinstance(given, dict) and ("images" in given or isinstance(given.get("image"), list)):
            raise ValueError("evidence is of one image; ask for each by itself, as `image`")
        return given


class WireBox(_Strict):
    """A detection, in pixels of the image as it is shown upright; origin top left."""

    label: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float


class WireClaim(_Strict):
    """A claim of a response with the experts' verdict."""

    text: str
    start: int
    """Span [start, end) in the response, in characters."""
    end: int
    kind: ClaimKind
    truth: Truth
    score: float
    """Confidence of the experts that decided."""
    expert: str
    boxes: list[WireBox]
    """What the verdict rests on."""


class WireSighting(_Strict):
    """What is seen whatever anybody claims."""

    box: WireBox
    attribute: str
    """Such as "red"; "" if undecided."""
    attribute_score: float


class EvidenceResponse(_Strict):
    """What the experts say. Unless `status` is `ok` there is nothing in it but the reason."""

    status: Status
    detail: str = ""
    width: int = 0
    height: int = 0
    """Of the image, upright, in pixels."""
    sightings: list[WireSighting] = Field(default_factory=list)
    claims: list[list[WireClaim]] = Field(default_factory=list)
    """For each response its claims, in its order; [] where it makes none that the vocabulary knows."""
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What goes to the experts."""

    image: Stored
    responses: tuple[str, ...]
    deadline_s: float
    """Seconds from now on."""


Ask = Callable[[Look], Awaitable[EvidenceResponse]]


class Evidence:
    """The service's side: the image, a bounded number at a time, the deadline, counting."""

    def __init__(self, config: ServedExperts, images: ImageStore, ask: Ask, metrics: Metrics) -> None:
        self._config = config
        self._images = images
        self._ask = ask
        self._metrics = metrics
        self._num_under_way = 0

    async def examine(self, request: EvidenceRequest) -> EvidenceResponse:
        """What the experts say, or a status that says why they say nothing."""
        begin = time.monotonic()
        reply = await self._reply(request)
        total = time.monotonic() - begin
        self._metrics.examined(reply.status, total)
        return reply.model_copy(update={"total_s": total})

    async def _reply(self, request: EvidenceRequest) -> EvidenceResponse:
        if self._num_under_way >= self._config.max_queue:
            return unseen(Status.OVERLOADED, "the experts are busy; ask again later")
        deadline_s = min(request.deadline_s or self._config.deadline_s, self._config.deadline_s)
        self._num_under_way += 1
        try:
            async with asyncio.timeout(deadline_s):
                image = await asyncio.to_thread(self._images.resolve, request.image)
                return await self._ask(Look(image=image, responses=tuple(request.responses), deadline_s=deadline_s))
        except ImageError as error:
            return refused(error)
        except TimeoutError:
            return unseen(Status.TIMEOUT, "the experts were not done by the deadline")
        # Experts that are broken or gone are no reason for an error of the service, which judges without them.
        except Exception as error:
            _log.warning("the experts failed: %s", type(error).__name__)
            return unseen(Status.INTERNAL, "the experts failed; ask again later")
        finally:
            self._num_under_way -= 1


def unseen(status: Status, detail: str) -> EvidenceResponse:
    """The reply where there is no testimony."""
    return EvidenceResponse(status=status, detail=detail)


def refused(error: ImageError) -> EvidenceResponse:
    """The reply to an image that cannot be used."""
    too_large = error.reason is DropReason.IMAGE_TOO_LARGE
    return unseen(Status.TOO_LARGE if too_large else Status.BAD_IMAGE, error.detail)
