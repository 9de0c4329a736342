"""Results by key, the longest unused ones given up for new ones. Bounded in bytes."""

import sys
from collections import OrderedDict

from vlgenrm_ray.judge.wire import ScoreReply

_OVERHEAD = 1200
"""Bytes of a reply and its place in the table, texts apart; measured, generously."""


class Cache:
    """A bounded table of replies."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._replies: OrderedDict[str, ScoreReply] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> ScoreReply | None:
        """The reply of that key, None if there is none (any more)."""
        found = self._replies.get(key)
        if found is not None:
            self._replies.move_to_end(key)
        return found

    def put(self, key: str, reply: ScoreReply) -> None:
        """Keep a reply, unless it alone is larger than the whole."""
        size = _size(reply)
        if size > self.max_bytes:
            return
        if (old := self._replies.pop(key, None)) is not None:
            self.num_bytes -= _size(old)
        self._replies[key] = reply
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= _size(self._replies.popitem(last=False)[1])


def _size(reply: ScoreReply) -> int:
    return _OVERHEAD + sum(sys.getsizeof(critique.text) + 400 for critique in reply.critiques)
