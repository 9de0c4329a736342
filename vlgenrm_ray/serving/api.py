"""The HTTP face of a `Service`: routes, and how errors read. No Ray in here."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from vlgenrm_ray import __version__
from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.errors import DropReason, EngineLostError, InputError
from vlgenrm_ray.judge.wire import (
    CompareRequest,
    CompareResponse,
    ImageResponse,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
)
from vlgenrm_ray.serving import gateways, playground
from vlgenrm_ray.serving.canary import Canary, Finding
from vlgenrm_ray.serving.experts import Evidence, EvidenceRequest, EvidenceResponse
from vlgenrm_ray.serving.gateways import unirl
from vlgenrm_ray.serving.limits import Guard
from vlgenrm_ray.serving.score import OverloadedError
from vlgenrm_ray.serving.service import Service

if TYPE_CHECKING:
    from pydantic import BaseModel as Model

Exchange = Callable[[str], Awaitable[Finding]]
"""Takes a model folder into service, or not. Raises InputError; EngineLostError where the trial came to no end."""


class ModelRequest(BaseModel):
    """`POST /v1/model`."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=4096)
    """Model folder, on a file system that the engines' nodes see; same architecture and tokenizer as now."""


class ModelResponse(BaseModel):
    """Which version serves now."""

    version: str
    margin: float | None = None
    """What it showed at the canary."""
    change: float | None = None


class Health(BaseModel):
    """`GET /health`."""

    status: str
    rewards: dict[str, list[str]]
    """Name of each reward -> the state of what computes it."""


def build(
    service: Service,
    *,
    ready: Callable[[], bool],
    exchange: Exchange,
    canary: Canary | None = None,
    evidence: Evidence | None = None,
) -> FastAPI:
    """The application of a service; without `evidence`, of one that has no experts."""
    api = FastAPI(title="VL-GenRM", summary="Rewards with reasons, for responses about images.", version=__version__)
    config = service.config
    api.add_middleware(Guard, tokens=config.tokens, max_bytes=int(config.limits.max_body_mib * 2**20))
    api.add_exception_handler(OverloadedError, _overloaded)
    api.add_exception_handler(RequestValidationError, _invalid)

    @api.post("/v1/score", response_model=ScoreResponse)
    async def score(request: ScoreRequest) -> Response:
        """Judge a batch: one reply per item, in order. An item without a reward has a status that says why."""
        return _json(await service.score(request))

    @api.post("/v1/compare", response_model=CompareResponse)
    async def compare(request: CompareRequest) -> Response:
        """Which of two responses is better, and by how much."""
        return _json(await service.compare(request))

    @api.post("/v1/rank", response_model=RankResponse)
    async def rank(request: RankRequest) -> Response:
        """Best-of-N: responses from best to worst."""
        return _json(await service.rank(request))

    @api.post("/v1/evidence", response_model=EvidenceResponse)
    async def examine(request: EvidenceRequest) -> Response:
        """What detector and matcher see, and what they make of each claim of the responses. 404 without experts."""
        if evidence is None:
            return _refused(404, "this service has no experts; its configuration names none under serving.experts")
        return _json(await evidence.examine(request))

    @api.post("/v1/images", response_model=ImageResponse, openapi_extra=_BINARY)
    async def add_image(request: Request) -> Response:
        """Keep an image (the encoded bytes are the body), to be named `sha256:...` in requests."""
        data = await request.body()
        try:
            await asyncio.to_thread(images.decode, data, config.images, "body")
            return _json(ImageResponse(sha256=service.images.add(data).sha256))
        except ImageError as error:
            too_large = error.reason is DropReason.IMAGE_TOO_LARGE
            return _refused(413 if too_large else 422, error.detail)

    @api.get("/v1/model")
    async def model() -> ModelResponse:
        """Which version serves."""
        return ModelResponse(version=service.model.version)

    @api.post("/v1/model", response_model=ModelResponse)
    async def load(request: ModelRequest) -> Response:
        """Take another version into service, if it passes the canary. For operators."""
        try:
            finding = await exchange(request.model)
        except InputError as error:
            return _refused(422, f"model: {error}")
        except EngineLostError as error:
            detail = f"model: {error}; version {service.model.version} stays; ask again"
            return JSONResponse({"detail": detail}, 503, {"Retry-After": str(config.limits.retry_after_s)})
        if finding.problem:
            return _refused(409, f"model: refused, version {service.model.version} stays: {finding.problem}")
        return _json(ModelResponse(version=service.model.version, margin=finding.margin, change=finding.change))

    @api.get("/health")
    async def health() -> Health:
        """Whether the service answers at all; and, as UniRL's client asks, which rewards it gives."""
        return Health(status="ok", rewards={unirl.REWARD: ["ready" if ready() else "starting"]})

    @api.get("/ready")
    async def is_ready() -> Response:
        """Whether it judges: true once a real image was scored, and as long as engines are there."""
        body = {"ready": ready(), "version": service.model.version}
        return JSONResponse(body, 200 if body["ready"] else 503, {} if body["ready"] else {"Retry-After": "1"})

    @api.get("/metrics")
    async def metrics() -> Response:
        """Counters, for Prometheus."""
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    api.include_router(playground.router(config, canary or Canary(config.canary, config.images), evidence is not None))
    for router in gateways.ROUTERS:
        api.include_router(router(service.score))
    return api


_BINARY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _json(reply: "Model") -> Response:
    """Written as it is: FastAPI would check our own reply once more."""
    return Response(reply.model_dump_json(), media_type="application/json")


def _refused(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


def _overloaded(request: Request, error: Exception) -> Response:
    assert isinstance(error, OverloadedError)
    after = {"Retry-After": str(error.retry_after_s)}
    return JSONResponse({"detail": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE, after)


def _invalid(request: Request, error: Exception) -> Response:
    """The first mistake by its field's name; not the value, which may be a large image."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return _refused(422, f"{where}: {first['msg'].removeprefix('Value error, ')}")
