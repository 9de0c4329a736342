"""What an adapter does where the judge gave no reward. Every such item is counted and logged.

- `masked`, for trainers that leave out a sample whose reward is None;
- `required`, for the others: raises RemoteError, unless the operator names a number in VLGENRM_FAILED_REWARD that
  such samples shall have, knowing that the trainer cannot tell it from a verdict.

Both raise where more than half of the latest samples came without a reward: then it is not the samples that fail.
"""

import logging
import math
import os
from collections import Counter, deque
from collections.abc import Sequence

from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.judge.wire import ScoreReply

FAILED_REWARD = "VLGENRM_FAILED_REWARD"
_WINDOW, _LEAST, _MOST = 256, 32, 0.5

log = logging.getLogger("vlgenrm_ray.adapters")
counted: Counter[str] = Counter()
"""Samples of this process by status, `ok` included."""
_latest: deque[bool] = deque(maxlen=_WINDOW)


def masked(replies: Sequence[ScoreReply]) -> list[float | None]:
    """The rewards, None where there is none. Raises RemoteError if that has become the rule."""
    failed = [reply for reply in replies if reply.reward is None]
    counted.update(reply.status.value for reply in replies)
    _latest.extend(reply.reward is None for reply in replies)
    if failed:
        reasons = dict(Counter(reply.status.value for reply in failed))
        total = counted.total() - counted["ok"]
        log.warning("%d of %d samples without a reward: %s (%d so far)", len(failed), len(replies), reasons, total)
    if len(_latest) >= _LEAST and sum(_latest) > _MOST * len(_latest):
        share = f"{sum(_latest)} of the latest {len(_latest)}"
        raise RemoteError(f"{share} samples have no reward; the last said {_why(failed[-1]) if failed else 'ok'}")
    return [reply.reward for reply in replies]


def required(replies: Sequence[ScoreReply]) -> list[float]:
    """The rewards; where there is none, the operator's number. Raises RemoteError where that is not set."""
    rewards = masked(replies)
    substitute = _substitute()
    for reply in replies:
        if reply.reward is None and substitute is None:
            raise RemoteError(f"a sample has no reward: {_why(reply)}; {FAILED_REWARD} can name one for such samples")
    return [reward for reward in (substitute if r is None else r for r in rewards) if reward is not None]


def forget() -> None:
    """Start counting anew."""
    counted.clear()
    _latest.clear()


def _substitute() -> float | None:
    text = os.environ.get(FAILED_REWARD)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{FAILED_REWARD}={text!r}: must be a finite number")
    return number


def _why(reply: ScoreReply) -> str:
    return f"{reply.status.value} {reply.detail}".rstrip()
