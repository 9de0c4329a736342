"""The HTTP API: routes in front of a `Service`, and the form of its errors. No Ray here."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import Route

from vlgenrm_ray import __version__
from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.engines.model_folder import JudgeKind
from vlgenrm_ray.errors import DropReason, EngineLostError, InputError
from vlgenrm_ray.judge.wire import (
    CompareRequest,
    CompareResponse,
    ImageResponse,
    InvalidItem,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
    Status,
)
from vlgenrm_ray.serving import gateways, playground
from vlgenrm_ray.serving.auth import AuthMiddleware
from vlgenrm_ray.serving.canary import Canary, CanaryResult
from vlgenrm_ray.serving.chat import ChatService
from vlgenrm_ray.serving.experts import EvidenceRequest, EvidenceResponse, ExpertService
from vlgenrm_ray.serving.gateways import openai_chat, unirl
from vlgenrm_ray.serving.gateways.scoring import gateway_scope
from vlgenrm_ray.serving.images import DecodedImages, DecodeTimeoutError, StoredImage
from vlgenrm_ray.serving.limits import (
    OPENAI_PATHS,
    REASON_HEADER,
    RETRY_AFTER_S,
    BodyLimitMiddleware,
    BodyRoom,
    OverloadedError,
    openai_error,
)
from vlgenrm_ray.serving.refusals import API, RefusalMiddleware, describe_refusals
from vlgenrm_ray.serving.service import Service

_MAX_UPLOAD_PIXELS = 16 * 1024 * 1024
"""Pixels of uploaded images that are decoded at a time, to check them: about 50 MB."""
_MAX_FIELD = 200
"""Most characters of the name of an invalid field, which may be the client's own."""

SwapModel = Callable[[str], Awaitable[CanaryResult]]
"""Makes the model in a folder the active one if it passes the canary: `ModelSwap.swap`."""


class ModelRequest(BaseModel):
    """Body of `POST /v1/model`."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=4096)
    """Model folder that all nodes of the engines see; same architecture and tokenizer as the active model."""


class ModelResponse(BaseModel):
    """The active model."""

    version: str
    kind: JudgeKind = "pointwise"
    """`pointwise`: it rewards one response. `pairwise`: it compares two (`/v1/compare`, `/v1/rank`)."""
    margin: float | None = None
    """Canary's margin between better and worse responses; only in the reply to a swap."""
    change: float | None = None
    """Canary's change of the reward by a blank image; only in the reply to a swap."""


class HealthResponse(BaseModel):
    """Reply to `GET /health`."""

    status: str
    rewards: dict[str, list[str]]
    """Name of each served reward, with the states of its engines."""


