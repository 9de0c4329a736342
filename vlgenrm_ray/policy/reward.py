"""Who says how good a rollout is: a served judge, a judge of the run's own, a Python function, or several with weights.

A sample that nobody could score has no reward and a status that says why. It is never 0: 0 is a verdict.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import ConfigError, RemoteError, RemoteRefusalError
from vlgenrm_ray.judge.remote import AsyncRemoteJudge, ScoreInput
from vlgenrm_ray.judge.serve_handle import ServeHandleTransport
from vlgenrm_ray.policy import own_judge
from vlgenrm_ray.policy.function_reward import FunctionReward, load
from vlgenrm_ray.policy.own_judge import OwnJudgeConfig
from vlgenrm_ray.policy.scored import OK, Reward, RewardOutput
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.settings import Settings

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LONGEST_PAUSE_S = 15.0
_KNOCK = "Is there an image?"
_SERVE = "http://ray-serve"
"""In place of an address, where there is a handle."""


class RewardConfig(Settings):
    """One reward: exactly one of `url`, `handle`, `judge` and `function`."""

    name: str = Field(default="judge", pattern=r"^[\w.-]+$")
    weight: float = 1.0
    """The reward is the weighted sum of all, of samples that all of them scored."""
    url: str = ""
    """Address of a served judge."""
    handle: str = Field(default="", pattern=r"^([^:]+(:[^:]+)?)?$")
    """One served on this Ray cluster: its Ray Serve application (`vlgenrm serve` names it `vlgenrm`), or
    `application:deployment` where its gate is part of another."""
    token_variable: str = ""
    """Name of the environment variable that holds the service's token; the token itself stands in no file."""
    mode: Literal["cot", "direct"] | None = None
    """Of the served judge; None: as the service is configured. So with the following."""
    num_critiques: int | None = Field(default=None, ge=1)
    retries: int = Field(default=5, ge=0)
    """Times that a served judge is asked again, before `patience` begins."""
    deadline_s: float = Field(default=300.0, gt=0.0)
    """Seconds after which a sample that is not judged has no reward, whoever judges."""
    judge: OwnJudgeConfig | None = None
    """A judge in an actor of the run's own."""
    function: str = ""
    """`module:function` of (Question, response) -> float, or None where there is none; it may be a coroutine."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if [bool(self.url), bool(self.handle), bool(self.function), self.judge is not None].count(True) != 1:
            raise ValueError(
                "give exactly one of url or handle (of a served judge), judge (one of the run's own) and function"
            )
        if urlsplit(self.url).username is not None:
            raise ValueError("url: a token in an address ends up in files and logs; name it by token_variable")
        return self

    @model_validator(mode="after")
    def _is_heeded(self) -> Self:
        served = ("token_variable", "mode", "num_critiques", "retries")
        idle = [name for name in served if getattr(self, name) != type(self).model_fields[name].default]
        if idle and not (self.url or self.handle):
            raise ValueError(f"{', '.join(idle)}: of served judges only; a judge of the run's own has `judge.judge`")
        return self


class PatienceConfig(Settings):
    """How long a reward that cannot be had is waited for."""

    start_s: float = Field(default=600.0, ge=0.0)
    """When the run begins: a service may still be loading its model."""
    run_s: float = Field(default=300.0, ge=0.0)
    """In the middle; then the run stops, and the same command goes on with it."""


class ServedJudge:
    """A judge behind an address, or a handle."""

    def __init__(self, config: RewardConfig, limits: ImageLimits, judge: AsyncRemoteJudge | None = None) -> None:
        """`judge`: a client other than that of `config`. Raises ConfigError for a bad address or a lacking token."""
        self.config = config
        token = os.environ.get(config.token_variable) if config.token_variable else None
        if config.token_variable and not token:
            raise ConfigError(f"token_variable: the environment variable {config.token_variable} is not set")
        self.judge = judge or AsyncRemoteJudge(
            config.url or _SERVE,
            token=token,
            retries=config.retries,
            limits=limits,
            transport=ServeHandleTransport(config.handle) if config.handle else None,
        )

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward`."""
        asks = [self._ask(r.text, r.question.text, r.question.image.uri) for r in rollouts]
        replies = await self.judge.score(asks, deadline_s=self.config.deadline_s)
        return [
            RewardOutput(
                reward=r.reward,
                status=r.status.value,
                critique=r.critiques[0].text if r.critiques else "",
                detail=r.detail,
            )
            for r in replies
        ]

    async def check(self) -> None:
        """See `Reward`. Whatever is answered, somebody answers."""
        await self.judge.score([self._ask("No.", _KNOCK)])

    async def close(self) -> None:
        """See `Reward`."""
        await self.judge.close()

    def looking(self) -> Reward:
        """See `Reward`."""
        return self

    def _ask(self, response: str, question: str, image: str | None = None) -> ScoreInput:
        # Never with the question's right answer: a policy is judged by what can be seen.
        return ScoreInput(
            image=image,
            question=question,
            response=response,
            mode=self.config.mode,
            num_critiques=self.config.num_critiques,
        )


