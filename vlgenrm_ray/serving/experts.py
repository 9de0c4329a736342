"""`POST /v1/evidence`: the experts' detections in an image, and their verdicts on the claims of responses.

`ExpertService` is the ingress side: it resolves the image, bounds the number of requests and their time, and turns
every failure into a status. `ExpertWorker` runs `experts` in a process of its own, so that they never delay the judge.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.experts.pipeline import ExpertPipeline, ExpertReport
from vlgenrm_ray.judge.wire import MAX_TEXT, Status, status_of_reason
from vlgenrm_ray.records import Box, ClaimKind, Finding, Truth
from vlgenrm_ray.serving.config import ServedExpertsConfig
from vlgenrm_ray.serving.images import ImageStore, StoredImage
from vlgenrm_ray.serving.metrics import ServiceMetrics

_log = logging.getLogger("vlgenrm.serving")
_MAX_RESPONSES = 16


class _EvidenceModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvidenceRequest(_EvidenceModel):
    """One image, and responses that make claims about it."""

    image: str = Field(max_length=64 * 1024 * 1024)
    """An image reference as in `ScoreItem`."""
    responses: list[Annotated[str, Field(max_length=MAX_TEXT)]] = Field(min_length=1, max_length=_MAX_RESPONSES)
    question: str = Field(default="", max_length=MAX_TEXT)
    """Question that the responses answer, if any: "A dog." claims no dog if the question is what is missing."""
    deadline_s: float | None = Field(default=None, gt=0, le=3600)
    """Seconds from arrival; at most the service's `experts.deadline_s`, which is also the default."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_several_images(cls, body: Any) -> Any:
        if isinstance(body, dict) and ("images" in body or isinstance(body.get("image"), list)):
            raise ValueError("evidence is of one image; send one request per image, as `image`")
        return body


class WireBox(_EvidenceModel):
    """A detection in pixels of the upright image, origin top left."""

    label: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float


class WireClaim(_EvidenceModel):
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
    """Detections that the verdict is based on."""


class WireDetection(_EvidenceModel):
    """A detected object, independent of any claim."""

    box: WireBox
    attribute: str
    """For example "red"; "" if undecided."""
    attribute_score: float


class EvidenceResponse(_EvidenceModel):
    """The experts' report. Unless `status` is `ok`, it contains only the reason."""

    status: Status
    detail: str = ""
    width: int = 0
    height: int = 0
    """Size of the upright image in pixels."""
    sightings: list[WireDetection] = Field(default_factory=list)
    """Every detected object."""
    claims: list[list[WireClaim]] = Field(default_factory=list)
    """For each response its claims, in its order; [] if it makes none that the vocabulary knows."""
    total_s: float = 0.0
    """Seconds from arrival to reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceJob:
    """One request as the worker receives it."""

    image: StoredImage
    responses: tuple[str, ...]
    deadline_s: float
    """Seconds left."""
    question: str = ""


Examine = Callable[[EvidenceJob], Awaitable[EvidenceResponse]]


class ExpertService:
    """Front end of the experts' worker. It limits, times and counts the evidence requests."""

    def __init__(
        self, config: ServedExpertsConfig, store: ImageStore, examine: Examine, metrics: ServiceMetrics
    ) -> None:
        """Create the front end. `examine` runs a job on the worker."""
        self._config = config
        self._store = store
        self._examine = examine
        self._metrics = metrics
        self._num_running = 0

    async def examine(self, request: EvidenceRequest) -> EvidenceResponse:
        """Return the experts' report, or a status that states why there is none. Never raises for a request."""
        begin = time.monotonic()
        reply = await self._reply(request)
        total_s = time.monotonic() - begin
        self._metrics.record_evidence(reply.status, total_s)
        return reply.model_copy(update={"total_s": total_s})

    async def _reply(self, request: EvidenceRequest) -> EvidenceResponse:
        if self._num_running >= self._config.max_queue:
            return _failure(Status.OVERLOADED, "the experts are busy; ask again later")
        deadline_s = min(request.deadline_s or self._config.deadline_s, self._config.deadline_s)
        deadline = asyncio.get_running_loop().time() + deadline_s
        self._num_running += 1
        try:
            async with asyncio.timeout_at(deadline):
                async with self._store.hold([request.image], deadline) as (image,):
                    job = EvidenceJob(
                        image=image,
                        responses=tuple(request.responses),
                        question=request.question,
                        deadline_s=deadline_s,
                    )
                    return await self._examine(job)
        except ImageError as error:
            return _image_failure(error)
        except TimeoutError:
            return _failure(Status.TIMEOUT, "the experts were not done by the deadline")
        # Broken or lost experts are no server error: the judge serves without them.
        except Exception as error:
            _log.warning("the experts failed: %s", type(error).__name__)
            return _failure(Status.INTERNAL, "the experts failed; ask again later")
        finally:
            self._num_running -= 1


