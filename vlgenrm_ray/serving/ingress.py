"""The service on Ray Serve: one gate that speaks HTTP, and the engines that it asks.

The gate holds what must be one (cache, images, the queue's bound, which version serves); the engines do the work. A
lone engine is in the gate's process (`within.py`), several are in processes of their own (`apart.py`). Which version
serves is told to every engine with every call, so one that was started late or again catches up.
"""

import asyncio
import logging
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from vlgenrm_ray.experts.pipeline import ExpertPipeline
from vlgenrm_ray.judge.serve_handle import RawResponse
from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest, Status
from vlgenrm_ray.serving import engine_pool
from vlgenrm_ray.serving.canary import Canary, Finding
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.dispatch import Dispatcher
from vlgenrm_ray.serving.engine_pool import EnginesApart
from vlgenrm_ray.serving.engine_worker import first_model
from vlgenrm_ray.serving.examiner import Examiner
from vlgenrm_ray.serving.experts import Evidence, EvidenceResponse, Look
from vlgenrm_ray.serving.in_process import EngineWithin
from vlgenrm_ray.serving.listener import Address, listen
from vlgenrm_ray.serving.metrics import Metrics
from vlgenrm_ray.serving.model_swap import Handover
from vlgenrm_ray.serving.model_version import Standing
from vlgenrm_ray.serving.service import Service
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from vlgenrm_ray.serving.engine import Engine

_log = logging.getLogger("vlgenrm.serving")
_PROBE_S = 1.0


class Engines(Protocol):
    """What the gate asks."""

    @property
    def alive(self) -> bool:
        """Whether there is one to be asked, as far as is known."""
        ...

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        """See `Replica.judge`. Cancelled, it ends the work."""
        ...

    async def trial(self, wanted: Model) -> Finding:
        """See `Replica.trial`."""
        ...

    def is_loss(self, error: Exception) -> bool:
        """Whether an error of `judge` or `trial` means that the engine is gone, and another may be asked."""
        ...


class Experts:
    """A deployment: detector and matcher, in a process of their own, so that they never hold up an engine."""

    def __init__(self, config: ServingConfig) -> None:
        assert config.experts is not None
        self._examiner = Examiner(ExpertPipeline.build(config.experts), config.images)

    async def look(self, look: Look) -> EvidenceResponse:
        """See `Examiner.look`."""
        return await self._examiner.look(look)


