"""The rollout engine as a Ray actor, and the handle by which a `RolloutEnginePool` uses it.

`RolloutWorker` runs one engine with the current weights of the policy. `RolloutWorkerHandle` translates lost actors and
objects into the errors that the pool handles.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.cluster import connection, ray_compat
from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.engines.contracts import PolicyGenerator, Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.vllm_config import VllmConfig, stay_in_process
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.policy.rollouts import UNSCORED, RolloutGroup, RolloutRequest, RolloutsConfig
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.weight_sync import gpu_receiver, object_store
from vlgenrm_ray.weight_sync.coordinator import TransferPhase
from vlgenrm_ray.weight_sync.object_store import WeightPart
from vlgenrm_ray.weight_sync.versions import WeightVersion

if TYPE_CHECKING:
    import PIL.Image

_NUM_DECODERS = 8
"""Threads that decode images; Pillow releases Python's lock meanwhile."""

BuildGenerator = Callable[[VllmConfig], PolicyGenerator]
"""Starts the generator, in the process that owns it."""


class RolloutWorker:
    """One engine with the current weights of the policy. It executes one call at a time."""

    def __init__(self, config: VllmConfig, limits: ImageLimits, build: BuildGenerator) -> None:
        """Start the engine.

        Args:
            config: Settings of the engine.
            limits: Limits of the images of questions.
            build: Starts the generator; its exceptions are raised here.
        """
        stay_in_process()
        self.limits = limits
        self.generator = build(config)
        self.version = 0
        """Version of the weights; 0 are those of the model folder."""

    def ready(self) -> str:
        """Return the process id and host of the worker. Answered once the engine has started."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    def sample(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Iterator[tuple[int, RolloutGroup]]:
        """Sample the groups of some requests.

        Args:
            requests: Requests to sample.
            sampling: Sampling parameters; `sampling.n` is the size of a group.

        Yields:
            Index of the request and its group, in the order in which groups are finished. Rollouts have no reward. A
            request that the engine cannot take yields rollouts without text, whose status says why.

        Raises:
            EngineLostError: The engine died.
        """
        with ThreadPoolExecutor(_NUM_DECODERS) as threads:
            images_or_refusals = list(threads.map(self._open_images, [request.question for request in requests]))
        prompts: list[tuple[int, Prompt]] = []
        for index, (request, opened) in enumerate(zip(requests, images_or_refusals, strict=True)):
            if isinstance(opened, Refusal):
                yield index, self._group(request, opened, sampling.n)
            else:
                prompts.append((index, Prompt(images=opened, text=request.question.text)))
        seeds = [requests[index].seed for index, _ in prompts]
        for position, outcome in self.generator.generate_stream([prompt for _, prompt in prompts], sampling, seeds):
            index = prompts[position][0]
            yield index, self._group(requests[index], outcome, sampling.n)

    def load(self, weights: WeightVersion[Any]) -> int:
        """Load new weights whose parts are in Ray's object store, or are given directly; return their version.

        Raises:
            WeightSyncError: The parts are not what was sent (the current weights stay), or do not fit the model.
        """

        def parts() -> Iterator[WeightPart]:
            # One at a time, where it lies in shared memory.
            return map(_resolve, weights.parts)

        object_store.verify(parts(), weights, self.version)
        self.generator.load_weights(tensor for part in parts() for tensor in part.tensors())
        self.version = weights.version
        return self.version

    def transfer(self, phase: TransferPhase, info: Mapping[str, Any]) -> Any:
        """Execute one phase of a weight transfer between GPUs. Raises WeightSyncError, EngineLostError."""
        answer = gpu_receiver.execute_phase(self.generator.llm, phase, info)
        if phase is TransferPhase.FINISH:
            self.version = info["version"]
        return answer

    def _open_images(self, question: Question) -> "tuple[PIL.Image.Image, ...] | Refusal":
        try:
            return tuple(images.read(image, self.limits) for image in question.images)
        except ImageError as error:
            return Refusal(reason=error.reason, detail=error.detail)

    def _group(self, request: RolloutRequest, outcome: Sequence[Sample] | Refusal, num_samples: int) -> RolloutGroup:
        if isinstance(outcome, Refusal):
            return tuple(self._rollout(request, index, None, outcome.reason.value) for index in range(num_samples))
        return tuple(self._rollout(request, index, sample, UNSCORED) for index, sample in enumerate(outcome))

    def _rollout(self, request: RolloutRequest, index: int, sample: Sample | None, status: str) -> Rollout:
        return Rollout(
            id=request.rollout_id(index),
            question=request.question,
            step=request.step,
            version=self.version,
            ids=sample.ids if sample else (),
            logprobs=sample.logprobs if sample else (),
            text=sample.text if sample else "",
            finish=sample.finish if sample else "",
            reward=None,
            status=status,
        )


class RolloutWorkerHandle:
    """Handle of a `RolloutWorker` actor that implements `engine_pool.RolloutEngine`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.name = f"rollout worker {ray_compat.actor_id(actor)}"

    @classmethod
    async def start(
        cls, config: RolloutsConfig, engine: VllmConfig, limits: ImageLimits, build: BuildGenerator
    ) -> "RolloutWorkerHandle":
        """Start an actor and wait until its engine has started. Raises EngineLostError after `start_timeout_s`."""
        import ray

        # Ray does not restart it: the pool starts the next one and gives it the weights that it must have.
        actor = (
            ray.remote(RolloutWorker)
            .options(num_cpus=config.num_cpus, num_gpus=config.num_gpus, max_restarts=0)
            .remote(engine, limits, build)
        )
        handle = cls(actor)
        try:
            async with asyncio.timeout(config.start_timeout_s):
                handle.name += f" ({await handle._result(actor.ready.remote())})"
        except TimeoutError as error:
            handle.close()
            raise EngineLostError(
                f"a rollout engine did not start within {config.start_timeout_s:g} s (rollouts.start_timeout_s); "
                f"are {config.num_cpus:g} CPUs and {config.num_gpus:g} GPUs free?"
            ) from error
        return handle

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> AsyncIterator[tuple[int, RolloutGroup]]:
        """See `RolloutWorker.sample`."""
        stream = self._actor.sample.options(num_returns="streaming").remote(list(requests), sampling)
        while True:
            try:
                reference = await self._result(anext(stream))
            except StopAsyncIteration:
                return
            yield await self._result(reference)

    async def load(self, weights: WeightVersion[Any]) -> int:
        """See `RolloutWorker.load`."""
        version: int = await self._result(self._actor.load.remote(weights))
        return version

    async def transfer(self, phase: TransferPhase, info: Mapping[str, Any]) -> Any:
        """See `RolloutWorker.transfer`."""
        return await self._result(self._actor.transfer.remote(phase, info))

    def close(self) -> None:
        """Kill the actor."""
        import ray

        ray.kill(self._actor)

    async def _result(self, awaitable: Any) -> Any:
        """Wait for a call. Raises EngineLostError if the actor is dead, else the exception that the actor raised."""
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        try:
            return await awaitable
        except RayActorError as error:
            raise EngineLostError(f"{self.name} died: {connection.actor_death_cause(error)}") from error
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ObjectLostError):
                raise WeightSyncError(f"weights were lost with the process that held them: {cause}") from error
            raise cause from error


def _resolve(part: Any) -> WeightPart:
    import ray

    resolved: WeightPart = part if isinstance(part, WeightPart) else ray.get(part)
    return resolved
