"""A step's rollouts with their rewards: what is finished is scored while the rest is written. Pure asyncio, no Ray."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.policy import order
from vlgenrm_ray.policy.advantages import GroupStatus
from vlgenrm_ray.policy.batching import group_statuses
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.pool import Pool
from vlgenrm_ray.policy.rollouts import UNSCORED, Asked, Group, RolloutsConfig
from vlgenrm_ray.policy.scored import Reward, RewardOutput
from vlgenrm_ray.policy.sight import Look, looks
from vlgenrm_ray.records import Question, Rollout

_LONGEST_DETAIL = 300
"""Characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a step learns from, or an evaluation looks at."""

    step: int
    groups: tuple[Group, ...]
    """In the order of the questions asked; a group that was replaced is not among them."""
    statuses: Mapping[str, int]
    """Samples of each status (`ok`: has a reward), those of replaced groups included."""
    num_replaced: int
    """Groups that others replaced, for they taught nothing."""
    sampling_s: float
    """Until the last group was written."""
    scoring_s: float
    """From then until the last reward came."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Of statuses that are failures of rewards, what was said of the first sample that had it."""
    looks: tuple[Look, ...] = ()
    """Of an evaluation: some of its answers, judged by blank pictures as well."""

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """All groups', one behind the other."""
        return tuple(rollout for group in self.groups for rollout in group)


class Collecting:
    """How a run collects: its questions in order, its engines, its reward."""

    def __init__(
        self,
        questions: Sequence[Question],
        *,
        pool: Pool,
        reward: Reward,
        rollouts: RolloutsConfig,
        algorithm: AlgorithmConfig,
        questions_per_step: int,
        seed: int,
    ) -> None:
        """Raises ConfigError where the questions are fewer than a step asks."""
        order.asked(len(questions), questions_per_step, seed=seed, step=0)
        self.questions = questions
        self.pool = pool
        self.reward = reward
        self.rollouts = rollouts
        self.algorithm = algorithm
        self.questions_per_step = questions_per_step
        self.seed = seed

    async def step(self, step: int) -> Collected:
        """The rollouts of a step, by its number alone: as many groups as it asks questions.

        With `resample_rounds`, groups that teach nothing are replaced by those of further questions; what teaches
        nothing after the last round stays. Raises RemoteError, EngineLostError.
        """
        size, number = self.questions_per_step, len(self.questions)
        places = order.asked(number, size, seed=self.seed, step=step)
        found = await self._ask(self._asked(places, step), self.rollouts.sampling(), step)
        if not self.algorithm.resample_rounds:
            return found
        further = order.others(number, size, seed=self.seed, step=step)
        for _ in range(self.algorithm.resample_rounds):
            dull = [at for at, useful in enumerate(self._teaching(found.groups)) if not useful]
            instead, further = further[: len(dull)], further[len(dull) :]
            if not instead:
                break
            more = await self._ask(self._asked(instead, step), self.rollouts.sampling(), step)
            found = _replaced(found, more, dull)
        return found

    async def evaluate(self, questions: Sequence[Question], step: int, *, blank: int = 0) -> Collected:
        """One answer to each question, with its reward; `blank` of them are judged once more, by blank pictures.

        Every evaluation draws by the same chances. Raises RemoteError, EngineLostError.
        """
        asked = [
            Asked(question=question, step=step, seed=order.seed_of(self.seed, 0, question.id), occasion="e")
            for question in questions
        ]
        found = await self._ask(asked, self.rollouts.answering(), step)
        return replace(found, looks=await looks(self.reward, found.rollouts, blank))

    def _asked(self, places: Sequence[int], step: int) -> list[Asked]:
        questions = [self.questions[place] for place in places]
        return [Asked(question=q, step=step, seed=order.seed_of(self.seed, step, q.id)) for q in questions]

    async def _ask(self, asked: Sequence[Asked], sampling: Sampling, step: int) -> Collected:
        begin = time.monotonic()
        groups: dict[int, asyncio.Task[Group]] = {}
        details: dict[str, str] = {}
        try:
            async with aclosing(cast("Any", self.pool.groups(asked, sampling))) as finished:
                async for place, group in finished:
                    groups[place] = asyncio.ensure_future(self._score(group, details))
                    _raise_first_failure(groups.values())
            written = time.monotonic()
            scored = await asyncio.gather(*(groups[place] for place in range(len(asked))))
        except BaseException:
            for task in groups.values():
                task.cancel()
            await asyncio.gather(*groups.values(), return_exceptions=True)
            raise
        return Collected(
            step=step,
            groups=tuple(scored),
            statuses=Counter(rollout.status for group in scored for rollout in group),
            num_replaced=0,
            sampling_s=written - begin,
            scoring_s=time.monotonic() - written,
            details=details,
        )

    async def _score(self, group: Group, details: dict[str, str]) -> Group:
        """The group with rewards; those that have no text keep the status that says why. Adds to the details."""
        unscored = [rollout for rollout in group if rollout.status == UNSCORED]
        if not unscored:
            return group
        given = await self.reward.score(unscored)
        for rollout, scored in zip(unscored, given, strict=True):
            if scored.reward is None:
                details.setdefault(
                    scored.status, f"{scored.detail[:_LONGEST_DETAIL] or 'no reason given'} ({rollout.id})"
                )
        scores = iter(given)
        return tuple(_settled(rollout, next(scores)) if rollout.status == UNSCORED else rollout for rollout in group)

    def _teaching(self, groups: Sequence[Group]) -> list[bool]:
        """Whether each group's rewards, as they will be learnt from, differ enough and are enough."""
        statuses = group_statuses(groups, self.algorithm, max_tokens=self.rollouts.max_tokens)
        return [status is GroupStatus.USED for status in statuses]


def _settled(rollout: Rollout, scored: RewardOutput) -> Rollout:
    return replace(rollout, reward=scored.reward, status=scored.status, critique=scored.critique)


def _raise_first_failure(tasks: "Iterable[asyncio.Task[Group]]") -> None:
    """A reward that is gone ends the collecting at once, not when the last sample is written."""
    for task in tasks:
        if task.done():
            task.result()


def _replaced(found: Collected, more: Collected, dull: Sequence[int]) -> Collected:
    """`found` with groups of `more` in the first of the places `dull`."""
    groups = list(found.groups)
    for place, group in zip(dull, more.groups, strict=False):
        groups[place] = group
    return replace(
        found,
        groups=tuple(groups),
        statuses=Counter(found.statuses) + Counter(more.statuses),
        details={**more.details, **found.details},
        num_replaced=found.num_replaced + len(more.groups),
        sampling_s=found.sampling_s + more.sampling_s,
        scoring_s=found.scoring_s + more.scoring_s,
    )