class WeightedSum:
    """Several rewards as one: a sample that one of them has not scored has none."""

    def __init__(self, rewards: Sequence[tuple[str, float, Reward]]) -> None:
        """Of each its name, weight and itself."""
        self.rewards = rewards

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward`. A status is that of the first that failed, with its name before it."""
        given = await asyncio.gather(*(reward.score(rollouts) for _, _, reward in self.rewards))
        return [self._together(scores) for scores in zip(*given, strict=True)]

    async def check(self) -> None:
        """See `Reward`."""
        await asyncio.gather(*(reward.check() for _, _, reward in self.rewards))

    async def close(self) -> None:
        """See `Reward`."""
        await asyncio.gather(*(reward.close() for _, _, reward in self.rewards))

    def looking(self) -> Reward | None:
        """See `Reward`: the sum of the parts that look."""
        parts = [(name, weight, part) for name, weight, reward in self.rewards if (part := reward.looking())]
        if len(parts) == len(self.rewards):
            return self
        return WeightedSum(parts) if parts else None

    def _together(self, scores: Sequence[RewardOutput]) -> RewardOutput:
        total, critique = 0.0, ""
        for (name, weight, _), scored in zip(self.rewards, scores, strict=True):
            if scored.reward is None:
                return RewardOutput(reward=None, status=f"{name}: {scored.status}", detail=scored.detail)
            total += weight * scored.reward
            critique = critique or scored.critique
        return RewardOutput(reward=total, status=OK, critique=critique)


class Patient:
    """A reward that waits for one that cannot be had, up to a limit."""

    def __init__(self, reward: Reward, patience: PatienceConfig) -> None:
        self.reward = reward
        self.patience = patience

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward`. Raises RemoteError once patience is over."""
        return await self._insist(lambda: self.reward.score(rollouts), self.patience.run_s)

    async def check(self) -> None:
        """See `Reward`. For the run's begin: waits until somebody answers."""
        await self._insist(self.reward.check, self.patience.start_s)

    async def close(self) -> None:
        """See `Reward`."""
        await self.reward.close()

    def looking(self) -> Reward | None:
        """See `Reward`."""
        part = self.reward.looking()
        return self if part is self.reward else part and Patient(part, self.patience)

    async def _insist(self, ask: Callable[[], Awaitable[_T]], limit_s: float) -> _T:
        begin, pause = time.monotonic(), 0.5
        while True:
            try:
                return await ask()
            except RemoteRefusalError:
                raise
            except RemoteError as error:
                waited = time.monotonic() - begin
                if waited + pause > limit_s:
                    raise RemoteError(
                        f"no reward for {waited:.0f} s (limit {limit_s:g} s): {error}; once it answers, run the same "
                        "command again: it goes on where it stopped"
                    ) from error
                _log.warning("waiting for the reward (%.0f of %g s): %s", waited, limit_s, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_S)


def build(configs: Sequence[RewardConfig], patience: PatienceConfig, limits: ImageLimits) -> Reward:
    """The run's reward. Raises ConfigError for what cannot be one."""
    if not configs:
        raise ConfigError("rewards: name at least one, a url or a function")
    return Patient(weighted([(c.name, c.weight, _one(c, limits)) for c in configs]), patience)


def weighted(rewards: Sequence[tuple[str, float, Reward]]) -> Reward:
    """The sum of rewards, of each its name, weight and itself; a lone one of weight 1 is that sum."""
    return rewards[0][2] if len(rewards) == 1 and rewards[0][1] == 1.0 else WeightedSum(rewards)


def _one(config: RewardConfig, limits: ImageLimits) -> Reward:
    if config.judge is not None:
        return own_judge.start(config.judge, limits, deadline_s=config.deadline_s)
    if config.function:
        return FunctionReward(load(config.function), config.deadline_s)
    return ServedJudge(config, limits)
