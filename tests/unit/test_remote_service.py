"""Client and gateways against the real service over a scripted engine: both sides of the HTTP API."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import fastapi
import httpx
import pytest
from PIL import Image
from serving_examples import png, service

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.errors import RemoteError
from vlgenrm_ray.judge.label import write_label
from vlgenrm_ray.judge.remote import AsyncRemoteJudge, ScoreInput
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.serving import api
from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.service import Service

_T = TypeVar("_T")


async def swap_model(folder: str) -> CanaryResult:
    return CanaryResult(problem="not here", margin=0.0, change=0.0)


def application(served: Service) -> fastapi.FastAPI:
    return build_api(served, ready=lambda: True, swap_model=swap_model)


def talk(served: Service, about: Callable[[AsyncRemoteJudge], Awaitable[_T]], **how: Any) -> _T:
    async def run() -> _T:
        transport = httpx.ASGITransport(application(served))
        async with AsyncRemoteJudge("http://judge", transport=transport, **how) as judge:
            return await about(judge)

    return asyncio.run(run())


def is_red(prompt: Prompt, chance: object) -> str:
    red = bool(prompt.images) and prompt.images[0].getpixel((0, 0))[0] > 128
    return f"Claim: it is red.\nVerdict: {'Yes' if red else 'No'}"


def item(image: Any = None, response: str = "It is red.") -> ScoreInput:
    return ScoreInput(image=image, question="Which colour?", response=response)


def test_the_judge_sees_the_image_that_was_sent() -> None:
    images = [Image.new("RGB", (16, 16), shade) for shade in ("red", "blue", "red")]
    replies = talk(service(is_red), lambda judge: judge.score([item(p) for p in images]))
    assert [r.reward for r in replies] == [pytest.approx(0.9), pytest.approx(0.1), pytest.approx(0.9)]
    assert replies[0].model_version == "first-0"


def test_several_images_keep_their_order() -> None:
    red, blue = (Image.new("RGB", (16, 16), shade) for shade in ("red", "blue"))
    content = [{"type": "image", "image": red}, {"type": "text", "text": "Which colour is the first?"}]
    turns = [{"role": "user", "content": content}]
    inputs = [ScoreInput(images=pair, question="Which?", response="Red.") for pair in ((red, blue), (blue, red))]
    inputs += [
        ScoreInput(image=blue, messages=turns, response="Red."),
        ScoreInput(images=[red] * 3, question="?", response="Red."),
    ]
    replies = talk(service(is_red), lambda judge: judge.score(inputs))
    assert [r.reward for r in replies] == [pytest.approx(0.9), pytest.approx(0.1), pytest.approx(0.1), None]
    assert replies[3].status is Status.TOO_LARGE


def test_evicted_images_are_uploaded_again() -> None:
    served = service(is_red, images_mib=(max(len(png(0)), len(png(255))) + 0.5) / 2**20)

    async def about(judge: AsyncRemoteJudge) -> list[float | None]:
        return [(await judge.score([item(png(shade))]))[0].reward for shade in (0, 255, 0, 255)]

    assert talk(served, about) == [pytest.approx(p) for p in (0.1, 0.9, 0.1, 0.9)]


def test_a_refused_image_affects_its_own_item_only() -> None:
    gone = "sha256:" + hashlib.sha256(b"gone").hexdigest()
    tiny = Image.new("RGB", (4, 4))
    replies = talk(
        service(),
        lambda judge: judge.score([item(png()[:50]), item(gone), item(tiny), item(png())]),
    )
    assert [r.status for r in replies] == [Status.BAD_IMAGE] * 3 + [Status.OK]


def test_client_and_service_keep_the_deadline() -> None:
    (reply,) = talk(service(delay_s=5.0), lambda judge: judge.score([item()], deadline_s=0.2))
    assert (reply.reward, reply.status) == (None, Status.TIMEOUT)


def test_a_full_queue_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "RETRY_AFTER_S", 0)
    served = service(delay_s=0.05, max_queue=2)
    inputs = [item(response=f"Response {i}.") for i in range(6)]
    replies = talk(served, lambda judge: judge.score(inputs), retries=20)
    assert {r.status for r in replies} == {Status.OK}


def test_the_service_requires_its_token() -> None:
    served = service()
    tokens = ApiTokens(api=hashlib.sha256(b"secret").hexdigest())
    served.config = served.config.model_copy(update={"tokens": tokens})
    assert talk(served, lambda judge: judge.score([item(png())]), token="secret")[0].status is Status.OK
    with pytest.raises(RemoteError, match="401"):
        talk(served, lambda judge: judge.score([item(png())]))


def test_a_gateway_passes_on_the_image() -> None:
    app = application(service(is_red))
    prompt = "<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge") as client:
            answers = []
            for shade in (255, 0):
                sha256 = (await client.post("/v1/images", content=png(shade))).json()["sha256"]
                label = write_label(question="Which colour?", images=[f"sha256:{sha256}"])
                body = {"prompt": prompt, "response": "It is red.", "label": label}
                answers.append(await client.post("/rm", json=body))
            return answers

    assert [answer.json() for answer in asyncio.run(run())] == [pytest.approx(0.9), pytest.approx(0.1)]


@pytest.mark.parametrize(
    "path", ["/rm", "/get_reward", "/v1/score/evaluation", "/v1/chat/completions", "/verify", "/score"]
)
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"query": [3]}', b"[" * 50_000, b'"\\ud800"', b'{"messages": [{}]}']
)
def test_malformed_bodies_are_a_client_error(path: str, body: bytes) -> None:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(application(service()), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            return await client.post(path, content=body, headers={"content-type": "application/json"})

    assert 400 <= asyncio.run(run()).status_code < 500
