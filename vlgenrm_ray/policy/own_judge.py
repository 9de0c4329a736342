"""A judge in an actor of the run's own: no service is needed, and its GPU is not shared."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import Field

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.contracts import Generator
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import RemoteError, RemoteRefusalError
from vlgenrm_ray.judge.judge import Judge, JudgeConfig, JudgeInput
from vlgenrm_ray.policy.scored import TIMEOUT, Reward, RewardOutput
from vlgenrm_ray.records import Judgement, Rollout
from vlgenrm_ray.settings import Settings

_RETRIES = 3
"""Times that what a killed judge was asked is asked of the next."""
Score = Callable[[list[JudgeInput]], Awaitable[list[Judgement]]]


class OwnJudgeConfig(Settings):
    """A judge of the run's own."""

    engine: VllmConfig
    judge: JudgeConfig = JudgeConfig()
    num_cpus: float = Field(default=1.0, gt=0.0)
    num_gpus: float = Field(default=0.0, ge=0.0)


class OwnJudge:
    """A reward over one judge that takes one batch at a time: what comes meanwhile is the next batch."""

    def __init__(self, score: Score, close: Callable[[], None] = lambda: None, *, deadline_s: float = 300.0) -> None:
        """`deadline_s`: after which what is not judged has no reward."""
        self._ask = score
        self._deadline_s = deadline_s
        self._close = close
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[Sequence[Rollout], asyncio.Future[list[RewardOutput]]]] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward`."""
        late = asyncio.timeout(self._deadline_s)
        try:
            async with late:
                return await self._score(rollouts)
        except TimeoutError:
            if not late.expired():
                raise
            why = f"the run's own judge gave no answer within {self._deadline_s:g} s"
            return [RewardOutput(reward=None, status=TIMEOUT, detail=why) for _ in rollouts]

    async def _score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        mine: asyncio.Future[list[RewardOutput]] = asyncio.get_running_loop().create_future()
        self._waiting.append((rollouts, mine))
        try:
            async with self._turn:
                if not mine.done():
                    await self._batch()
        except asyncio.CancelledError:
            mine.cancel()
            raise
        return mine.result()

    async def check(self) -> None:
        """See `Reward`. Waits until the engine has started."""
        await self._ask([])

    async def close(self) -> None:
        """See `Reward`."""
        self._close()

    def looking(self) -> Reward:
        """See `Reward`."""
        return self

    async def _batch(self) -> None:
        """Score all that waits. What fails stays for those who asked to ask again."""
        batch, self._waiting = [(asked, answer) for asked, answer in self._waiting if not answer.cancelled()], []
        items = [_item(rollout) for rollouts, _ in batch for rollout in rollouts]
        try:
            judged = iter([_scored(judgement) for judgement in await self._ask(items)])
        except Exception as error:
            for _, answer in batch:
                if not answer.cancelled():
                    answer.set_exception(error)
            return
        except asyncio.CancelledError:
            # Whoever asked for the others is not to be forgotten with this one.
            self._waiting = batch + self._waiting
            raise
        for rollouts, answer in batch:
            scores = [next(judged) for _ in rollouts]
            if not answer.cancelled():
                answer.set_result(scores)


class JudgeActor:
    """A judge in a process of its own."""

    def __init__(
        self, config: OwnJudgeConfig, limits: ImageLimits, build: Callable[[VllmConfig], Generator] = VllmGenerator
    ) -> None:
        self._judge = Judge(config.judge, build(config.engine), limits)

    def score(self, items: list[JudgeInput]) -> list[Judgement]:
        """See `Judge.score`."""
        return self._judge.score(items) if items else []


def start(config: OwnJudgeConfig, limits: ImageLimits, *, deadline_s: float = 300.0) -> OwnJudge:
    """Start the actor and return the reward over it. It has no state: Ray itself starts it again."""
    import ray
    from ray.exceptions import RayActorError

    options = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    made = ray.remote(JudgeActor).options(max_restarts=_RETRIES, max_task_retries=_RETRIES, **options)
    actor: Any = made.remote(config, limits)

    async def score(items: list[JudgeInput]) -> list[Judgement]:
        try:
            judgements: list[Judgement] = await actor.score.remote(items)
        except RayActorError as error:
            # What fails to start fails to start again; what died may live.
            kind = RemoteRefusalError if error.actor_init_failed else RemoteError
            raise kind(f"the run's own judge died: {connection.why_died(error)}") from error
        return judgements

    return OwnJudge(score, lambda: ray.kill(actor), deadline_s=deadline_s)


def _item(rollout: Rollout) -> JudgeInput:
    asked = rollout.question
    return JudgeInput(id=rollout.id, images=(asked.image,), question=asked.text, response=rollout.text)


def _scored(judgement: Judgement) -> RewardOutput:
    critique = judgement.critiques[0].text if judgement.critiques else ""
    return RewardOutput(reward=judgement.reward, status=judgement.status, critique=critique)
