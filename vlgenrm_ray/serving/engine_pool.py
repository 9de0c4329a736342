"""Engines in processes of their own, on any node: a Ray Serve deployment that grows with the queue, and its handle."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_TARGET_CALLS = 8.0
"""Calls under way per engine (of up to `Limits.max_chunk` items each) from which another engine is wanted."""


class EngineReplica:
    """The deployment: one engine."""

    # Ray Serve awaits it.
    async def __init__(self, config: ServingConfig, serves: Callable[[], Awaitable[Model]]) -> None:  # type: ignore[misc]
        """`serves`: which weights serve at this time."""
        from vlgenrm_ray.serving.engine import Engine

        self._engine = await Engine.start(config, await serves())

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        """See `Replica.judge`."""
        return await self._engine.judge(tasks, wanted)

    async def trial(self, wanted: Model) -> Finding:
        """See `Engine.trial`."""
        return await self._engine.trial(wanted)

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if not self._engine.alive:
            raise EngineLostError("vLLM's engine process is gone")


class EnginesApart:
    """`gate.Engines` over the deployment's handle; Ray Serve replaces what is lost."""

    alive = True
    """As far as can be known before one is asked."""

    def __init__(self, handle: "DeploymentHandle") -> None:
        self._handle = handle

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        """One call of one replica. Cancelled, it cancels the replica's work."""
        response = self._handle.judge.remote(tasks, wanted)
        try:
            outcomes: list[Outcome] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return outcomes

    async def trial(self, wanted: Model) -> Finding:
        """See `Engine.trial`; on one replica. If it passes, the others follow with their next call."""
        finding: Finding = await self._handle.trial.remote(wanted)
        return finding

    def is_loss(self, error: Exception) -> bool:
        """Whether the replica is gone, and another may be asked."""
        from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
        from ray.serve.exceptions import ReplicaUnavailableError

        lost = (EngineLostError, RayActorError, WorkerCrashedError, ObjectLostError, ReplicaUnavailableError)
        return isinstance(error, lost)


def deployment(config: ServingConfig, serves: Callable[[], Awaitable[Model]]) -> "Application":
    """The deployment with its scale, to be bound to a gate."""
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
    made = serve.deployment(
        name="engine",
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        max_ongoing_requests=64,
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=10.0,
        **scale,
    )(EngineReplica)
    return made.bind(config, serves)
