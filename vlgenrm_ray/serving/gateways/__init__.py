"""Gateways: reward protocols of other trainers, answered by the service in their own format.

Each gateway is one module with `def router(score: Score) -> fastapi.APIRouter`, and is listed in `GATEWAYS`. Gateways
of a user's own are named by their import paths in the setting `serving.gateways`. `scoring` holds the steps that all
share; `require_rewards` applies the operator's `serving.failed_reward`:

    from fastapi import APIRouter
    from vlgenrm_ray.serving.gateways.scoring import Score, build_item, require_rewards, score_items

    def router(score: Score) -> APIRouter:
        routes = APIRouter()

        @routes.post("/my_reward")
        async def my_reward(body: dict[str, str]) -> dict[str, float]:
            item = build_item("body", question=body["question"], response=body["response"])
            (reward,) = require_rewards(await score_items(score, [item]))
            return {"reward": reward}

        return routes
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vlgenrm_ray import plugins

if TYPE_CHECKING:
    import fastapi

    from vlgenrm_ray.serving.gateways.scoring import Score

    BuildRouter = Callable[[Score], fastapi.APIRouter]

GATEWAYS = {
    "openrlhf": "vlgenrm_ray.serving.gateways.openrlhf:router",
    "slime": "vlgenrm_ray.serving.gateways.slime:router",
    "llama_factory": "vlgenrm_ray.serving.gateways.llama_factory:router",
    "nemo_gym": "vlgenrm_ray.serving.gateways.nemo_gym:router",
    "unirl": "vlgenrm_ray.serving.gateways.unirl:router",
}
"""Name -> import path of every built-in gateway that only scores. All of them are served.

`openai_chat` also needs the model itself as a chat model; `api.build_api` adds it."""


def load(additional: Sequence[str] = ()) -> "dict[str, BuildRouter]":
    """Import the built-in gateways and those that `serving.gateways` names.

    Args:
        additional: Import paths `package.module:router`.

    Returns:
        Name or import path -> function that builds the router.

    Raises:
        ConfigError: A gateway cannot be imported.
    """
    return {name: plugins.load(name, GATEWAYS, "serving.gateways") for name in (*GATEWAYS, *additional)}
