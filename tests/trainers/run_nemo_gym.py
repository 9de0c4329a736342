"""NeMo Gym: episodes of its environment server with the service as the resources server.

The agent server answers with the sample's response. Sessions, verification and failures are handled by Gym.
"""

# /// script
# dependencies = [
#     "nemo-gym==0.7.0", "antlr4-python3-runtime==4.9.3", "hydra-core==1.3.2", "itsdangerous==2.2.0",
#     "omegaconf==2.3.0", "orjson==3.13.0", "pydot==4.0.1", "wandb==0.30.0", "yappi==1.7.6",
# ]
#
# [tool.vlgenrm]
# # It asks for Python 3.13.14; the parts that are used here run with 3.11.
# any_python = true
# ///

import asyncio
import os
import threading
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from environment_servers.single_agent_turn.app import (
    SingleAgentTurnEnvironmentServer,
    SingleAgentTurnEnvironmentServerConfig,
    SingleAgentTurnRequest,
)
from exchange import END_OF_TURN, Outcome, Request, Sample, respond
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from nemo_gym import server_utils
from nemo_gym.config_types import AgentServerRef, ResourcesServerRef
from omegaconf import OmegaConf


def run(request: Request) -> dict[str, Outcome]:
    """Play one episode per sample."""
    # In a cluster of Gym's, its head server sends these settings.
    server_utils.get_global_config_dict = lambda *_, **__: {}
    samples = [*request.samples, request.empty]
    port = start_agent([sample.response + END_OF_TURN for sample in samples])
    server = environment(port)

    async def play() -> list[Any]:
        return [await episode(server, number, sample) for number, sample in enumerate(samples)]

    *scored, last = asyncio.run(play())
    assert not any(result.mask_sample for result in scored)
    missing = f"masked: {last.failure_kind}" if last.mask_sample else repr(last.reward)
    return {"/verify": Outcome([result.reward for result in scored], missing)}


def environment(agent_port: int) -> SingleAgentTurnEnvironmentServer:
    """Return the environment server that connects agent and judge."""
    judge = urlsplit(os.environ["VLGENRM_URL"])
    # Gym has no setting for a token.
    host = f"any:{os.environ['VLGENRM_TOKEN']}@{judge.hostname}"
    servers = {
        "resources": {"resources_servers": {"judge": {"host": host, "port": judge.port}}},
        "agent": {"responses_api_agents": {"policy": {"host": "127.0.0.1", "port": agent_port}}},
        "observability_enabled": False,
    }
    client = server_utils.ServerClient(
        head_server_config=server_utils.BaseServerConfig(host="127.0.0.1", port=1),
        global_config_dict=OmegaConf.create(servers),
    )
    config = SingleAgentTurnEnvironmentServerConfig(
        name="environment",
        host="127.0.0.1",
        port=2,
        entrypoint="app.py",
        resources_server=ResourcesServerRef(type="resources_servers", name="resources"),
        agent_server=AgentServerRef(type="responses_api_agents", name="agent"),
        cleanup_timeout_seconds=10,
    )
    return SingleAgentTurnEnvironmentServer(config=config, server_client=client)


async def episode(server: SingleAgentTurnEnvironmentServer, number: int, sample: Sample) -> Any:
    """Return the result of one episode."""
    parts = [
        {"type": "input_image", "image_url": sample.data_url, "detail": "auto"},
        {"type": "input_text", "text": sample.question},
    ]
    task = {"responses_create_params": {"input": [{"role": "user", "content": parts}]}}
    request = {
        "episode_id": {"rollout_id": f"{number}-0"},
        "task": {"task_id": {"taskset": "shapes:test", "task_id": str(number)}, "task_input": task},
    }
    reply = await server.run_request(SingleAgentTurnRequest.model_validate(request))
    assert reply.failure is None, reply.failure
    return reply.result


def start_agent(responses: list[str]) -> int:
    """Start an agent server that answers the n-th task with the n-th response, and return its port."""
    app = FastAPI()

    @app.post("/v1/agent_sessions")
    async def seed(body: dict[str, Any]) -> Response:
        reply = JSONResponse({"agent_session_id": body["agent_session_id"]})
        reply.set_cookie("agent", "1")
        return reply

    @app.post("/v1/agent_sessions/close")
    async def close(body: dict[str, Any]) -> dict[str, Any]:
        return {"agent_session_id": body["agent_session_id"]}

    @app.post("/ng-rollout/{rollout}/v1/responses")
    async def answer(rollout: str, body: dict[str, Any]) -> dict[str, Any]:
        content = [{"type": "output_text", "text": responses[int(rollout.partition("-")[0])], "annotations": []}]
        message = {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": content}
        reply = {"id": "r", "created_at": 0, "model": "policy", "object": "response", "output": [message]}
        return reply | {"tool_choice": "auto", "parallel_tool_calls": True, "tools": []}

    agent = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    threading.Thread(target=agent.run, daemon=True).start()
    while not agent.started:
        threading.Event().wait(0.01)
    return agent.servers[0].sockets[0].getsockname()[1]


if __name__ == "__main__":
    respond(version("nemo-gym"), run)
