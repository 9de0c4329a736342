"""The service on Ray Serve: one gate that speaks HTTP, and engine replicas that it calls.

The gate holds what must be one (cache, images, the queue's bound, which version serves); the engines do the work. Which
version serves is told to every engine with every call, so a replica that was started late or again catches up.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.evidence.witness import Witness
from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest, Status
from vlgenrm_ray.serving.canary import Canary, Finding
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.dispatch import Dispatcher
from vlgenrm_ray.serving.evidence import Evidence, EvidenceResponse, Look
from vlgenrm_ray.serving.examiner import Examiner
from vlgenrm_ray.serving.metrics import Metrics
from vlgenrm_ray.serving.replica import Replica, first_model
from vlgenrm_ray.serving.service import Service
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_log = logging.getLogger("vlgenrm.serving")
_NAMESPACE = "vlgenrm"
_PROBE_S = 1.0
_TARGET_CALLS = 8.0
"""Calls under way per engine (of up to `Limits.max_chunk` items each) from which another engine is wanted."""


class Standing:
    """Which version serves, remembered while gates and engines come and go. A named actor."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def get(self) -> Model:
        """The version that serves."""
        return self._model

    def put(self, model: Model) -> None:
        """Another serves from now on."""
        self._model = model


class Engine:
    """A deployment: one vLLM engine with its judge."""

    # Ray Serve awaits it.
    async def __init__(self, config: ServingConfig) -> None:  # type: ignore[misc]
        from vlgenrm_ray.engines.vllm_async import AsyncVllmGenerator

        model = await _standing(config).get.remote()
        self._generator = AsyncVllmGenerator(config.engine.model_copy(update={"model": model.folder}))
        self._replica = Replica(config, self._generator, model)
        finding = await self._replica.examine()
        if finding.problem:
            _log.warning("version %s would not pass its own canary: %s", model.version, finding.problem)

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        """See `Replica.judge`."""
        return await self._replica.judge(tasks, wanted)

    async def trial(self, wanted: Model) -> Finding:
        """See `Replica.trial`. Raises InputError also where the present weights' folder is gone."""
        # Without it there would be no way back.
        await asyncio.to_thread(model_folder.check, Path(self._replica.model.folder))
        return await self._replica.trial(wanted)

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if not self._generator.is_alive():
            raise EngineLostError("vLLM's engine process is gone")


class Experts:
    """A deployment: detector and matcher, in a process of their own, so that they never hold up an engine."""

    def __init__(self, config: ServingConfig) -> None:
        assert config.experts is not None
        self._examiner = Examiner(Witness.build(config.experts), config.images)

    async def look(self, look: Look) -> EvidenceResponse:
        """See `Examiner.look`."""
        return await self._examiner.look(look)


