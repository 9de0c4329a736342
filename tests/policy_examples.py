"""Rollout engines without models, for the pool and the collector: what they say, and when they die, is written down."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import factories

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.weight_sync import Weights
from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.pool import Pool
from vlgenrm_ray.policy.rollouts import UNSCORED, Asked, Group
from vlgenrm_ray.policy.scored import RewardOutput
from vlgenrm_ray.records import Question, Rollout


def questions(number: int) -> list[Question]:
    return [factories.question(f"q{i}") for i in range(number)]


def asked(number: int, step: int = 0) -> list[Asked]:
    return [Asked(question=question, step=step, seed=i) for i, question in enumerate(questions(number))]


def version(number: int) -> Weights[Any]:
    return Weights(version=number, checksum="", parts=())


def collected(
    *groups: Group, step: int = 0, statuses: Mapping[str, int] | None = None, num_replaced: int = 0
) -> Collected:
    """Groups as a collector gives them; their own statuses unless others are named."""
    counted = Counter(rollout.status for group in groups for rollout in group)
    return Collected(
        step=step,
        groups=groups,
        statuses=counted if statuses is None else statuses,
        num_replaced=num_replaced,
        sampling_s=0.5,
        scoring_s=0.25,
    )


class StrawSampler:
    """Says "<question> <sample>"; is lost when it has handed over `lives` groups."""

    def __init__(self, number: int, lives: float = float("inf"), load_s: float = 0.0, pace_s: float = 0.0) -> None:
        """`load_s` and `pace_s`: seconds for new weights, and for a group."""
        self.name = f"straw {number}"
        self.lives = lives
        self.load_s = load_s
        self.pace_s = pace_s
        self.version = 0
        self.asked: list[str] = []
        self.closed = False
        self.loads = 0

    async def sample(self, asked: Sequence[Asked], sampling: Sampling) -> AsyncIterator[tuple[int, Group]]:
        for place in reversed(range(len(asked))):
            await asyncio.sleep(self.pace_s)
            if self.lives <= 0:
                raise EngineLostError("killed")
            self.lives -= 1
            one = asked[place]
            self.asked.append(one.question.id)
            yield place, tuple(self._rollout(one, number) for number in range(sampling.n))

    def _rollout(self, one: Asked, number: int) -> Rollout:
        text = f"{one.question.id} {number}"
        status = UNSCORED if "blind" not in one.question.text else "image_missing"
        made = factories.rollout(one.id(number), question=one.question, step=one.step, version=self.version)
        return factories.rollout(
            **{field: getattr(made, field) for field in ("id", "question", "step", "version")},
            text=text,
            reward=None,
            status=status,
        )

    async def load(self, weights: Weights[Any]) -> int:
        await asyncio.sleep(self.load_s)
        if self.lives <= 0:
            raise EngineLostError("killed")
        self.version = weights.version
        self.loads += 1
        return self.version

    def close(self) -> None:
        self.closed = True


class Straw:
    """A pool of straw samplers; `made` are all that were ever started."""

    def __init__(self, *samplers: StrawSampler, size: int, restarts: int = 2, stall_s: float = 60.0) -> None:
        """`samplers`: the first to be started; further ones live for ever."""
        self.made: list[StrawSampler] = []
        self._first = list(samplers)
        self.pool = Pool(self._start, size=size, restarts=restarts, stall_timeout_s=stall_s, load_timeout_s=stall_s)

    async def _start(self) -> StrawSampler:
        await asyncio.sleep(0)
        sampler = self._first.pop(0) if self._first else StrawSampler(len(self.made))
        self.made.append(sampler)
        return sampler


class StrawReward:
    """Scores by a function of the rollout; keeps when it was asked."""

    def __init__(self, judge: Callable[[Rollout], RewardOutput]) -> None:
        self.judge = judge
        self.asked: list[str] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        self.asked.append(rollouts[0].question.id)
        return [self.judge(rollout) for rollout in rollouts]

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    def looking(self) -> "StrawReward":
        return self
