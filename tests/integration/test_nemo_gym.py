"""NeMo Gym's own code against the gateway, over sockets.

Gym 0.7 needs Python 3.13.14, so it is not part of the test environment, and these tests are skipped without it. On
Python 3.11: `pip download --no-deps --ignore-requires-python nemo-gym==0.7.0`, unpack the wheel into a folder on
PYTHONPATH, and install orjson, itsdangerous, hydra-core, omegaconf, yappi, pydot and wandb.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fastapi
import pytest
import uvicorn
from close_values import assert_close
from fake_gateway import FakeGateway
from ports import free_port

from vlgenrm_ray.serving.gateways import nemo_gym

pytest.importorskip("nemo_gym", reason="NeMo Gym is not installed")
pytest.importorskip("environment_servers.single_agent_turn.app", reason="NeMo Gym's environment servers are missing")

TURN = {
    "role": "user",
    "content": [
        {"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8=", "detail": "auto"},
        {"type": "input_text", "text": "What is it?"},
    ],
}


def response(text: str) -> dict[str, Any]:
    """An agent's answer in OpenAI's Responses form."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": content}
    fields = {"tool_choice": "auto", "parallel_tool_calls": True, "tools": []}
    return {"id": "r", "created_at": 0, "model": "policy", "object": "response", "output": [message], **fields}


def agent(text: str) -> fastapi.FastAPI:
    """An agent server that gives one answer."""
    app = fastapi.FastAPI()

    @app.post("/v1/agent_sessions")
    async def seed(body: dict[str, Any]) -> fastapi.Response:
        reply = fastapi.responses.JSONResponse({"agent_session_id": body["agent_session_id"]})
        reply.set_cookie("agent", "1")
        return reply

    @app.post("/v1/agent_sessions/close")
    async def close(body: dict[str, Any]) -> dict[str, Any]:
        return {"agent_session_id": body["agent_session_id"]}

    @app.post("/ng-rollout/{rollout}/v1/responses")
    async def respond(body: dict[str, Any]) -> dict[str, Any]:
        return response(text)

    return app


@contextmanager
def listening(app: fastapi.FastAPI) -> Iterator[int]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


def episode(text: str, gateway: FakeGateway, *, observability: bool = False) -> tuple[Any, Any]:
    """Run one episode of Gym's environment server, and its aggregation of the result."""
    from environment_servers.single_agent_turn import app as environment
    from nemo_gym.config_types import AgentServerRef, AggregateMetricsRequest, ResourcesServerRef
    from nemo_gym.global_config import OBSERVABILITY_ENABLED_KEY_NAME
    from nemo_gym.server_utils import BaseServerConfig, ServerClient
    from omegaconf import OmegaConf

    async def run(resources_port: int, agent_port: int) -> tuple[Any, Any]:
        servers = {
            "resources": {"resources_servers": {"judge": {"host": "127.0.0.1", "port": resources_port}}},
            "agent": {"responses_api_agents": {"policy": {"host": "127.0.0.1", "port": agent_port}}},
            OBSERVABILITY_ENABLED_KEY_NAME: observability,
        }
        client = ServerClient(
            head_server_config=BaseServerConfig(host="127.0.0.1", port=1), global_config_dict=OmegaConf.create(servers)
        )
        config = environment.SingleAgentTurnEnvironmentServerConfig(
            name="environment",
            host="127.0.0.1",
            port=2,
            entrypoint="app.py",
            resources_server=ResourcesServerRef(type="resources_servers", name="resources"),
            agent_server=AgentServerRef(type="responses_api_agents", name="agent"),
            cleanup_timeout_seconds=10,
        )
        server = environment.SingleAgentTurnEnvironmentServer(config=config, server_client=client)
        request = environment.SingleAgentTurnRequest.model_validate(
            {
                "episode_id": {"rollout_id": "0-0"},
                "task": {
                    "task_id": {"taskset": "shapes:test", "task_id": "0"},
                    "task_input": {"responses_create_params": {"input": [TURN]}, "expected_answer": "a cat"},
                },
            }
        )
        result = await server.run_request(request)
        rollout = {} if result.result is None else result.result.model_dump(mode="json")
        body = AggregateMetricsRequest(verify_responses=[rollout | {"_ng_task_index": 0, "_ng_rollout_index": 0}])
        return result, await server.aggregate_metrics(body)

    with listening(gateway.app) as resources_port, listening(agent(text)) as agent_port:
        return asyncio.run(run(resources_port, agent_port))


