"""A judge in a Ray actor of the run: no service is needed, and its GPU is not shared with other runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.contracts import Generator
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import RemoteError, RemoteRefusalError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.model_settings import with_model_settings
from vlgenrm_ray.records import Judgement, Rollout, Segment
from vlgenrm_ray.rewards.reward import TIMEOUT, Reward, RewardOutput, sentence_segments
from vlgenrm_ray.settings import Settings

_MAX_RETRIES = 3
"""Restarts of a judge that was killed, and repetitions of the batch it was scoring."""
ScoreItems = Callable[[list[JudgeInput]], Awaitable[list[Judgement]]]


class LocalJudgeConfig(Settings):
    """A judge in an actor of the run."""

    engine: VllmConfig
    """vLLM engine of the judge, with its model."""
    judge: JudgeConfig = JudgeConfig()
    """Prompts and sampling of the judge."""
    num_cpus: float = Field(default=1.0, gt=0.0)
    """CPUs of the actor."""
    num_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of the actor."""


class LocalJudgeReward:
    """A `Reward` over one judge that scores one batch at a time; requests that arrive meanwhile form the next batch."""

    def __init__(
        self,
        score_items: ScoreItems,
        close: Callable[[], None] = lambda: None,
        *,
        deadline_s: float = 300.0,
        by_sentence: bool = False,
    ) -> None:
        """Wrap a judge.

        Args:
            score_items: Scores a batch of items with the judge; called with [] to wait until the judge has started.
            close: Terminates the judge.
            deadline_s: Seconds after which rollouts that are not judged get the status `timeout`.
            by_sentence: Return the rewards of sentences as segments.
        """
        self._score_items = score_items
        self._close = close
        self._deadline_s = deadline_s
        self._by_sentence = by_sentence
        self._batch_lock = asyncio.Lock()
        self._waiting: list[tuple[Sequence[Rollout], asyncio.Future[list[RewardOutput]]]] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`."""
        timeout = asyncio.timeout(self._deadline_s)
        try:
            async with timeout:
                return await self._score(rollouts)
        except TimeoutError:
            if not timeout.expired():
                raise
            detail = f"the local judge gave no answer within {self._deadline_s:g} s"
            return [RewardOutput(reward=None, status=TIMEOUT, detail=detail) for _ in rollouts]

    async def check(self) -> None:
        """See `Reward.check`. Waits until the engine has started."""
        await self._score_items([])

    async def close(self) -> None:
        """See `Reward.close`."""
        self._close()

    def image_dependent_part(self) -> Reward:
        """See `Reward.image_dependent_part`."""
        return self

    async def _score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        future: asyncio.Future[list[RewardOutput]] = asyncio.get_running_loop().create_future()
        self._waiting.append((rollouts, future))
        try:
            async with self._batch_lock:
                # Another call may have scored these rollouts in its batch.
                if not future.done():
                    await self._score_batch()
        except asyncio.CancelledError:
            future.cancel()
            raise
        return future.result()

    async def _score_batch(self) -> None:
        """Score all waiting requests in one batch. An error is set on all futures, so that every caller can retry."""
        batch = [(rollouts, future) for rollouts, future in self._waiting if not future.cancelled()]
        self._waiting = []
        items = [_judge_input(rollout) for rollouts, _ in batch for rollout in rollouts]
        try:
            judgements = iter(await self._score_items(items))
            outputs = [[self._output(rollout, next(judgements)) for rollout in rollouts] for rollouts, _ in batch]
        except Exception as error:
            for _, future in batch:
                if not future.cancelled():
                    future.set_exception(error)
            return
        except asyncio.CancelledError:
            # Only the caller that runs this batch was cancelled; the others are scored by the next batch.
            self._waiting = batch + self._waiting
            raise
        for (_, future), scores in zip(batch, outputs, strict=True):
            if not future.cancelled():
                future.set_result(scores)

    def _output(self, rollout: Rollout, judgement: Judgement) -> RewardOutput:
        critique = judgement.critiques[0].text if judgement.critiques else ""
        segments: tuple[Segment, ...] = ()
        if self._by_sentence and judgement.sentences and judgement.reward is not None:
            rewards = [(sentence.text, sentence.reward) for sentence in judgement.sentences]
            segments = sentence_segments(rollout.text, rewards, reward=judgement.reward)
        return RewardOutput(
            reward=judgement.reward,
            status=judgement.status,
            critique=critique,
            detail=judgement.detail,
            segments=segments,
        )


class JudgeActor:
    """Ray actor that runs a judge in its own process."""

    def __init__(
        self, config: LocalJudgeConfig, limits: ImageLimits, build: Callable[[VllmConfig], Generator] = VllmGenerator
    ) -> None:
        # A model of the hub states no settings; a folder may.
        judge = with_model_settings(config.judge, Path(config.engine.model))
        self._judge = Judge(judge, build(config.engine), limits)

    def score(self, items: list[JudgeInput]) -> list[Judgement]:
        """See `Judge.score`."""
        return self._judge.score(items) if items else []


def start_local_judge(
    config: LocalJudgeConfig, limits: ImageLimits, *, deadline_s: float = 300.0, by_sentence: bool = False
) -> LocalJudgeReward:
    """Start a judge actor and return the reward over it. The actor has no state, so Ray itself restarts it."""
    import ray
    from ray.exceptions import RayActorError

    options = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    actor_class = ray.remote(JudgeActor).options(max_restarts=_MAX_RETRIES, max_task_retries=_MAX_RETRIES, **options)
    actor: Any = actor_class.remote(config, limits)

    async def score_items(items: list[JudgeInput]) -> list[Judgement]:
        try:
            judgements: list[Judgement] = await actor.score.remote(items)
        except RayActorError as error:
            # An actor that fails to start will fail again; one that died may work after a restart.
            kind = RemoteRefusalError if error.actor_init_failed else RemoteError
            raise kind(f"the local judge died: {connection.actor_death_cause(error)}") from error
        return judgements

    return LocalJudgeReward(score_items, lambda: ray.kill(actor), deadline_s=deadline_s, by_sentence=by_sentence)


def _judge_input(rollout: Rollout) -> JudgeInput:
    question = rollout.question
    return JudgeInput(id=rollout.id, images=question.images, question=question.text, response=rollout.text)
