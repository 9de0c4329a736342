"""The rollout orchestrator: an actor that samples on the engines and scores the samples, at the learner's request.

`RolloutCollector` collects the scored rollouts of a step; it is asyncio without Ray. `RolloutOrchestrator` is the actor
around it: it owns the engine pool, the reward and the coordination of new weights. The learner talks to it by a
`client.RolloutClient`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.policy.advantages import GroupStatus
from vlgenrm_ray.policy.batching import group_statuses
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.engine_pool import RolloutEnginePool
from vlgenrm_ray.policy.rollout_worker import BuildGenerator, RolloutWorkerHandle
from vlgenrm_ray.policy.rollouts import (
    UNSCORED,
    DecodingBatch,
    RolloutBatch,
    RolloutGroup,
    RolloutRequest,
    RolloutsConfig,
    replacement_indices,
    sampling_seed,
    step_indices,
)
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards.composite import RetryConfig
from vlgenrm_ray.rewards.config import RewardConfig, build_reward
from vlgenrm_ray.rewards.image_ablation import ablate_image
from vlgenrm_ray.rewards.reward import Reward, RewardOutput
from vlgenrm_ray.weight_sync.config import SyncBackend, SyncConfig
from vlgenrm_ray.weight_sync.coordinator import TransferGroup, TransferPhase, WeightTransferCoordinator
from vlgenrm_ray.weight_sync.gpu_receiver import engine_arguments
from vlgenrm_ray.weight_sync.object_store import WeightPart
from vlgenrm_ray.weight_sync.versions import WeightVersion

NAMESPACE = "vlgenrm-policy"
"""Ray namespace of orchestrators."""
_MAX_DETAIL_CHARS = 300
_MAX_CONCURRENCY = 16
"""Concurrent calls of the actor: a step, an evaluation, weights and their phases."""


class RolloutCollector:
    """Collects scored rollouts. Groups are scored as soon as they are sampled."""

    def __init__(
        self,
        questions: Sequence[Question],
        *,
        pool: RolloutEnginePool,
        reward: Reward | None,
        rollouts: RolloutsConfig,
        algorithm: AlgorithmConfig,
        questions_per_step: int,
        seed: int,
    ) -> None:
        """Create a collector.

        Args:
            questions: Questions to train on.
            pool: Rollout engines.
            reward: Reward of the run; None: rollouts stay unscored, for runs that only evaluate by a measure.
            rollouts: Sampling parameters.
            algorithm: Decides which groups are replaced, see `resample_rounds`.
            questions_per_step: Questions per step.
            seed: Seed of the run.

        Raises:
            ConfigError: There are fewer questions than a step needs.
        """
        step_indices(len(questions), questions_per_step, seed=seed, step=0)
        self.questions = questions
        self.pool = pool
        self.reward = reward
        self.rollouts = rollouts
        self.algorithm = algorithm
        self.questions_per_step = questions_per_step
        self.seed = seed

    async def collect_step(self, step: int) -> RolloutBatch:
        """Collect the rollouts of a training step.

        With `algorithm.resample_rounds`, groups without a gradient are replaced by groups of other questions. Those
        that are left after the last round stay.

        Args:
            step: Step, from 0. Questions and seeds depend on it alone.

        Raises:
            RemoteError: The reward is unavailable.
            EngineLostError: An engine was lost too often.
        """
        per_step, num_questions = self.questions_per_step, len(self.questions)
        indices = step_indices(num_questions, per_step, seed=self.seed, step=step)
        sampling = self.rollouts.training_sampling()
        batch = await self._collect(self._requests(indices, step), sampling, step)
        if not self.algorithm.resample_rounds:
            return batch
        spare = replacement_indices(num_questions, per_step, seed=self.seed, step=step)
        for _ in range(self.algorithm.resample_rounds):
            useless = [at for at, useful in enumerate(self._have_gradient(batch.groups)) if not useful]
            replacements, spare = spare[: len(useless)], spare[len(useless) :]
            if not replacements:
                break
            more = await self._collect(self._requests(replacements, step), sampling, step)
            batch = _replace_groups(batch, more, useless)
        return batch

    async def collect_evaluation(
        self, questions: Sequence[Question], step: int, *, num_ablated: int = 0
    ) -> RolloutBatch:
        """Collect one scored answer to each question. Every evaluation of a run samples with the same seeds.

        Args:
            questions: Held-out questions.
            step: Number of training steps done.
            num_ablated: Answers that are scored with blank images as well.

        Raises:
            RemoteError: The reward is unavailable.
            EngineLostError: An engine was lost too often.
        """
        requests = [
            RolloutRequest(question=question, step=step, seed=sampling_seed(self.seed, 0, question.id), purpose="e")
            for question in questions
        ]
        batch = await self._collect(requests, self.rollouts.evaluation_sampling(), step)
        if self.reward is None:
            return batch
        return replace(batch, ablations=await ablate_image(self.reward, batch.rollouts, num_ablated))

    async def collect_decoding(self, questions: Sequence[Question], step: int, *, num_samples: int) -> DecodingBatch:
        """Collect the greedy answer and `num_samples` sampled answers to each question, without rewards.

        Args:
            questions: Held-out questions.
            step: Number of training steps done. Seeds do not depend on it.
            num_samples: Sampled answers per question.

        Raises:
            EngineLostError: An engine was lost too often.
        """
        requests = [
            RolloutRequest(question=question, step=step, seed=sampling_seed(self.seed, 0, question.id), purpose="d")
            for question in questions
        ]
        greedy, sampled = [
            await self._sample(requests, sampling) for sampling in self.rollouts.decoding_samplings(num_samples)
        ]
        return DecodingBatch(greedy=greedy, sampled=sampled)

    async def _sample(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> tuple[RolloutGroup, ...]:
        groups: dict[int, RolloutGroup] = {}
        async with aclosing(cast("Any", self.pool.sample(requests, sampling))) as sampled:
            async for index, group in sampled:
                groups[index] = group
        return tuple(groups[index] for index in range(len(requests)))

    def _requests(self, indices: Sequence[int], step: int) -> list[RolloutRequest]:
        questions = [self.questions[index] for index in indices]
        return [RolloutRequest(question=q, step=step, seed=sampling_seed(self.seed, step, q.id)) for q in questions]

    async def _collect(self, requests: Sequence[RolloutRequest], sampling: Sampling, step: int) -> RolloutBatch:
        began = time.monotonic()
        scoring: dict[int, asyncio.Task[RolloutGroup]] = {}
        failure_details: dict[str, str] = {}
        try:
            async with aclosing(cast("Any", self.pool.sample(requests, sampling))) as sampled:
                async for index, group in sampled:
                    scoring[index] = asyncio.ensure_future(self._score(group, failure_details))
                    _raise_first_failure(scoring.values())
            sampled_at = time.monotonic()
            groups = await asyncio.gather(*(scoring[index] for index in range(len(requests))))
        except BaseException:
            for task in scoring.values():
                task.cancel()
            await asyncio.gather(*scoring.values(), return_exceptions=True)
            raise
        return RolloutBatch(
            step=step,
            groups=tuple(groups),
            statuses=Counter(rollout.status for group in groups for rollout in group),
            num_replaced=0,
            sampling_s=sampled_at - began,
            scoring_s=time.monotonic() - sampled_at,
            failure_details=failure_details,
        )

    async def _score(self, group: RolloutGroup, failure_details: dict[str, str]) -> RolloutGroup:
        """Score the rollouts that have a text; the others keep their status. New kinds of failures get a detail."""
        unscored = [rollout for rollout in group if rollout.status == UNSCORED]
        if not unscored or self.reward is None:
            return group
        outputs = await self.reward.score(unscored)
        for rollout, output in zip(unscored, outputs, strict=True):
            if output.reward is None:
                failure_details.setdefault(
                    output.status, f"{output.detail[:_MAX_DETAIL_CHARS] or 'no reason given'} ({rollout.id})"
                )
        remaining = iter(outputs)
        return tuple(
            _with_reward(rollout, next(remaining)) if rollout.status == UNSCORED else rollout for rollout in group
        )

    def _have_gradient(self, groups: Sequence[RolloutGroup]) -> list[bool]:
        """Return for each group whether enough of its rollouts have a reward, and their shaped rewards differ."""
        statuses = group_statuses(groups, self.algorithm, max_tokens=self.rollouts.max_tokens)
        return [status is GroupStatus.USED for status in statuses]


def _with_reward(rollout: Rollout, output: RewardOutput) -> Rollout:
    return replace(
        rollout,
        reward=output.reward,
        status=output.status,
        critique=output.critique,
        segments=output.segments,
    )


def _raise_first_failure(tasks: "Iterable[asyncio.Task[RolloutGroup]]") -> None:
    """Raise the error of a failed task now, rather than after the last group is sampled."""
    for task in tasks:
        if task.done():
            task.result()


def _replace_groups(batch: RolloutBatch, more: RolloutBatch, indices: Sequence[int]) -> RolloutBatch:
    """Replace the groups of `batch` at the first of `indices` by the groups of `more`."""
    groups = list(batch.groups)
    for index, group in zip(indices, more.groups, strict=False):
        groups[index] = group
    return replace(
        batch,
        groups=tuple(groups),
        statuses=Counter(batch.statuses) + Counter(more.statuses),
        failure_details={**more.failure_details, **batch.failure_details},
        num_replaced=batch.num_replaced + len(more.groups),
        sampling_s=batch.sampling_s + more.sampling_s,
        scoring_s=batch.scoring_s + more.scoring_s,
    )


# -- actor -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OrchestratorConfig:
    """Everything that an orchestrator needs to start, also on another node.

    It is small, because Ray keeps the arguments of an actor in memory; questions are read from their folders.
    """

    model: str
    """Folder of the initial policy, version 0 of the weights."""
    questions: StageFolder
    """Folder of the questions to train on."""
    held_out: StageFolder
    """Folder of the questions to evaluate on."""
    rollouts: RolloutsConfig
    rewards: tuple[RewardConfig, ...]
    retry: RetryConfig
    algorithm: AlgorithmConfig
    questions_per_step: int
    seed: int
    images: ImageLimits
    num_samples: int = 0
    """Sampled answers per question of the comparison of decoding."""
    num_ablated: int = 0
    """Answers of an evaluation that are scored with blank images as well."""
    sync: SyncConfig = field(default_factory=SyncConfig)
    backend: SyncBackend = "object_store"
    """Transport of new weights."""
    build: BuildGenerator = VllmGenerator
    """Starts the engine; tests use other engines than vLLM."""

    def engine_config(self) -> VllmConfig:
        """Return the settings of the rollout engines."""
        engine = self.rollouts.engine_config(self.model)
        if self.backend == "object_store":
            return engine
        return engine.model_copy(update={"vllm_args": engine.vllm_args | engine_arguments(self.backend)})


class RolloutOrchestrator:
    """Ray actor that owns the rollout engines and the reward of a run.

    After a crash Ray restarts it, and its engines have version 0 of the weights: `collect_step` and
    `collect_evaluation` then raise WeightSyncError until the current weights are sent again.
    """

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config
        rollouts = config.rollouts
        self._pool = RolloutEnginePool(
            lambda: RolloutWorkerHandle.start(rollouts, config.engine_config(), config.images, config.build),
            num_engines=rollouts.num_engines,
            max_restarts=rollouts.max_restarts,
            stall_timeout_s=rollouts.stall_timeout_s,
            load_timeout_s=config.sync.timeout_s,
        )
        self._transfer = WeightTransferCoordinator(self._pool, timeout_s=config.sync.timeout_s)
        self._held_out = list(config.held_out.records(Question))
        self._reward = build_reward(config.rewards, config.retry, config.images) if config.rewards else None
        self._collector = RolloutCollector(
            list(config.questions.records(Question)),
            pool=self._pool,
            reward=self._reward,
            rollouts=rollouts,
            algorithm=config.algorithm,
            questions_per_step=config.questions_per_step,
            seed=config.seed,
        )

    async def start(self) -> None:
        """Start the engines and wait for the reward. Raises EngineLostError, RemoteError."""
        checks = [self._reward.check()] if self._reward is not None else []
        await asyncio.gather(self._pool.start(), *checks)

    async def collect_step(self, step: int, version: int) -> RolloutBatch:
        """Collect a training step, see `RolloutCollector.collect_step`.

        Args:
            step: Step, from 0.
            version: Version of the weights that the learner sent last.

        Raises:
            WeightSyncError: The engines have other weights, which happens after a restart.
        """
        self._check_version(version)
        return await self._collector.collect_step(step)

    async def collect_evaluation(self, step: int, version: int) -> RolloutBatch:
        """Collect answers to the held-out questions after `step` training steps. Raises as `collect_step`."""
        self._check_version(version)
        return await self._collector.collect_evaluation(self._held_out, step, num_ablated=self._config.num_ablated)

    async def collect_decoding(self, step: int, version: int) -> DecodingBatch:
        """Collect greedy and sampled answers to the held-out questions. Raises as `collect_step`."""
        self._check_version(version)
        return await self._collector.collect_decoding(self._held_out, step, num_samples=self._config.num_samples)

    async def version(self) -> int:
        """Return the version of the engines' weights."""
        return self._pool.version

    async def close(self) -> None:
        """Terminate the engines and release the reward."""
        self._pool.close()
        if self._reward is not None:
            await self._reward.close()

    # -- new weights -------------------------------------------------------------------------------------------

    async def store_part(self, part: WeightPart) -> list[Any]:
        """Store a part of the weights and return its reference, in a list so that Ray does not resolve it.

        This actor owns the part, so that engines restarted later can load it even if the learner has died.
        """
        import ray

        return [ray.put(part)]

    async def load_weights(self, weights: WeightVersion[Any]) -> None:
        """Load stored parts of weights into all engines. Raises WeightSyncError."""
        await self._pool.load(weights, timeout_s=self._config.sync.timeout_s)

    async def begin_transfer(self) -> TransferGroup:
        """See `WeightTransferCoordinator.begin`."""
        return await self._transfer.begin()

    async def run_transfer_phase(self, phase: TransferPhase, info: Mapping[str, Any]) -> None:
        """See `WeightTransferCoordinator.run_phase`."""
        await self._transfer.run_phase(phase, info)

    async def commit_transfer(self, version: int, checksum: str) -> None:
        """See `WeightTransferCoordinator.commit`."""
        await self._transfer.commit(version, checksum)

    async def cancel_transfer(self, reason: str) -> None:
        """See `WeightTransferCoordinator.cancel`."""
        self._transfer.cancel(reason)

    def _check_version(self, version: int) -> None:
        if self._pool.version != version:
            raise WeightSyncError(
                f"the rollout engines have weights of version {self._pool.version}, not {version}; send those again"
            )


def start_orchestrator(config: OrchestratorConfig, name: str) -> Any:
    """Start the orchestrator actor of a run, or return the running one. It ends with the process that started it."""
    import ray

    return (
        ray.remote(RolloutOrchestrator)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=_MAX_CONCURRENCY,
        )
        .remote(config)
    )
