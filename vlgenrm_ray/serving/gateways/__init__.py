"""Gateways: what other trainers send, answered in their own format. One small file for each protocol.

Each has `def router(score: Score) -> fastapi.APIRouter`; the service mounts what `ROUTERS` lists.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlgenrm_ray.serving.score import Score

if TYPE_CHECKING:
    import fastapi

ROUTERS: "tuple[Callable[[Score], fastapi.APIRouter], ...]" = ()
