"""The table of gateways, and gateways of a user's own."""

import asyncio
from pathlib import Path

import httpx
import pytest
from fake_gateway import FakeGateway
from serving_examples import service

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.serving import gateways
from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.gateways import openai_chat
from vlgenrm_ray.serving.ingress import application
from vlgenrm_ray.shapes import pack_path

CUSTOM = """
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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `own_gateways` with one gateway."""
    folder = tmp_path / "own_gateways"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "mine.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_every_gateway_is_in_the_table_and_their_paths_differ() -> None:
    files = {path.stem for path in Path(gateways.__file__).parent.glob("*.py")} - {"__init__", "scoring"}
    # It also answers as a chat model, so `build_api` adds it with the service.
    assert set(gateways.GATEWAYS) | {"openai_chat"} == files
    apps = [FakeGateway(router).app.openapi()["paths"] for router in (*gateways.load().values(), openai_chat.router)]
    paths = [path for app in apps for path in app]
    assert len(paths) == len(set(paths)) == 13


def test_the_settings_add_a_gateway_of_the_users_own(package: None) -> None:
    served = service()
    served.config = served.config.model_copy(update={"gateways": ("own_gateways.mine:router",)})

    async def run() -> httpx.Response:
        api = build_api(served, ready=lambda: True, swap_model=lambda folder: NotImplemented)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as http:
            return await http.post("/my_reward", json={"question": "What is there?", "response": "A star."})

    reply = asyncio.run(run())
    assert (reply.status_code, reply.json()) == (200, {"reward": pytest.approx(0.9)})


@pytest.mark.parametrize("path", ["own_gateways.mine", "own_gateways.missing:router", "own_gateways.mine:missing"])
def test_a_gateway_that_cannot_be_imported_is_refused_before_the_service_starts(package: None, path: str) -> None:
    config = ServingConfig.model_validate({"engine": {"model": str(pack_path("vlm"))}, "gateways": [path]})
    with pytest.raises(ConfigError, match=r"serving\.gateways.*cannot be imported"):
        application(config)
