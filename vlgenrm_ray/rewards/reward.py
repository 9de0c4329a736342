"""The `Reward` protocol: scores rollouts, and gives a status where a score is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlgenrm_ray.judge import sentences
from vlgenrm_ray.records import Rollout, Segment

OK = "ok"
"""Status of a rollout that has a reward."""
TIMEOUT = "timeout"
"""Status of a rollout that was not scored before the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOutput:
    """The reward of one rollout, or the reason why it has none."""

    reward: float | None
    """None unless `status` is `ok`. A missing reward is never 0, because 0 is a verdict."""
    status: str
    """`ok`, or a short name of the failure, by which failures are counted."""
    critique: str = ""
    """Critique of the judge; empty for other rewards."""
    detail: str = ""
    """Explanation of a failure, for people."""
    segments: tuple[Segment, ...] = ()
    """Rewards of parts of the response, for `granularity: claim`; () if only the whole response has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentedReward:
    """Value that a reward function may return: the reward of a response, and rewards of its parts."""

    reward: float
    segments: tuple[Segment, ...]
    """Parts in order, without overlap. Used with `granularity: claim`."""


def sentence_segments(response: str, rewards: Sequence[tuple[str, float]], *, reward: float) -> tuple[Segment, ...]:
    """Locate judged sentences in a response.

    Args:
        response: The response.
        rewards: Each judged sentence with its reward, in order.
        reward: Reward of the whole response, which text before the first sentence gets: a thinking led to all of them.

    Returns:
        Segments in order; () if the sentences cannot be located, so that only the whole response has a reward.
    """
    spans = sentences.locate(response, [text for text, _ in rewards])
    if not spans:
        return ()
    segments = [Segment(start=s, end=e, reward=r) for (s, e), (_, r) in zip(spans, rewards, strict=True)]
    before = response[: spans[0][0]]
    return (*((Segment(start=0, end=len(before), reward=reward),) if before.strip() else ()), *segments)


class Reward(Protocol):
    """Scorer of rollouts that have a text."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """Score rollouts.

        Args:
            rollouts: Rollouts with a text, of any number of questions.

        Returns:
            One output per rollout, in order. A failure of a single rollout is a status, not an exception.

        Raises:
            RemoteError: The reward is unavailable.
        """
        ...

    async def check(self) -> None:
        """Raise RemoteError if the reward is unavailable, RemoteRefusalError if a retry would not help."""
        ...

    async def close(self) -> None:
        """Release connections and processes."""
        ...

    def image_dependent_part(self) -> "Reward | None":
        """Return the part of the reward that is computed from the image itself, or None if there is none.

        Image ablation (see `image_ablation`) scores with this part.
        """
        ...
