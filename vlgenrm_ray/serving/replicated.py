"""Engines in processes of their own on any node: a Ray Serve deployment that scales with the load, and its client."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine import ChatResult, ChatTask, ScoreTask
from vlgenrm_ray.serving.engine_worker import EngineWorker
from vlgenrm_ray.serving.model_version import ModelVersion

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_TARGET_CALLS = 8.0
"""Running calls per engine, of up to `service.MAX_CHUNK` items each, above which Ray Serve adds an engine."""


class EngineReplica:
    """The deployment: one worker per replica. Ray Serve replaces a replica whose health check fails."""

    # Ray Serve awaits the constructor.
    async def __init__(  # type: ignore[misc]
        self, config: ServingConfig, active_model: Callable[[], Awaitable[ModelVersion]]
    ) -> None:
        """Create a replica without an engine. `active_model` returns the version that serves now."""
        self._worker = await EngineWorker.start(config, await active_model())

    async def judge(self, tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        """See `EngineWorker.judge`."""
        return await self._worker.judge(tasks, model)

    async def chat(self, task: ChatTask, model: ModelVersion) -> tuple[str, ChatResult]:
        """See `EngineWorker.chat`."""
        return await self._worker.chat(task, model)

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        """See `EngineWorker.try_model`."""
        return await self._worker.try_model(model)

    def check_health(self) -> None:
        """Raise EngineLostError if the engine is gone. Called by Ray Serve."""
        if not self._worker.alive:
            raise EngineLostError("vLLM's engine process is gone")


class ReplicatedEngine:
    """The `Engine` of a service with several replicas, over the handle of their deployment."""

    alive = True
    """Always True: only a call shows whether a replica is up."""

    def __init__(self, handle: "DeploymentHandle") -> None:
        self._handle = handle

    async def judge(self, tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        """Call one replica. If cancelled, cancel its work."""
        result: tuple[str, list[Judgement]] = await _cancel_with_caller(self._handle.judge.remote(tasks, model))
        return result

    async def chat(self, task: ChatTask, model: ModelVersion) -> tuple[str, ChatResult]:
        """Call one replica. If cancelled, cancel its work."""
        result: tuple[str, ChatResult] = await _cancel_with_caller(self._handle.chat.remote(task, model))
        return result

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        """See `Engine.try_model`. One replica tries the model; the others load it with their next call."""
        result: CanaryResult = await self._handle.try_model.remote(model)
        return result

    def is_loss(self, error: Exception) -> bool:
        """See `Engine.is_loss`."""
        from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
        from ray.serve.exceptions import ReplicaUnavailableError

        losses = (EngineLostError, RayActorError, WorkerCrashedError, ObjectLostError, ReplicaUnavailableError)
        return isinstance(error, losses)


async def _cancel_with_caller(response: Any) -> Any:
    """Await the response of a handle. If the caller is cancelled, cancel the replica's work."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def deployment(config: ServingConfig, active_model: Callable[[], Awaitable[ModelVersion]]) -> "Application":
    """Return the deployment of the engines, to be bound to the ingress."""
    from ray import serve

    scale: dict[str, Any] = {"num_replicas": config.replicas}
    if config.replicas == "auto":
        bounds = {
            "min_replicas": 1,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": _TARGET_CALLS,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
        }
        scale = {"autoscaling_config": bounds}
    engines = serve.deployment(
        name="engine",
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        max_ongoing_requests=64,
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=10.0,
        **scale,
    )(EngineReplica)
    return engines.bind(config, active_model)
