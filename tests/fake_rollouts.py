"""Fakes for rollouts: engines that answer without a model, a pool of them, a reward that is a function."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import factories

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.policy.engine_pool import RolloutEnginePool
from vlgenrm_ray.policy.rollouts import UNSCORED, RolloutBatch, RolloutGroup, RolloutRequest
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards.reward import RewardOutput
from vlgenrm_ray.weight_sync.versions import WeightVersion


def questions(count: int) -> list[Question]:
    return [factories.question(f"q{i}") for i in range(count)]


def rollout_requests(count: int, step: int = 0) -> list[RolloutRequest]:
    return [RolloutRequest(question=question, step=step, seed=i) for i, question in enumerate(questions(count))]


def weight_version(number: int) -> WeightVersion[Any]:
    return WeightVersion(version=number, checksum="", parts=())


def rollout_batch(
    *groups: RolloutGroup, step: int = 0, statuses: Mapping[str, int] | None = None, num_replaced: int = 0
) -> RolloutBatch:
    """Return a batch as an orchestrator collects it, with the statuses of the groups unless others are given."""
    counts = Counter(rollout.status for group in groups for rollout in group)
    return RolloutBatch(
        step=step,
        groups=groups,
        statuses=counts if statuses is None else statuses,
        num_replaced=num_replaced,
        sampling_s=0.5,
        scoring_s=0.25,
    )


class FakeRolloutEngine:
    """A `RolloutEngine` that answers "<question id> <rollout index>", and dies after `num_groups` groups.

    A question with "blind" in its text has no readable image.
    """

    def __init__(self, index: int, num_groups: float = float("inf"), load_s: float = 0.0, group_s: float = 0.0) -> None:
        """`load_s`: seconds to load weights. `group_s`: seconds to sample a group."""
        self.name = f"fake engine {index}"
        self.num_groups = num_groups
        self.load_s = load_s
        self.group_s = group_s
        self.version = 0
        self.sampled: list[str] = []
        """Ids of the questions whose groups were finished."""
        self.closed = False
        self.num_loads = 0

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> AsyncIterator[tuple[int, RolloutGroup]]:
        for index in reversed(range(len(requests))):
            await asyncio.sleep(self.group_s)
            if self.num_groups <= 0:
                raise EngineLostError("killed")
            self.num_groups -= 1
            request = requests[index]
            self.sampled.append(request.question.id)
            yield index, tuple(self._rollout(request, number) for number in range(sampling.n))

    def _rollout(self, request: RolloutRequest, index: int) -> Rollout:
        return factories.rollout(
            request.rollout_id(index),
            question=request.question,
            step=request.step,
            version=self.version,
            text=f"{request.question.id} {index}",
            reward=None,
            status="image_missing" if "blind" in request.question.text else UNSCORED,
        )

    async def load(self, weights: WeightVersion[Any]) -> int:
        await asyncio.sleep(self.load_s)
        if self.num_groups <= 0:
            raise EngineLostError("killed")
        self.version = weights.version
        self.num_loads += 1
        return self.version

    def close(self) -> None:
        self.closed = True


class FakeRolloutEngines:
    """An `RolloutEnginePool` of fake engines."""

    def __init__(
        self, *engines: FakeRolloutEngine, num_engines: int, max_restarts: int = 2, stall_s: float = 60.0
    ) -> None:
        """`engines`: the first ones to be started. Those started later never die."""
        self.started: list[FakeRolloutEngine] = []
        """All engines that were ever started."""
        self._first = list(engines)
        self.pool = RolloutEnginePool(
            self._start,
            num_engines=num_engines,
            max_restarts=max_restarts,
            stall_timeout_s=stall_s,
            load_timeout_s=stall_s,
        )

    async def _start(self) -> FakeRolloutEngine:
        await asyncio.sleep(0)
        engine = self._first.pop(0) if self._first else FakeRolloutEngine(len(self.started))
        self.started.append(engine)
        return engine


class FakeReward:
    """A reward by a function of the rollout; records the questions of the groups it scored."""

    def __init__(self, score_one: Callable[[Rollout], RewardOutput]) -> None:
        self.score_one = score_one
        self.scored: list[str] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        self.scored.append(rollouts[0].question.id)
        return [self.score_one(rollout) for rollout in rollouts]

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    def image_dependent_part(self) -> "FakeReward":
        return self
