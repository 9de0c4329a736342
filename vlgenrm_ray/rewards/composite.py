"""Rewards made of other rewards: a weighted sum, and a reward that retries."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple, TypeVar

from pydantic import Field

from vlgenrm_ray.errors import RemoteError, RemoteRefusalError
from vlgenrm_ray.records import Rollout, Segment
from vlgenrm_ray.rewards.reward import OK, Reward, RewardOutput
from vlgenrm_ray.settings import Settings

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 15.0


class RewardTerm(NamedTuple):
    """One term of a weighted sum."""

    name: str
    weight: float
    reward: Reward


class WeightedSumReward:
    """The weighted sum of several rewards. A rollout that one of them could not score has no reward."""

    def __init__(self, terms: Sequence[RewardTerm]) -> None:
        self.terms = terms

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`. A failed rollout has the status of the first term that failed, after the term's name."""
        outputs = await asyncio.gather(*(term.reward.score(rollouts) for term in self.terms))
        return [self._sum(of_rollout) for of_rollout in zip(*outputs, strict=True)]

    async def check(self) -> None:
        """See `Reward.check`."""
        await asyncio.gather(*(term.reward.check() for term in self.terms))

    async def close(self) -> None:
        """See `Reward.close`."""
        await asyncio.gather(*(term.reward.close() for term in self.terms))

    def image_dependent_part(self) -> Reward | None:
        """See `Reward.image_dependent_part`: the sum of the image-dependent parts of the terms."""
        parts = [
            RewardTerm(term.name, term.weight, part)
            for term in self.terms
            if (part := term.reward.image_dependent_part())
        ]
        if len(parts) == len(self.terms):
            return self
        return WeightedSumReward(parts) if parts else None

    def _sum(self, outputs: Sequence[RewardOutput]) -> RewardOutput:
        total, critique = 0.0, ""
        for term, output in zip(self.terms, outputs, strict=True):
            if output.reward is None:
                return RewardOutput(reward=None, status=f"{term.name}: {output.status}", detail=output.detail)
            total += term.weight * output.reward
            critique = critique or output.critique
        return RewardOutput(reward=total, status=OK, critique=critique, segments=self._sum_segments(outputs))

    def _sum_segments(self, outputs: Sequence[RewardOutput]) -> tuple[Segment, ...]:
        """Sum the rewards of segments. A term without segments gives its reward to all of them.

        Where terms divide the response differently, the segments of the sum are the common parts.
        """
        segmented = [output for output in outputs if output.segments]
        starts = sorted({segment.start for output in segmented for segment in output.segments})
        end = max((output.segments[-1].end for output in segmented), default=0)
        return tuple(
            Segment(
                start=start,
                end=stop,
                reward=sum(
                    term.weight * _reward_at(output, start) for term, output in zip(self.terms, outputs, strict=True)
                ),
            )
            for start, stop in pairwise([*starts, end])
        )


def _reward_at(output: RewardOutput, position: int) -> float:
    """Return the reward of the last segment that begins at or before a position, of the response if there is none."""
    assert output.reward is not None
    before = [segment.reward for segment in output.segments if segment.start <= position]
    return before[-1] if before else output.reward


class RetryConfig(Settings):
    """Limits of the retries while a reward is unavailable."""

    renamed: ClassVar = {"start_s": "startup_timeout_s", "run_s": "outage_timeout_s"}

    startup_timeout_s: float = Field(default=600.0, ge=0.0)
    """Seconds to wait for the reward when a run starts: a service may still be loading its model."""
    outage_timeout_s: float = Field(default=300.0, ge=0.0)
    """Seconds to wait for the reward during a run. Then the run stops, and the same command resumes it."""


class RetryingReward:
    """A reward that retries another one while it is unavailable, with exponential backoff and up to a time limit."""

    def __init__(self, reward: Reward, retry: RetryConfig) -> None:
        self.reward = reward
        self.retry = retry

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`. Raises RemoteError after `outage_timeout_s`."""
        return await self._retry(lambda: self.reward.score(rollouts), self.retry.outage_timeout_s)

    async def check(self) -> None:
        """See `Reward.check`. Waits up to `startup_timeout_s` until the reward is available."""
        await self._retry(self.reward.check, self.retry.startup_timeout_s)

    async def close(self) -> None:
        """See `Reward.close`."""
        await self.reward.close()

    def image_dependent_part(self) -> Reward | None:
        """See `Reward.image_dependent_part`."""
        part = self.reward.image_dependent_part()
        return self if part is self.reward else part and RetryingReward(part, self.retry)

    async def _retry(self, call: Callable[[], Awaitable[_T]], limit_s: float) -> _T:
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return await call()
            except RemoteRefusalError:
                raise
            except RemoteError as error:
                waited = time.monotonic() - began
                if waited + pause > limit_s:
                    raise RemoteError(
                        f"no reward for {waited:.0f} s (limit {limit_s:g} s): {error}; once the reward is available "
                        "again, run the same command: it resumes where it stopped"
                    ) from error
                _log.warning("waiting for the reward (%.0f of %g s): %s", waited, limit_s, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _MAX_PAUSE_S)
