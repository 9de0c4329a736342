"""Several engines, as `vlgenrm serve` runs them: another is started under load, and a killed one is replaced."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest
from ports import free_port
from processes import descendants
from running_service import CANARY, START_S, until_ready

_SETTINGS = {
    # Two engines fit on two cores.
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
    """The URL of a service and its process."""
    port = free_port()
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
    """The processes of the engine replicas."""
    return descendants("ServeReplica:vlgenrm:engine", service.pid)


def body(seed: int) -> dict[str, object]:
    image = base64.b64encode(CANARY.data).decode()
    item = {"image": image, "question": CANARY.question, "response": CANARY.better[0]}
    return {"items": [item | {"seed": seed, "num_critiques": 1}]}


def check_chat(url: str) -> None:
    """A replica continues a conversation with an image; one that it refuses has a status."""
    image = {"url": f"data:image/png;base64,{base64.b64encode(CANARY.data).decode()}"}
    question = [{"type": "image_url", "image_url": image}, {"type": "text", "text": CANARY.question}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        messages = [{"role": "user", "content": question}]
        reply = client.chat.completions.create(model="any", messages=messages, n=2, max_tokens=8)
        assert len(reply.choices) == 2
        assert reply.usage is not None
        assert reply.usage.prompt_tokens > 0
        with pytest.raises(openai.UnprocessableEntityError, match="too_large"):
            client.chat.completions.create(model="any", messages=[{"role": "user", "content": "word " * 5000}])


def test_load_starts_a_second_engine_and_a_lost_engine_loses_no_request(
    served: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, service = served
    with httpx.Client(base_url=url, timeout=START_S) as http:
        until_ready(http, service)
        assert len(engines(service)) == 1
        check_chat(url)

        async def run() -> list[httpx.Response]:
            killed = asyncio.Event()

            async def client(number: int) -> list[httpx.Response]:
                # Each client always has one request under way, so the queue stays deep at any speed.
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
        statuses = Counter(reply.json()["items"][0]["status"] for reply in replies)
        # Of hundreds of sampled critiques a few may lack a verdict; their items were judged, not lost.
        assert set(statuses) <= {"ok", "unreadable_verdict"}, statuses
        assert statuses["ok"] >= 0.98 * statuses.total(), statuses
        end = time.monotonic() + START_S
        while len(engines(service)) < 2:
            assert time.monotonic() < end, "the lost engine was not replaced"
            time.sleep(0.5)
        assert http.get("/ready").status_code == 200
