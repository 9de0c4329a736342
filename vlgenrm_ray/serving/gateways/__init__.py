"""Gateways: what other trainers send, answered in their own format. One small file for each protocol.

Each has `def router(score: Score) -> fastapi.APIRouter`; the service mounts what `ROUTERS` lists.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlgenrm_ray.serving.gateways import llama_factory, nemo_gym, openai_chat, openrlhf, slime, unirl
from vlgenrm_ray.serving.score import Score

if TYPE_CHECKING:
    import fastapi

ROUTERS: "tuple[Callable[[Score], fastapi.APIRouter], ...]" = (
    openrlhf.router,
    slime.router,
    llama_factory.router,
    openai_chat.router,
    nemo_gym.router,
    unirl.router,
)