class ExpertWorker:
    """Runs the experts, one job at a time. Deployed in a process of its own."""

    def __init__(
        self, config: ServedExpertsConfig, limits: ImageLimits, pipeline: ExpertPipeline | None = None
    ) -> None:
        """Load the experts unless `pipeline` is given. Raise InputError if a model cannot be read."""
        self._pipeline = pipeline or ExpertPipeline.build(config)
        self._limits = limits
        # A single thread is the queue. A running job ends between two of its texts or experts.
        self._thread = ThreadPoolExecutor(1, "experts")

    async def examine(self, job: EvidenceJob) -> EvidenceResponse:
        """Return the experts' report on one image.

        The work ends at the job's deadline, or when this call is cancelled because its client has gone.
        """
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()
        try:
            return await loop.run_in_executor(self._thread, self._run, job, time.monotonic(), cancelled)
        finally:
            cancelled.set()

    def _run(self, job: EvidenceJob, submitted: float, cancelled: threading.Event) -> EvidenceResponse:
        def check_time() -> None:
            if cancelled.is_set() or time.monotonic() - submitted > job.deadline_s:
                raise TimeoutError

        try:
            check_time()
            image = images.decode(job.image.data, self._limits)
            questions = [job.question] * len(job.responses)
            return _build_response(self._pipeline.report(image, job.responses, questions, check_time))
        except TimeoutError:
            return _failure(Status.TIMEOUT, "the experts were not done by the deadline")
        except ImageError as error:
            return _image_failure(error)
        # An expert may raise anything on one image; the other requests are not affected.
        except Exception as error:
            _log.exception("the experts failed")
            return _failure(Status.INTERNAL, type(error).__name__)


def _failure(status: Status, detail: str) -> EvidenceResponse:
    return EvidenceResponse(status=status, detail=detail)


def _image_failure(error: ImageError) -> EvidenceResponse:
    return _failure(status_of_reason(error.reason), error.detail)


def _build_response(report: ExpertReport) -> EvidenceResponse:
    detections = [
        WireDetection(box=_wire_box(d.box), attribute=d.attribute, attribute_score=d.attribute_score)
        for d in report.detections
    ]
    return EvidenceResponse(
        status=Status.OK,
        width=report.width,
        height=report.height,
        sightings=detections,
        claims=[[_wire_claim(finding) for finding in findings] for findings in report.findings],
    )


def _wire_claim(finding: Finding) -> WireClaim:
    return WireClaim(
        text=finding.claim.text,
        start=finding.claim.start,
        end=finding.claim.end,
        kind=finding.claim.kind,
        truth=finding.truth,
        score=finding.score,
        expert=finding.expert,
        boxes=[_wire_box(box) for box in finding.boxes],
    )


def _wire_box(box: Box) -> WireBox:
    return WireBox(label=box.label, score=box.score, x0=box.x0, y0=box.y0, x1=box.x1, y1=box.y1)
