"""Who says how good a rollout is: a served judge, a judge of the run's own, a Python function, or several with weights.

A sample that nobody could score has no reward and a status that says why. It is never 0: 0 is a verdict.
"""

import asyncio
import importlib
import inspect
import logging
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from vlgenrm_ray.errors import ConfigError, RemoteError, RemoteRefusalError
from vlgenrm_ray.images import ImageLimits
from vlgenrm_ray.judge.handle import HandleTransport
from vlgenrm_ray.judge.remote import Ask, AsyncRemoteJudge
from vlgenrm_ray.policy import own_judge
from vlgenrm_ray.policy.own_judge import OwnJudgeConfig
from vlgenrm_ray.policy.scored import OK, Reward, Scored
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.settings import Settings

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
NOT_FINITE = "not_finite"
_LONGEST_PAUSE_S = 15.0
_KNOCK = "Is there an image?"
_SERVE = "http://ray-serve"
"""In place of an address, where there is a handle."""

Function = Callable[[Question, str], float | Awaitable[float | None] | None]
"""The user's: question and response -> reward, or None where there is none to give."""


class RewardConfig(Settings):
    """One reward: exactly one of `url`, `handle`, `judge` and `function`."""

    name: str = Field(default="judge", pattern=r"^[\w.-]+$")
    weight: float = 1.0
    """Of several: the reward is the weighted sum, of samples that all of them scored."""
    url: str = ""
    """Address of a served judge."""
    handle: str = Field(default="", pattern=r"^([^:]+(:[^:]+)?)?$")
    """One served on this Ray cluster: its Ray Serve application (`vlgenrm serve` names it `vlgenrm`), or
    `application:deployment` where its gate is part of another."""
    token_variable: str = ""
    """Name of the environment variable that holds the service's token; the token itself stands in no file."""
    mode: Literal["cot", "direct"] | None = None
    """Of the judge; None: as the service is configured. So with the following."""
    num_critiques: int | None = Field(default=None, ge=1)
    deadline_s: float | None = Field(default=None, gt=0.0)
    """Seconds after which a sample that is not judged has no reward; None waits for the service's own limit."""
    retries: int = Field(default=5, ge=0)
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
            transport=HandleTransport(config.handle) if config.handle else None,
        )

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scored]:
        """See `Reward`."""
        asks = [self._ask(r.text, r.question.text, r.question.image.uri) for r in rollouts]
        replies = await self.judge.score(asks, deadline_s=self.config.deadline_s)
        return [
            Scored(reward=r.reward, status=r.status.value, critique=r.critiques[0].text if r.critiques else "")
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

    def _ask(self, response: str, question: str, image: str | None = None) -> Ask:
        # Never with the question's right answer: a policy is judged by what can be seen.
        return Ask(
            image=image,
            question=question,
            response=response,
            mode=self.config.mode,
            num_critiques=self.config.num_critiques,
        )


class FunctionReward:
    """A Python function as a reward. What it raises is a status, and the run's log has the first of each kind."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._told: set[str] = set()

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scored]:
        """See `Reward`."""
        return [await self._one(rollout) for rollout in rollouts]

    async def check(self) -> None:
        """See `Reward`."""

    async def close(self) -> None:
        """See `Reward`."""

    def looking(self) -> None:
        """See `Reward`. It may, but by means of its own: a picture that is not the question's would only mislead it."""

    async def _one(self, rollout: Rollout) -> Scored:
        try:
            if inspect.iscoroutinefunction(self.function):
                given: Any = await self.function(rollout.question, rollout.text)
            else:
                # Not in the loop, which others wait for.
                given = await asyncio.to_thread(self.function, rollout.question, rollout.text)
            reward = None if given is None else float(given)
        except Exception as error:
            kind = type(error).__name__
            if kind not in self._told:
                self._told.add(kind)
                _log.warning("the reward function failed on %s: %s: %s", rollout.id, kind, error)
            return Scored(reward=None, status=kind)
        if reward is None:
            return Scored(reward=None, status="no_reward")
        return Scored(reward=reward, status=OK) if math.isfinite(reward) else Scored(reward=None, status=NOT_FINITE)


class WeightedSum:
    """Several rewards as one: a sample that one of them has not scored has none."""

    def __init__(self, rewards: Sequence[tuple[str, float, Reward]]) -> None:
        """Of each its name, weight and itself."""
        self.rewards = rewards

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scored]:
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

    def _together(self, scores: Sequence[Scored]) -> Scored:
        total, critique = 0.0, ""
        for (name, weight, _), scored in zip(self.rewards, scores, strict=True):
            if scored.reward is None:
                return Scored(reward=None, status=f"{name}: {scored.status}")
            total += weight * scored.reward
            critique = critique or scored.critique
        return Scored(reward=total, status=OK, critique=critique)


class Patient:
    """A reward that waits for one that cannot be had, up to a limit."""

    def __init__(self, reward: Reward, patience: PatienceConfig) -> None:
        self.reward = reward
        self.patience = patience

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scored]:
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
    made: list[tuple[str, float, Reward]] = [(c.name, c.weight, _one(c, limits)) for c in configs]
    # Of one alone, the weight says nothing that the algorithm's own scale would not.
    whole = made[0][2] if len(made) == 1 else WeightedSum(made)
    return Patient(whole, patience)


def _one(config: RewardConfig, limits: ImageLimits) -> Reward:
    if config.judge is not None:
        return own_judge.start(config.judge, limits)
    return FunctionReward(load(config.function)) if config.function else ServedJudge(config, limits)


def load(name: str) -> Function:
    """The function `module:function`. Raises ConfigError where there is none."""
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"function {name!r}: {error}; give module:function of an importable module") from error
    if not callable(found):
        raise ConfigError(f"function {name!r} is no function; give module:function")
    return found  # type: ignore[no-any-return]