class Gate:
    """The ingress deployment: HTTP in front of a `Service` whose tasks go to the engines."""

    async def __init__(  # type: ignore[misc]
        self, config: ServingConfig, engines: "DeploymentHandle", experts: "DeploymentHandle | None" = None
    ) -> None:
        self._standing = _standing(config)
        self._engines = engines
        self._exchanging = asyncio.Lock()
        self._ready = False
        metrics = Metrics()
        dispatcher = Dispatcher(self._call, self._is_loss, metrics, max_chunk=config.limits.max_chunk)
        self.service = Service(config, dispatcher.ask, metrics, await self._standing.get.remote())
        self._canary = Canary(config.canary, config.images)
        self._evidence = None
        if config.experts is not None and experts is not None:
            self._evidence = Evidence(config.experts, self.service.images, partial(_look, experts), metrics)
        metrics.watch("vlgenrm_queue_items", "Items under way.", lambda: self.service.flights.num_under_way)
        metrics.watch("vlgenrm_cache_bytes", "Bytes of cached results.", lambda: self.service.cache.num_bytes)
        metrics.watch("vlgenrm_image_bytes", "Bytes of kept images.", lambda: self.service.images.num_bytes)
        metrics.watch("vlgenrm_ready", "Whether the service judges.", lambda: float(self._ready))
        self._prober = asyncio.get_running_loop().create_task(self._probe())

    def __serve_build_asgi_app__(self) -> Any:
        from vlgenrm_ray.serving import api

        return api.build(
            self.service,
            ready=lambda: self._ready,
            exchange=self._exchange,
            canary=self._canary,
            evidence=self._evidence,
        )

    async def _call(self, tasks: list[Task], model: Model) -> list[Outcome]:
        response = self._engines.judge.remote(tasks, model)
        try:
            outcomes: list[Outcome] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        self._ready = True
        return outcomes

    def _is_loss(self, error: Exception) -> bool:
        from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
        from ray.serve.exceptions import ReplicaUnavailableError

        lost = (EngineLostError, RayActorError, WorkerCrashedError, ObjectLostError, ReplicaUnavailableError)
        if not isinstance(error, lost):
            return False
        self._ready = False
        return True

    async def _probe(self) -> None:
        """Score the canary until that succeeds, whenever it is not known that an engine is there."""
        item = ScoreItem(question=self._canary.question, response=self._canary.better[0])
        image = self.service.images.add(self._canary.data)
        while True:
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

    async def _exchange(self, name: str) -> Finding:
        """Try another version on one engine; where it passes, the others follow with their next call."""
        folder = Path(name).absolute()
        await asyncio.to_thread(model_folder.check, folder)
        version = await asyncio.to_thread(model_folder.version, folder)
        async with self._exchanging:
            now = self.service.model
            wanted = Model(number=now.number + 1, folder=str(folder), version=version)
            try:
                finding: Finding = await self._engines.trial.remote(wanted)
            except InputError as error:
                # Ray's copy of it says the remote traceback as well.
                raise InputError(str(getattr(error, "cause", error))) from error
            except Exception as error:
                if self._is_loss(error):
                    raise EngineLostError("the engine was lost while it tried the version") from error
                raise
            if not finding.problem:
                await self._standing.put.remote(wanted)
                self.service.model = wanted
        return finding


def application(config: ServingConfig) -> "Application":
    """The service, to be handed to `serve.run`, or returned by what `serve deploy` imports.

    Raises InputError for a model folder that cannot be used.
    """
    from ray import serve

    first_model(config)
    scale: dict[str, Any] = {"num_replicas": config.replicas}
    if config.replicas == "auto":
        bounds = {"min_replicas": 1, "max_replicas": config.max_replicas, "target_ongoing_requests": _TARGET_CALLS}
        scale = {"autoscaling_config": bounds}
    engine = serve.deployment(
        name="engine",
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        max_ongoing_requests=64,
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=10.0,
        **scale,
    )(Engine)
    gate = serve.deployment(
        name="gate",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        # The queue's bound is ours, and its answer is `overloaded`.
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=10.0,
    )(serve.ingress()(Gate))
    if config.experts is None:
        return gate.bind(config, engine.bind(config))
    experts = serve.deployment(
        name="experts",
        num_replicas=1,
        # No CPU of their own: they must find room beside the engines, however many those are.
        ray_actor_options={"num_cpus": 0, "num_gpus": config.experts.num_gpus},
        max_ongoing_requests=config.experts.max_queue,
        graceful_shutdown_timeout_s=10.0,
    )(Experts)
    return gate.bind(config, engine.bind(config), experts.bind(config))


async def _look(experts: "DeploymentHandle", look: Look) -> EvidenceResponse:
    response = experts.look.remote(look)
    try:
        found: EvidenceResponse = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    return found


def forget(config: ServingConfig) -> None:
    """Let a service that is started anew begin with the model that it names, not with what its forerunner ended on."""
    import ray

    try:
        ray.kill(ray.get_actor(_standing_name(config), namespace=_NAMESPACE))
    except ValueError:
        return


def _standing(config: ServingConfig) -> Any:
    """The actor that remembers which version serves; made by whoever comes first."""
    import ray

    name = _standing_name(config)
    try:
        model = first_model(config)
    except InputError:
        # The folder that was served first may be gone by the time that another one is.
        return ray.get_actor(name, namespace=_NAMESPACE)
    options = {"name": name, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
    return ray.remote(Standing).options(**options).remote(model)


def _standing_name(config: ServingConfig) -> str:
    return f"serving-{config.fingerprint()}"
