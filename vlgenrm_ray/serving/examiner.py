"""The experts' side of `POST /v1/evidence`: looks -> testimonies as they go over the wire. No Ray in here."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.experts.pipeline import ExpertPipeline, ExpertReport
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.records import Box
from vlgenrm_ray.serving.experts import (
    EvidenceResponse,
    Look,
    WireBox,
    WireClaim,
    WireSighting,
    refused,
    unseen,
)

_log = logging.getLogger("vlgenrm.serving")


class Examiner:
    """Takes one look at a time; one that nobody can be waiting for any more is not begun."""

    def __init__(self, pipeline: ExpertPipeline, limits: ImageLimits) -> None:
        self._pipeline = pipeline
        self._limits = limits
        # One thread is the queue: a look that was cancelled cannot be stopped, and the next waits for its end.
        self._thread = ThreadPoolExecutor(1, "experts")

    async def look(self, look: Look) -> EvidenceResponse:
        """What the experts say of one image."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._look, look, time.monotonic())

    def _look(self, look: Look, since: float) -> EvidenceResponse:
        if time.monotonic() - since > look.deadline_s:
            return unseen(Status.TIMEOUT, "the experts were not done by the deadline")
        try:
            image = images.decode(look.image.data, self._limits)
            return _written(self._pipeline.report(image, look.responses))
        except ImageError as error:
            return refused(error)
        # Whatever an engine raises on one image harms that request alone.
        except Exception as error:
            _log.exception("the experts failed")
            return unseen(Status.INTERNAL, type(error).__name__)


def _written(told: ExpertReport) -> EvidenceResponse:
    return EvidenceResponse(
        status=Status.OK,
        width=told.width,
        height=told.height,
        sightings=[
            WireSighting(box=_box(s.box), attribute=s.attribute, attribute_score=s.attribute_score)
            for s in told.detections
        ],
        claims=[
            [
                WireClaim(
                    text=finding.claim.text,
                    start=finding.claim.start,
                    end=finding.claim.end,
                    kind=finding.claim.kind,
                    truth=finding.truth,
                    score=finding.score,
                    expert=finding.expert,
                    boxes=[_box(box) for box in finding.boxes],
                )
                for finding in findings
            ]
            for findings in told.findings
        ],
    )


def _box(box: Box) -> WireBox:
    return WireBox(label=box.label, score=box.score, x0=box.x0, y0=box.y0, x1=box.x1, y1=box.y1)
