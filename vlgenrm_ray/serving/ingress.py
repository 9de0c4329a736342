"""The Ray Serve application: one ingress that speaks HTTP, the engines behind it, and optionally the experts.

The ingress holds what must exist once: cache, images, the queue's bound, the active model. A single engine runs in the
ingress process (`in_process`), several run in processes of their own (`replicated`). Every call carries the active
model, so an engine that starts late loads it with its first call. Start reading at `application`.
"""

import asyncio
import logging
import socket
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import httpx

from vlgenrm_ray.judge.serve_handle import RawResponse
from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest, Status
from vlgenrm_ray.serving import replicated
from vlgenrm_ray.serving.canary import Canary
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine import Engine
from vlgenrm_ray.serving.engine_worker import EngineWorker
from vlgenrm_ray.serving.experts import EvidenceJob, EvidenceResponse, ExpertService, ExpertWorker
from vlgenrm_ray.serving.in_process import InProcessEngine
from vlgenrm_ray.serving.metrics import ServiceMetrics
from vlgenrm_ray.serving.model_swap import ModelSwap
from vlgenrm_ray.serving.model_version import ActiveModelRegistry, configured_model
from vlgenrm_ray.serving.replicated import ReplicatedEngine
from vlgenrm_ray.serving.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_log = logging.getLogger("vlgenrm.serving")
_PROBE_INTERVAL_S = 1.0
_PROBE_DEADLINE_S = 60.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's `mallopt` (malloc.h)."""
_KEEP_ALIVE_S = 65
"""Longer than clients keep idle connections, so that none sends into a connection that is being closed."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Address on which the ingress listens, without Ray Serve's proxies."""

    host: str
    port: int


class Ingress:
    """The ingress deployment: the HTTP API in front of a `Service`."""

    # Ray Serve awaits the constructor.
    async def __init__(  # type: ignore[misc]
        self,
        config: ServingConfig,
        address: ListenAddress | None,
        engines: "DeploymentHandle | None",
        experts: "DeploymentHandle | None",
        name: str = "",
    ) -> None:
        """Create the service and start to probe the engine.

        Args:
            config: The service's configuration.
            address: Address to listen on. None: requests come through Ray Serve's proxies.
            engines: Handle of the engine deployment. None: one engine in this process.
            experts: Handle of the experts' deployment. None: no evidence.
            name: Name of the service, see `ActiveModelRegistry`.
        """
        return_freed_memory()
        self._config = config
        self._registry = ActiveModelRegistry(config, name)
        engine: Engine = InProcessEngine(self._start_worker) if engines is None else ReplicatedEngine(engines)
        metrics = ServiceMetrics()
        self.service = Service(config, engine, metrics, await self._registry.get())
        self._model_swap = ModelSwap(self.service, self._registry.put)
        self._canary = Canary(config.canary, config.images)
        self._experts = None
        if config.experts is not None and experts is not None:
            examine = partial(_examine, experts)
            self._experts = ExpertService(config.experts, self.service.images, examine, metrics)
        metrics.add_gauge("vlgenrm_queue_items", "Items under way.", lambda: self.service.num_running)
        metrics.add_gauge("vlgenrm_cache_bytes", "Bytes of cached results.", lambda: self.service.cache.num_bytes)
        metrics.add_gauge("vlgenrm_image_bytes", "Bytes of stored images.", lambda: self.service.images.num_bytes)
        metrics.add_gauge("vlgenrm_ready", "Whether the service is ready to score.", lambda: float(self._ready))
        self._probe_task = asyncio.get_running_loop().create_task(self._probe())
        self._server_task = None if address is None else await listen(self._api, address)

    @property
    def _ready(self) -> bool:
        return self.service.dispatcher.engine_ready

    @cached_property
    def _api(self) -> "FastAPI":
        from vlgenrm_ray.serving.api import build_api

        return build_api(
            self.service,
            ready=lambda: self._ready,
            swap_model=self._model_swap.swap,
            canary=self._canary,
            experts=self._experts,
        )

    def __serve_build_asgi_app__(self) -> Any:
        return self._api

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self._api, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://ingress", verify=False)

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> RawResponse:
        """Answer `POST path` by Ray Serve handle, with the same limits and tokens as over HTTP.

        Called by `judge.serve_handle`.
        """
        response = await self._http.post(path, headers=headers, content=body)
        return response.status_code, dict(response.headers), response.content

    async def _start_worker(self) -> EngineWorker:
        return await EngineWorker.start(self._config, await self._registry.get())

    async def _probe(self) -> None:
        """Score the canary until that succeeds, whenever no engine is known to be up."""
        dispatcher = self.service.dispatcher
        other = self._canary.worse[0] if self._config.judge.is_pairwise else None
        item = ScoreItem(question=self._canary.question, response=self._canary.better[0], other=other)
        while True:
            dispatcher.engine_ready = dispatcher.engine_ready and dispatcher.engine.alive
            if not dispatcher.engine_ready:
                # A fresh seed for each attempt, so that the cache never answers.
                seed = int(asyncio.get_running_loop().time() * 1000) % 2**32
                image = self.service.images.add(self._canary.data)
                probe = item.model_copy(update={"image": f"sha256:{image.sha256}", "num_critiques": 1, "seed": seed})
                try:
                    request = ScoreRequest(items=[probe], deadline_s=_PROBE_DEADLINE_S)
                    (reply,) = (await self.service.score(request)).items
                    dispatcher.engine_ready = reply.status in (Status.OK, Status.UNREADABLE_VERDICT)
                except Exception as error:
                    _log.warning("not ready: %s", error)
            await asyncio.sleep(_PROBE_INTERVAL_S)