@pytest.fixture(autouse=True)
def aiohttp_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Gym's global HTTP client the settings that its head server would send."""
    from nemo_gym import server_utils

    monkeypatch.setattr(server_utils, "_GLOBAL_AIOHTTP_CLIENT", None)
    monkeypatch.setattr(server_utils, "get_global_config_dict", lambda *args, **kwargs: {})


@pytest.mark.parametrize("observability", [False, True])
def test_an_episode_of_gyms_environment_server_is_rewarded(observability: bool) -> None:
    gateway = FakeGateway(nemo_gym.router)
    episode_response, metrics = episode("0.75", gateway, observability=observability)
    assert episode_response.failure is None, episode_response.failure
    assert (episode_response.result.reward, episode_response.result.mask_sample) == (0.75, False)
    assert episode_response.result.model_dump()["expected_answer"] == "a cat"
    (item,) = gateway.items
    assert (item.response, item.reference) == ("0.75", "a cat")
    assert metrics.key_metrics["mean/reward"] == 0.75


@pytest.mark.parametrize(("status", "kind"), [("timeout", "judge_failed"), ("empty_text", "vlgenrm:empty_text")])
def test_gym_masks_a_sample_without_a_reward(status: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    episode_response, metrics = episode(f"fails:{status}", FakeGateway(nemo_gym.router))
    assert episode_response.failure is None, episode_response.failure
    result = episode_response.result
    assert (result.mask_sample, result.failure_kind) == (True, kind)
    assert metrics.key_metrics["coverage/masked_rollouts"] == 1
    assert not any(name.startswith("mean/") for name in metrics.key_metrics)
    # Gym warns about kinds outside its vocabulary.
    assert "unregistered failure_kind" not in caplog.text


def test_gyms_check_of_sessions_passes() -> None:
    from nemo_gym.base_resources_server import ResourcesSeedSessionRequest, ReverifyMode
    from nemo_gym.testing.session_conformance import check_resources_session_contract

    gateway = FakeGateway(nemo_gym.router)
    seed = ResourcesSeedSessionRequest.model_validate(
        {
            "resources_session_id": "session-1",
            "episode_id": {"rollout_id": "0-0"},
            "task_id": {"taskset": "shapes:test", "task_id": "0"},
            "task_data": {},
        }
    )
    check_resources_session_contract(gateway.app, seed, keeps_state=False)
    assert ReverifyMode(gateway.request("GET", "/reverify_mode").json()) is ReverifyMode.STATELESS


def test_aggregate_metrics_equal_gyms_own() -> None:
    import random

    from nemo_gym.reward_profile import compute_aggregate_metrics

    from vlgenrm_ray.serving.gym_metrics import aggregate_metrics

    draw = random.Random(0)
    for _ in range(100):
        rollouts = [
            {
                "_ng_task_index": task,
                "_ng_rollout_index": repeat,
                "reward": draw.choice([0.0, 1.0, draw.random()]),
                "mask_sample": draw.random() < 0.2,
                **({"verdict_mass": draw.random(), "flag": draw.random() < 0.5} if draw.random() < 0.6 else {}),
                **({"response": {"usage": {"input_tokens": draw.randint(1, 9)}}} if draw.random() < 0.5 else {}),
                **(
                    {"ng_perf": {"num_turns": draw.randint(0, 3), "completion_tokens": 5}}
                    if draw.random() < 0.5
                    else {}
                ),
            }
            for task in range(draw.randint(0, 4))
            for repeat in range(draw.randint(1, 3))
            if draw.random() < 0.85
        ]
        expected = json.loads(compute_aggregate_metrics(rollouts).model_dump_json())
        assert_close(aggregate_metrics(rollouts), expected)
