"""What a reward is: the one thing all rewards keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlgenrm_ray.records import Rollout

OK = "ok"
"""Status of what has a reward."""
TIMEOUT = "timeout"
"""Of what was not judged in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOutput:
    """What a reward says of one rollout."""

    reward: float | None
    """None unless `status` is `ok`."""
    status: str
    critique: str = ""
    detail: str = ""
    """Why there is none, for people."""


class Reward(Protocol):
    """Scores rollouts that have a text."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """One per rollout, in order. Raises RemoteError where there is nobody to ask."""
        ...

    async def check(self) -> None:
        """Raise RemoteError where there is nobody to ask, RemoteRefusalError where asking again would not help."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...

    def looking(self) -> "Reward | None":
        """The part of it that looks at the questions' images, and nothing else; None where none does."""
        ...
