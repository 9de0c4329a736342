"""What a gateway is given: the one function that turns a request into replies."""

from collections.abc import Awaitable, Callable

from vlgenrm_ray.judge.wire import ScoreRequest, ScoreResponse

Score = Callable[[ScoreRequest], Awaitable[ScoreResponse]]
"""Scores every item. Never raises for an item: what could not be scored has a status and no reward.

Raises `limits.Overloaded` where nothing of the request can be taken on; the service answers 503 for it.
"""
