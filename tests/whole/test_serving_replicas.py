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
from served import CANARY, START_S, until_ready

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


@pytest.fixture
def served() -> Iterator[tuple[str, psutil.Process]]:
    """The service's address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [word for name, value in _SETTINGS.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "vlgenrm_ray.cli", "serve", "--model", "pack:vlm", "--port", str(port), *settings]
    process = subprocess.Popen([*command, "--address", "local"], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60.0)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)


def engines(service: psutil.Process) -> list[psutil.Process]:
    """The engine replicas' processes."""
    return [p for p in service.children(recursive=True) if "ServeReplica:vlgenrm:engine" in _title(p)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def body(seed: int) -> dict[str, object]:
    image = base64.b64encode(CANARY.data).decode()
    asked = {"image": image, "question": CANARY.question, "response": CANARY.better[0]}
    return {"items": [asked | {"seed": seed, "num_critiques": 1}]}


def test_load_brings_a_second_engine_and_the_loss_of_one_costs_no_request(served: tuple[str, psutil.Process]) -> None:
    url, service = served
    with httpx.Client(base_url=url, timeout=START_S) as http:
        until_ready(http)
        assert len(engines(service)) == 1

        async def run() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=START_S, limits=httpx.Limits(max_connections=None)) as c:
                asked = [asyncio.ensure_future(c.post("/v1/score", json=body(i))) for i in range(500)]
                end = time.monotonic() + START_S
                while len(engines(service)) < 2:
                    assert time.monotonic() < end, "no second engine in time"
                    # Fresh work as the old is done, so that the queue stays deep.
                    done = [task for task in asked if task.done()]
                    asked += [asyncio.ensure_future(c.post("/v1/score", json=body(len(asked)))) for _ in done[:50]]
                    await asyncio.sleep(0.5)
                assert sum(not task.done() for task in asked) > 100, "killed too late to matter"
                engines(service)[0].kill()
                return await asyncio.gather(*asked)

        replies = asyncio.run(run())
        assert {reply.status_code for reply in replies} == {200}
        assert {reply.json()["items"][0]["status"] for reply in replies} == {"ok"}
        end = time.monotonic() + START_S
        while len(engines(service)) < 2:
            assert time.monotonic() < end, "the lost engine was not replaced"
            time.sleep(0.5)
        assert http.get("/ready").status_code == 200
