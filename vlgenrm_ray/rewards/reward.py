"""The `Reward` protocol: scores rollouts, and gives a status where a score is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlgenrm_ray.records import Rollout

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