def return_freed_memory() -> None:
    """Have glibc return the memory of large objects (images, bodies) to the system as soon as they are freed.

    Its threshold for that otherwise grows with the first of them, and every decoding thread keeps an arena of its own.
    Other C libraries are left as they are.
    """
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 24)
        library.mallopt(_M_ARENA_MAX, 2)


async def listen(api: "FastAPI", address: ListenAddress) -> "asyncio.Task[None]":
    """Serve `api` on an address of this node until the returned task is cancelled.

    On one machine Ray Serve's proxy would only be an additional hop.

    Raises:
        OSError: The address is not available.
    """
    import uvicorn

    from vlgenrm_ray.serving.http_protocol import BoundedHttpProtocol

    server = uvicorn.Server(
        uvicorn.Config(
            api,
            http=BoundedHttpProtocol,
            lifespan="off",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
    )
    # Bound here, because uvicorn would exit the process on failure.
    listener = socket.create_server((address.host, address.port), backlog=2048)
    return asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))


def application(config: ServingConfig, address: ListenAddress | None = None, name: str = "") -> "Application":
    """Return the Ray Serve application, for `serve.run` or `serve deploy`.

    Args:
        config: The service's configuration.
        address: Address on which the ingress itself listens. None: requests come through Ray Serve's proxies.
        name: Name that distinguishes services of equal configuration on one cluster.

    Raises:
        InputError: The model folder cannot be used.
        ConfigError: A gateway of `config.gateways` cannot be imported.
    """
    from ray import serve

    from vlgenrm_ray.serving import gateways

    configured_model(config)
    gateways.load(config.gateways)
    in_process = config.replicas == 1
    resources = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus} if in_process else {"num_cpus": 0}
    ingress = serve.deployment(
        name="ingress",
        num_replicas=1,
        ray_actor_options=resources,
        # The service bounds the queue itself, and answers `overloaded` beyond the bound.
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=10.0,
    )(serve.ingress()(Ingress))
    engines = None if in_process else replicated.deployment(config, ActiveModelRegistry(config, name).get)
    experts = None if config.experts is None else _experts_deployment(config)
    return ingress.bind(config, address, engines, experts, name)


def _experts_deployment(config: ServingConfig) -> "Application":
    from ray import serve

    assert config.experts is not None
    experts = serve.deployment(
        name="experts",
        num_replicas=1,
        # No CPU reserved: the experts must fit on the node no matter how many engines run there.
        ray_actor_options={"num_cpus": 0, "num_gpus": config.experts.num_gpus},
        max_ongoing_requests=config.experts.max_queue,
        graceful_shutdown_timeout_s=10.0,
    )(ExpertWorker)
    return experts.bind(config.experts, config.images)


async def _examine(experts: "DeploymentHandle", job: EvidenceJob) -> EvidenceResponse:
    response = experts.examine.remote(job)
    try:
        reply: EvidenceResponse = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    return reply
