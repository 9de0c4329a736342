"""The actors that collect: rollout engines, and the collector that drives them. The logic is in `collecting`, `pool`.

A learner talks to the collector alone:

    collector = start(CollectorJob(...), name)
    send(collector, learner.weights(), version)              # rank 0; every rank goes through the weights
    straight.sender(collector, "nccl", ...).send(...)         # the same from GPU to GPU
    collected = ray.get(collector.step.remote(step, version))
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.cluster import connection, ray_compat
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines import weight_sync
from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.engines.weight_sync import Checksum, Part, Weights
from vlgenrm_ray.engines.weight_transfer import Muster, Phase, engine_settings
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.policy import reward
from vlgenrm_ray.policy.collecting import Collected, Collecting
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.pool import Pool
from vlgenrm_ray.policy.relay import Relay
from vlgenrm_ray.policy.reward import PatienceConfig, RewardConfig
from vlgenrm_ray.policy.rollouts import Asked, Build, Group, RolloutEngine, RolloutsConfig
from vlgenrm_ray.policy.sync import SyncConfig, Way
from vlgenrm_ray.records import Question

if TYPE_CHECKING:
    import torch

NAMESPACE = "vlgenrm-policy"


@dataclass(frozen=True, kw_only=True)
class CollectorJob:
    """All that a collector needs; it can be started again from it, and on another node.

    Small: Ray holds on to an actor's arguments, and questions may be many. They are read where they lie.
    """

    model: str
    """Folder of the policy as the run began: version 0."""
    questions: StageFolder
    held_out: StageFolder
    """Folders of questions."""
    rollouts: RolloutsConfig
    rewards: tuple[RewardConfig, ...]
    patience: PatienceConfig
    algorithm: AlgorithmConfig
    questions_per_step: int
    seed: int
    images: ImageLimits
    blank: int = 0
    """Answers of an evaluation that are judged by blank pictures as well."""
    sync: SyncConfig = field(default_factory=SyncConfig)
    way: Way = "object_store"
    """By which new weights come."""
    build: Build = VllmGenerator
    """Starts the engine; another than vLLM in tests."""

    def engine(self) -> VllmConfig:
        """The engines' settings."""
        engine = self.rollouts.engine_of(self.model)
        if self.way == "object_store":
            return engine
        return engine.model_copy(update={"engine": engine.engine | engine_settings(self.way)})


class RolloutActor:
    """An engine in a process of its own."""

    def __init__(self, config: VllmConfig, limits: ImageLimits, build: Build) -> None:
        self._engine = RolloutEngine(config, limits, build)

    def ready(self) -> str:
        """Which process this is; returns once the engine has started."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Group]]:
        """See `RolloutEngine.sample`."""
        yield from self._engine.sample(asked, sampling)

    def load(self, weights: Weights[Any]) -> int:
        """See `RolloutEngine.load`. One part at a time is looked at, where it lies."""
        import ray

        def parts() -> Iterator[Part]:
            for reference in weights.parts:
                yield ray.get(reference)

        return self._engine.load(weights, parts)

    def transfer(self, phase: Phase, info: Mapping[str, Any]) -> Any:
        """See `RolloutEngine.transfer`."""
        return self._engine.transfer(phase, info)


class RaySampler:
    """A `place.Sampler` over a rollout actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.name = f"rollout actor {ray_compat.actor_id(actor)}"

    @classmethod
    async def start(cls, job: CollectorJob) -> "RaySampler":
        """Start an actor and wait until its engine is there. Raises EngineLostError where it does not come."""
        import ray

        config = job.rollouts
        # Not started again by Ray: the pool gives the next one the weights it must have.
        actor = (
            ray.remote(RolloutActor)
            .options(num_cpus=config.num_cpus, num_gpus=config.num_gpus, max_restarts=0)
            .remote(job.engine(), job.images, job.build)
        )
        made = cls(actor)
        try:
            async with asyncio.timeout(config.start_timeout_s):
                made.name += f" ({await made._told(actor.ready.remote())})"
        except TimeoutError as error:
            made.close()
            raise EngineLostError(
                f"a rollout engine did not start within {config.start_timeout_s:g} s (rollouts.start_timeout_s); "
                f"are {config.num_cpus:g} CPUs and {config.num_gpus:g} GPUs free?"
            ) from error
        return made

    async def sample(self, asked: Sequence[Asked], sampling: Sampling) -> AsyncIterator[tuple[int, Group]]:
        """See `place.Sampler`."""
        stream = self._actor.sample.options(num_returns="streaming").remote(list(asked), sampling)
        while True:
            try:
                reference = await self._told(anext(stream))
            except StopAsyncIteration:
                return
            yield await self._told(reference)

    async def load(self, weights: Weights[Any]) -> int:
        """See `place.Sampler`."""
        version: int = await self._told(self._actor.load.remote(weights))
        return version

    async def transfer(self, phase: Phase, info: Mapping[str, Any]) -> Any:
        """See `place.Sampler`."""
        return await self._told(self._actor.transfer.remote(phase, info))

    def close(self) -> None:
        """See `place.Sampler`."""
        import ray

        ray.kill(self._actor)

    async def _told(self, awaited: Any) -> Any:
        """What comes of a call. Raises EngineLostError where the actor is gone, and otherwise what the actor raised."""
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        try:
            return await awaited
        except RayActorError as error:
            raise EngineLostError(f"{self.name} died: {connection.why_died(error)}") from error
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ObjectLostError):
                raise WeightSyncError(f"weights were lost with the process that held them: {cause}") from error
            raise cause from error