class Gate:
    """The ingress deployment: HTTP in front of a `Service` whose tasks go to the engines."""

    # Ray Serve awaits it.
    async def __init__(  # type: ignore[misc]
        self,
        config: ServingConfig,
        address: Address | None,
        engines: "DeploymentHandle | None",
        experts: "DeploymentHandle | None",
        name: str = "",
    ) -> None:
        """`address`: where to listen, unless Ray Serve's proxies do. Without `engines`, one of its own. `name`: of the
        service, see `Standing`.
        """
        self._config = config
        self._standing = Standing(config, name)
        self._engines: Engines = EngineWithin(self._engine) if engines is None else EnginesApart(engines)
        self._ready = False
        metrics = Metrics()
        dispatcher = Dispatcher(self._judge, self._is_loss, metrics, max_chunk=config.limits.max_chunk)
        self.service = Service(config, dispatcher.ask, metrics, await self._standing.get())
        self._handover = Handover(self.service, self._engines.trial, self._standing.put, self._is_loss)
        self._canary = Canary(config.canary, config.images)
        self._evidence = None
        if config.experts is not None and experts is not None:
            self._evidence = Evidence(config.experts, self.service.images, partial(_look, experts), metrics)
        metrics.watch("vlgenrm_queue_items", "Items under way.", lambda: self.service.flights.num_under_way)
        metrics.watch("vlgenrm_cache_bytes", "Bytes of cached results.", lambda: self.service.cache.num_bytes)
        metrics.watch("vlgenrm_image_bytes", "Bytes of kept images.", lambda: self.service.images.num_bytes)
        metrics.watch("vlgenrm_ready", "Whether the service judges.", lambda: float(self._ready))
        self._prober = asyncio.get_running_loop().create_task(self._probe())
        self._listening = None if address is None else await listen(self._api, address)

    @cached_property
    def _api(self) -> "FastAPI":
        from vlgenrm_ray.serving import api

        return api.build(
            self.service,
            ready=lambda: self._ready,
            exchange=self._handover.to,
            canary=self._canary,
            evidence=self._evidence,
        )

    def __serve_build_asgi_app__(self) -> Any:
        return self._api

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        within = httpx.ASGITransport(self._api, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=within, base_url="http://gate", verify=False)

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> RawResponse:
        """What it says to `POST path`, for whoever has its handle (see `judge/handle.py`): limits and tokens alike."""
        response = await self._http.post(path, headers=headers, content=body)
        return response.status_code, dict(response.headers), response.content

    async def _engine(self) -> "Engine":
        # Not before it is needed: it imports vLLM.
        from vlgenrm_ray.serving.engine import Engine

        return await Engine.start(self._config, await self._standing.get())

    async def _judge(self, tasks: list[Task], model: Model) -> list[Outcome]:
        outcomes = await self._engines.judge(tasks, model)
        self._ready = True
        return outcomes

    def _is_loss(self, error: Exception) -> bool:
        if lost := self._engines.is_loss(error):
            self._ready = False
        return lost

    async def _probe(self) -> None:
        """Score the canary until that succeeds, whenever it is not known that an engine is there."""
        item = ScoreItem(question=self._canary.question, response=self._canary.better[0])
        image = self.service.images.add(self._canary.data)
        while True:
            self._ready = self._ready and self._engines.alive
            if not self._ready:
                # Never from the cache: the seed is of this try alone.
                seed = int(asyncio.get_running_loop().time() * 1000) % 2**32
                asked = item.model_copy(update={"image": f"sha256:{image.sha256}", "num_critiques": 1, "seed": seed})
                self.service.images.add(self._canary.data)
                try:
                    (reply,) = (await self.service.score(ScoreRequest(items=[asked], deadline_s=60.0))).items
                    self._ready = reply.status in (Status.OK, Status.UNREADABLE_VERDICT)
                except Exception as error:
                    _log.warning("not ready: %s", error)
            await asyncio.sleep(_PROBE_S)


def application(config: ServingConfig, address: Address | None = None, name: str = "") -> "Application":
    """The service, to be handed to `serve.run`, or returned by what `serve deploy` imports.

    `address`: where the gate itself listens; None leaves that to Ray Serve's proxies. `name`: tells apart services of
    one configuration on one cluster. Raises InputError for a model folder that cannot be used.
    """
    from ray import serve

    first_model(config)
    alone = config.replicas == 1
    gate = serve.deployment(
        name="gate",
        num_replicas=1,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus} if alone else {"num_cpus": 0},
        # The queue's bound is ours, and its answer is `overloaded`.
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=10.0,
    )(serve.ingress()(Gate))
    engines = None if alone else engine_pool.deployment(config, Standing(config, name).get)
    return gate.bind(config, address, engines, None if config.experts is None else _experts(config), name)


def _experts(config: ServingConfig) -> "Application":
    from ray import serve

    assert config.experts is not None
    made = serve.deployment(
        name="experts",
        num_replicas=1,
        # No CPU of their own: they must find room beside the engines, however many those are.
        ray_actor_options={"num_cpus": 0, "num_gpus": config.experts.num_gpus},
        max_ongoing_requests=config.experts.max_queue,
        graceful_shutdown_timeout_s=10.0,
    )(Experts)
    return made.bind(config)


async def _look(experts: "DeploymentHandle", look: Look) -> EvidenceResponse:
    response = experts.look.remote(look)
    try:
        found: EvidenceResponse = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    return found