def build_api(
    service: Service,
    *,
    ready: Callable[[], bool],
    swap_model: SwapModel,
    canary: Canary | None = None,
    experts: ExpertService | None = None,
) -> FastAPI:
    """Build the application of a service.

    Args:
        service: Scores the requests.
        ready: Returns whether the service is ready to score.
        swap_model: Handles `POST /v1/model`.
        canary: Example of the playground. None: built from the configuration.
        experts: Handles `POST /v1/evidence`. None: the service has no experts, and answers 404.

    Raises:
        ConfigError: A gateway of `serving.gateways` cannot be imported.
    """
    api = FastAPI(title="VL-GenRM", summary="Rewards with reasons, for responses about images.", version=__version__)
    config = service.config
    # The middleware added last runs first: no body is read before the caller is known.
    limits = config.limits
    room = BodyRoom(int(limits.bodies_mib * 2**20), limits.deadline_s)
    api.add_middleware(BodyLimitMiddleware, max_bytes=int(limits.max_body_mib * 2**20), room=room)
    api.add_middleware(AuthMiddleware, tokens=config.tokens)
    # However many clients upload at a time, their images are decoded within this bound.
    uploads = DecodedImages(config.images, max_pixels=_MAX_UPLOAD_PIXELS, max_idle_pixels=0)
    routes: list[tuple[Route, str]] = []
    api.add_middleware(RefusalMiddleware, metrics=service.metrics, routes=routes)
    api.add_exception_handler(OverloadedError, _overloaded)
    api.add_exception_handler(RequestValidationError, _invalid)

    @api.post("/v1/score", response_model=ScoreResponse)
    async def score(request: ScoreRequest) -> Response:
        """Score a batch: one reply per item, in order. The status of an item states why it has no reward.

        A request whose items are all malformed is refused as a whole.
        """
        malformed = [i for i in request.items if isinstance(i, InvalidItem) and i.status is Status.BAD_REQUEST]
        if malformed and len(malformed) == len(request.items):
            return _error(422, f"items.0{'.' if malformed[0].field else ': '}{malformed[0].detail}")
        return _json(await service.score(request))

    @api.post("/v1/compare", response_model=CompareResponse)
    async def compare(request: CompareRequest) -> Response:
        """Compare two responses: by their rewards, or by a pairwise judge in both orders."""
        return _json(await service.compare(request))

    @api.post("/v1/rank", response_model=RankResponse)
    async def rank(request: RankRequest) -> Response:
        """Rank responses from best to worst (best-of-N): by their rewards, or by a tournament of a pairwise judge."""
        return _json(await service.rank(request))

    @api.post(
        "/v1/evidence", response_model=EvidenceResponse, responses={404: {"description": "The service has no experts."}}
    )
    async def evidence(request: EvidenceRequest) -> Response:
        """Detect objects in an image and check each claim of the responses. 404 without experts."""
        if experts is None:
            return _error(404, "this service has no experts; its configuration names none under serving.experts")
        return _json(await experts.examine(request))

    @api.post("/v1/images", response_model=ImageResponse, openapi_extra=_BINARY_BODY)
    async def add_image(request: Request) -> Response:
        """Store an image (the encoded bytes are the body). Later requests name it `sha256:...`."""
        data = await request.body()
        try:
            stored = StoredImage(hashlib.sha256(data).hexdigest(), data)
            async with uploads.hold([stored], asyncio.get_running_loop().time() + config.limits.deadline_s):
                return _json(ImageResponse(sha256=service.images.add(data).sha256))
        except DecodeTimeoutError as error:
            return _unavailable(f"body: {error}", Status.OVERLOADED.value)
        except ImageError as error:
            too_large = error.reason is DropReason.IMAGE_TOO_LARGE
            return _error(413 if too_large else 422, error.detail)

    @api.get("/v1/model")
    async def model() -> ModelResponse:
        """Return the active model's version."""
        return ModelResponse(version=service.model.name, kind=config.judge.kind or "pointwise")

    @api.post(
        "/v1/model",
        response_model=ModelResponse,
        responses={
            403: {"description": "The service was started without an operator's token."},
            409: {"description": "The model did not pass the canary; the version stays."},
        },
    )
    async def swap(request: ModelRequest) -> Response:
        """Make another model the active one if it passes the canary. Needs the operator's token."""
        try:
            result = await swap_model(request.model)
        except InputError as error:
            return _error(422, f"model: {error}")
        except EngineLostError as error:
            return _unavailable(f"model: {error}; version {service.model.name} stays; ask again", "engine_lost")
        if result.problem:
            return _error(409, f"model: refused, version {service.model.name} stays: {result.problem}")
        kind = config.judge.kind or "pointwise"
        return _json(ModelResponse(version=service.model.name, kind=kind, margin=result.margin, change=result.change))

    @api.get("/health")
    async def health() -> HealthResponse:
        """Return status `ok` and the name and state of the served reward, which UniRL's client checks first."""
        return HealthResponse(status="ok", rewards={unirl.REWARD: ["ready" if ready() else "starting"]})

    @api.get("/ready", responses={503: {"description": "Not ready: no engine has scored an image yet."}})
    async def is_ready() -> Response:
        """Return 200 if an engine is up and has scored an image, else 503."""
        body = {"ready": ready(), "version": service.model.name}
        return JSONResponse(body, 200 if body["ready"] else 503, {} if body["ready"] else {"Retry-After": "1"})

    @api.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    api.include_router(playground.router(config, canary or Canary(config.canary, config.images), experts is not None))
    routes += [(route, API) for route in api.routes if isinstance(route, Route)]
    routers = {"openai_chat": openai_chat.router(service.score, ChatService(service), lambda: service.model.name)}
    routers |= {name: build(service.score) for name, build in gateways.load(config.gateways).items()}
    for name, router in routers.items():
        num_routes = len(api.routes)
        scope = gateway_scope(name, config.failed_reward, service.metrics)
        api.include_router(router, dependencies=[Depends(scope)])
        routes += [(route, name) for route in api.routes[num_routes:] if isinstance(route, Route)]
    api.openapi = partial(_describe, api)  # type: ignore[method-assign]
    return api


def _describe(api: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with the refusals that FastAPI does not know of."""
    if api.openapi_schema is None:
        describe_refusals(FastAPI.openapi(api))
    assert api.openapi_schema is not None, "FastAPI keeps what it has described"
    return api.openapi_schema


_BINARY_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _json(reply: BaseModel) -> Response:
    """Serialize a reply directly; FastAPI would validate it once more."""
    return Response(reply.model_dump_json(), media_type="application/json")


def _error(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


def _unavailable(detail: str, reason: str) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S), REASON_HEADER: reason}
    return JSONResponse({"detail": detail}, HTTPStatus.SERVICE_UNAVAILABLE, headers)


def _overloaded(request: Request, error: Exception) -> Response:
    assert isinstance(error, OverloadedError)
    return _unavailable(str(error), Status.OVERLOADED.value)


def _invalid(request: Request, error: Exception) -> Response:
    """Name the first invalid field. Its value is left out: it may be a large image."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")[:_MAX_FIELD] or "body"
    detail = f"{field}: {first['msg'].removeprefix('Value error, ')}"
    if request.url.path.endswith(OPENAI_PATHS):
        return JSONResponse(openai_error(422, detail, param=field), 422)
    return _error(422, detail)
