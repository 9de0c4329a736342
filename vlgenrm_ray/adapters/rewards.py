"""Rewards from replies, and the policy for items without a reward. Every such item is counted and logged.

- `optional_rewards`, for trainers that mask a sample whose reward is None;
- `required_rewards`, for all others: raises RemoteError, unless the operator names a substitute reward in
  VLGENRM_FAILED_REWARD, knowing that the trainer cannot distinguish it from a verdict.

Both raise if more than half of the latest 256 samples have no reward: then the service fails, not single samples.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from vlgenrm_ray.errors import RemoteError
from vlgenrm_ray.judge.failed_rewards import (
    FAILED_REWARD_VARIABLE,
    FailedRewards,
    failure_reason,
    substitute_from_environment,
)
from vlgenrm_ray.judge.wire import ScoreReply

log = logging.getLogger("vlgenrm_ray.adapters")
_failed_rewards = FailedRewards()
status_counts = _failed_rewards.status_counts
"""Samples of this process by status, `ok` included."""


def optional_rewards(replies: Sequence[ScoreReply]) -> list[float | None]:
    """Return the rewards in order, None for items without one.

    Raises:
        RemoteError: More than half of the latest samples of this process have no reward.
    """
    failed = [reply for reply in replies if reply.reward is None]
    _failed_rewards.record(replies)
    if failed:
        reasons = dict(Counter(reply.status.value for reply in failed))
        total = _failed_rewards.num_failed
        log.warning("%d of %d samples without a reward: %s (%d so far)", len(failed), len(replies), reasons, total)
    if outage := _failed_rewards.outage():
        raise RemoteError(f"{outage}; the last said {failure_reason(failed[-1]) if failed else 'ok'}")
    return [reply.reward for reply in replies]


def required_rewards(replies: Sequence[ScoreReply]) -> list[float]:
    """Return the rewards in order, the operator's substitute for items without one.

    Raises:
        RemoteError: An item has no reward and VLGENRM_FAILED_REWARD is not set, or see `optional_rewards`.
        ConfigError: VLGENRM_FAILED_REWARD is not a number in [0, 1].
    """
    rewards = optional_rewards(replies)
    substitute = substitute_from_environment()
    for reply in replies:
        if reply.reward is None and substitute is None:
            raise RemoteError(
                f"a sample has no reward: {failure_reason(reply)}; {FAILED_REWARD_VARIABLE} can name one for such "
                "samples"
            )
    return [reward for reward in (substitute if r is None else r for r in rewards) if reward is not None]


def reset_counts() -> None:
    """Reset the counts of this process."""
    _failed_rewards.reset()
