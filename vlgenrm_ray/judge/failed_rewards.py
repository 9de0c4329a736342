"""Samples without a reward: their counts, and the operator's choice of a substitute.

A missing reward is never 0: it is masked, refused, or replaced by a number that the operator has named, knowing that
the trainer cannot distinguish it from a verdict. Each one is counted. If more than half of the latest samples have no
reward, the service fails, not single samples, and no substitute hides it.

Adapters count the samples of their process (`adapters.rewards`), the gateways of a service theirs
(`serving.gateways.scoring`).
"""

import math
import os
from collections import Counter, deque
from collections.abc import Sequence

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.wire import ScoreReply

FAILED_REWARD_VARIABLE = "VLGENRM_FAILED_REWARD"
"""Environment variable with the substitute reward."""
WINDOW = 256
"""Latest samples over which the share of failures is taken."""
_MIN_SAMPLES = 32
_MAX_FAILED_SHARE = 0.5


class FailedRewards:
    """Counts of one process or gateway."""

    def __init__(self) -> None:
        self.status_counts: Counter[str] = Counter()
        """Samples by status, `ok` included."""
        self._latest_failed: deque[bool] = deque(maxlen=WINDOW)

    @property
    def num_failed(self) -> int:
        """Samples without a reward so far."""
        return self.status_counts.total() - self.status_counts["ok"]

    def record(self, replies: Sequence[ScoreReply]) -> None:
        """Count replies."""
        self.status_counts.update(reply.status.value for reply in replies)
        self._latest_failed.extend(reply.reward is None for reply in replies)

    def outage(self) -> str:
        """Explain that more than half of the latest samples have no reward; "" if that is not the case."""
        num_failed, num_samples = sum(self._latest_failed), len(self._latest_failed)
        if num_samples < _MIN_SAMPLES or num_failed <= _MAX_FAILED_SHARE * num_samples:
            return ""
        return f"{num_failed} of the latest {num_samples} samples have no reward"

    def reset(self) -> None:
        """Forget all counts."""
        self.status_counts.clear()
        self._latest_failed.clear()


def substitute_from_environment() -> float | None:
    """Return the operator's substitute reward, None if there is none.

    Raises:
        ConfigError: VLGENRM_FAILED_REWARD is not a number in [0, 1].
    """
    text = os.environ.get(FAILED_REWARD_VARIABLE)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # Rewards are in [0, 1]. A number outside would outweigh every verdict; NaN is in no range.
    if not 0.0 <= number <= 1.0:
        raise ConfigError(f"{FAILED_REWARD_VARIABLE}={text!r}: must be a number in [0, 1], as rewards are")
    return number


def failure_reason(reply: ScoreReply) -> str:
    """Return why a reply has no reward, in words."""
    return f"{reply.status.value}: {reply.detail}" if reply.detail else reply.status.value
