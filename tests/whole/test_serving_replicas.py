"""Several engines, as `vlgenrm serve` runs them on a Ray of its own: more of them under load, and one killed."""

import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from processes import below
from running_service import CANARY, START_S, until_ready

_SETTINGS = {
    # Room for two on two cores.
    "serving.replicas": "auto",
    "serving.num_cpus": 0.5,
    "serving.max_replicas": 2,
    "serving.upscale_delay_s": 1,
    "serving.engine.max_model_len": 512,
    "serving.engine.kv_cache_gib": 0.25,
    "serving.engine.threads": 1,
    "serving.experts": "null",
}
_CLIENTS = 500


@pytest.fixture
def served() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service's address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [word for name, value in _SETTINGS.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "vlgenrm_ray.cli", "serve", "--model", "pack:vlm", "--port", str(port), *settings]
    process = subprocess.Popen([*command, "--address", "local"], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            process.wait(60.0)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)


def engines(service: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The engine replicas' processes."""
    return below("ServeReplica:vlgenrm:engine", service.pid)


def body(seed: int) -> dict[str, object]:
    image = base64.b64encode(CANARY.data).decode()
    asked = {"image": image, "question": CANARY.question, "response": CANARY.better[0]}
    return {"items": [asked | {"seed": seed, "num_critiques": 1}]}


def test_load_brings_a_second_engine_and_the_loss_of_one_costs_no_request(
    served: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, service = served
    with httpx.Client(base_url=url, timeout=START_S) as http:
        until_ready(http, service)
        assert len(engines(service)) == 1

        async def run() -> list[httpx.Response]:
            killed = asyncio.Event()

            async def client(number: int) -> list[httpx.Response]:
                # One request is under way at any time: the queue stays deep, however fast engine and clients are.
                answered, last = [], False
                while not last:
                    last = killed.is_set()
                    answered.append(await shared.post("/v1/score", json=body(number + _CLIENTS * len(answered))))
                return answered

            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=url, timeout=START_S, limits=limits) as shared:
                clients = [asyncio.ensure_future(client(number)) for number in range(_CLIENTS)]
                end = time.monotonic() + START_S
                while len(engines(service)) < 2:
                    assert time.monotonic() < end, "no second engine in time"
                    assert not any(task.done() for task in clients), "a request failed"
                    await asyncio.sleep(0.5)
                engines(service)[0].kill()
                killed.set()
                return [reply for replies in await asyncio.gather(*clients) for reply in replies]

        replies = asyncio.run(run())
        assert {reply.status_code for reply in replies} == {200}
        assert {reply.json()["items"][0]["status"] for reply in replies} == {"ok"}
        end = time.monotonic() + START_S
        while len(engines(service)) < 2:
            assert time.monotonic() < end, "the lost engine was not replaced"
            time.sleep(0.5)
        assert http.get("/ready").status_code == 200