class Collector:
    """An async actor of the run: has the engines sample and the reward score, at the learner's word.

    Killed and started again, it has engines with the weights of version 0: `step` and `evaluate` then raise
    WeightSyncError until the present ones are sent again.
    """

    def __init__(self, job: CollectorJob) -> None:
        self._job = job
        rollouts = job.rollouts
        self._pool = Pool(
            lambda: RaySampler.start(job),
            size=rollouts.actors,
            restarts=rollouts.restarts,
            stall_timeout_s=rollouts.stall_timeout_s,
            load_timeout_s=job.sync.timeout_s,
        )
        self._relay = Relay(self._pool, timeout_s=job.sync.timeout_s)
        self._held_out = list(job.held_out.records(Question))
        self._reward = reward.build(job.rewards, job.patience, job.images)
        self._collecting = Collecting(
            list(job.questions.records(Question)),
            pool=self._pool,
            reward=self._reward,
            rollouts=rollouts,
            algorithm=job.algorithm,
            questions_per_step=job.questions_per_step,
            seed=job.seed,
        )

    async def start(self) -> None:
        """Start the engines, and wait for the reward. Raises EngineLostError, RemoteError."""
        await asyncio.gather(self._pool.start(), self._reward.check())

    async def keep(self, part: Part) -> list[Any]:
        """A reference to a part of weights, owned here: it outlives the learner that made it, for engines to come."""
        import ray

        return [ray.put(part)]

    async def load(self, weights: Weights[Any]) -> None:
        """Give the engines new weights, whose parts are references to objects. Raises WeightSyncError."""
        await self._pool.load(weights, timeout_s=self._job.sync.timeout_s)

    async def hold(self) -> Muster:
        """See `Relay.hold`; as the three that follow, for weights that go straight into the engines."""
        return await self._relay.hold()

    async def phase(self, phase: Phase, info: Mapping[str, Any]) -> None:
        """See `Relay.phase`."""
        await self._relay.phase(phase, info)

    async def settle(self, version: int, checksum: str) -> None:
        """See `Relay.settle`."""
        await self._relay.settle(version, checksum)

    async def let_go(self, why: str) -> None:
        """See `Relay.let_go`."""
        self._relay.let_go(why)

    async def step(self, step: int, version: int) -> Collected:
        """See `Collecting.step`; `version`: that of the weights the caller believes the engines to have."""
        self._check(version)
        return await self._collecting.step(step)

    async def evaluate(self, step: int, version: int) -> Collected:
        """Answers to the held-out questions. See `Collecting.evaluate`."""
        self._check(version)
        return await self._collecting.evaluate(self._held_out, step, blank=self._job.blank)

    async def version(self) -> int:
        """Of the engines' weights."""
        return self._pool.version

    async def close(self) -> None:
        """End the engines and the reward's connections."""
        self._pool.close()
        await self._reward.close()

    def _check(self, version: int) -> None:
        if self._pool.version != version:
            raise WeightSyncError(
                f"the rollout engines have weights of version {self._pool.version}, not {version}; send those again"
            )


def start(job: CollectorJob, name: str) -> Any:
    """The run's collector, started unless it runs; it ends with the process that started it."""
    import ray

    return (
        ray.remote(Collector)
        .options(name=name, namespace=NAMESPACE, get_if_exists=True, num_cpus=0, max_restarts=-1, max_concurrency=16)
        .remote(job)
    )


def send(collector: Any, weights: "Iterable[tuple[str, torch.Tensor]]", version: int) -> None:
    """Give all rollout engines new weights; returns when they have them. Raises WeightSyncError."""
    import ray

    total = Checksum()
    parts = [ray.get(collector.keep.remote(part)) for part in weight_sync.pack(total.counting(weights))]
    sent: Weights[Any] = Weights(
        version=version, checksum=total.hexdigest(), parts=tuple(reference for (reference,) in parts)
    )
    ray.get(collector.load.remote(sent))
