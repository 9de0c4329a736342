"""What a gateway is given: the one function that turns a request into replies."""

from collections.abc import Awaitable, Callable

from vlgenrm_ray.errors import VlGenRMError
from vlgenrm_ray.judge.wire import ScoreRequest, ScoreResponse

Score = Callable[[ScoreRequest], Awaitable[ScoreResponse]]
"""Scores every item. Never raises for an item: what could not be scored has a status and no reward.

Raises OverloadedError where nothing of the request can be taken on; the service answers it with 503 and Retry-After,
so gateways let it pass.
"""


class OverloadedError(VlGenRMError, RuntimeError):
    """The queue has no place for any item of a request."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"the queue is full; ask again in {self.retry_after_s} s"
