"""Rewards from replies, and the policy for items without a reward. Every such item is counted and logged.

- `optional_rewards`, for trainers that mask a sample whose reward is None;
- `required_rewards`, for all others: raises RemoteError, unless the operator names a substitute reward in
  VLGENRM_FAILED_REWARD, knowing that the trainer cannot distinguish it from a verdict.

Both raise if more than half of the latest 256 samples have no reward: then the service fails, not single samples.
"""

import logging
import math
import os
from collections import Counter, deque
from collections.abc import Sequence

from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.judge.wire import ScoreReply

FAILED_REWARD_VARIABLE = "VLGENRM_FAILED_REWARD"
_WINDOW = 256
"""Latest samples over which the share of failures is taken."""
_MIN_SAMPLES = 32
_MAX_FAILED_SHARE = 0.5

log = logging.getLogger("vlgenrm_ray.adapters")
status_counts: Counter[str] = Counter()
"""Samples of this process by status, `ok` included."""
_latest_failed: deque[bool] = deque(maxlen=_WINDOW)


def optional_rewards(replies: Sequence[ScoreReply]) -> list[float | None]:
    """Return the rewards in order, None for items without one.

    Raises:
        RemoteError: More than half of the latest samples of this process have no reward.
    """
    failed = [reply for reply in replies if reply.reward is None]
    status_counts.update(reply.status.value for reply in replies)
    _latest_failed.extend(reply.reward is None for reply in replies)
    if failed:
        reasons = dict(Counter(reply.status.value for reply in failed))
        total = status_counts.total() - status_counts["ok"]
        log.warning("%d of %d samples without a reward: %s (%d so far)", len(failed), len(replies), reasons, total)
    if len(_latest_failed) >= _MIN_SAMPLES and sum(_latest_failed) > _MAX_FAILED_SHARE * len(_latest_failed):
        share = f"{sum(_latest_failed)} of the latest {len(_latest_failed)}"
        raise RemoteError(f"{share} samples have no reward; the last said {_reason(failed[-1]) if failed else 'ok'}")
    return [reply.reward for reply in replies]


def required_rewards(replies: Sequence[ScoreReply]) -> list[float]:
    """Return the rewards in order, the operator's substitute for items without one.

    Raises:
        RemoteError: An item has no reward and VLGENRM_FAILED_REWARD is not set, or see `optional_rewards`.
        ConfigError: VLGENRM_FAILED_REWARD is not a finite number.
    """
    rewards = optional_rewards(replies)
    substitute = _substitute()
    for reply in replies:
        if reply.reward is None and substitute is None:
            raise RemoteError(
                f"a sample has no reward: {_reason(reply)}; {FAILED_REWARD_VARIABLE} can name one for such samples"
            )
    return [reward for reward in (substitute if r is None else r for r in rewards) if reward is not None]


def reset_counts() -> None:
    """Reset the counts of this process."""
    status_counts.clear()
    _latest_failed.clear()


def _substitute() -> float | None:
    text = os.environ.get(FAILED_REWARD_VARIABLE)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{FAILED_REWARD_VARIABLE}={text!r}: must be a finite number")
    return number


def _reason(reply: ScoreReply) -> str:
    return f"{reply.status.value} {reply.detail}".rstrip()
