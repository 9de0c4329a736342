"""No request, valid by the OpenAPI description or not, is a server error; every refusal states the mistake.

The whole application with its gateways over a scripted engine; schemathesis makes up the requests.
"""

import asyncio
import base64
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fake_experts import expert_service
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from serving_examples import png, service

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.canary import CanaryResult

_EXAMPLES = 15
_OPERATOR = {"Authorization": "Bearer operator-secret"}
_IMAGE = base64.b64encode(png()).decode()


async def _swap_model(folder: str) -> CanaryResult:
    await asyncio.to_thread(model_folder.check, Path(folder).absolute())
    return CanaryResult(problem="")


@cache
def application() -> FastAPI:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLGENRM_OPERATOR_TOKEN", "operator-secret")
        tokens = ApiTokens.from_environment()
    served = service()
    served.config = served.config.model_copy(update={"tokens": tokens})
    return build_api(served, ready=lambda: True, swap_model=_swap_model, experts=expert_service(served))


def small(schema: Any) -> Any:
    """The same description with short lists and objects: long ones cost time and find nothing more."""
    if isinstance(schema, list):
        return [small(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # A field may have the name "type" as well.
    kind = schema["type"] if isinstance(schema.get("type"), str) and "properties" not in schema else ""
    bounds = {"array": {"maxItems": 3}, "object": {"maxProperties": 6}}.get(kind, {})
    return {name: small(part) for name, part in schema.items()} | bounds


def _cases() -> Iterator[Any]:
    """Every operation with requests by its description, and against it where it describes any."""
    schema = schemathesis.openapi.from_dict(small(application().openapi()))
    schema.app = application()
    for operation in (result.ok() for result in schema.get_all_operations()):
        described = operation.query or any(body.media_type == "application/json" for body in operation.body)
        for mode in GenerationMode if described else [GenerationMode.POSITIVE]:
            yield pytest.param(operation, mode, id=f"{operation.label} {mode.value}")


def check(status: int, body: Any, context: str) -> None:
    """No server error but the deliberate one, and refusals in words."""
    assert status < 500 or status == 503, context
    if status >= 400:
        reason = body["error"]["message"] if "error" in body else body["detail"]
        assert isinstance(reason, str), context
        assert reason, context
        assert status != 422 or ":" in reason, f"{context}: names no field"


@pytest.mark.parametrize(("operation", "mode"), list(_cases()))
def test_no_request_is_a_server_error(operation: Any, mode: GenerationMode) -> None:
    @seed(0)
    @settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        reply = case.call(headers=_OPERATOR)
        try:
            body = reply.json()
        except ValueError:
            body = {"detail": reply.text}
        check(reply.status_code, body, f"{case.as_curl_command()} -> {reply.status_code} {reply.text[:500]}")

    ask()


_HOSTILE = {
    "half a surrogate pair": '"\\ud800"',
    "a zero byte": '"a\\u0000b"',
    "not a number": "NaN",
    "infinite": "-Infinity",
    "too large a number": "1" + "0" * 400,
    "too many digits": "9" * 5000,
    "too deep": "[" * 50_000 + "]" * 50_000,
    "deep": "[" * 400 + "]" * 400,
    "an unknown field": '{"\\ud800": {"\\ud800": 1}}',
    "null": "null",
    "an image that is none": '"data:image/png;base64,AAAA"',
    "a long path": '"/' + "a." * 3000 + '"',
    "an address": '"http://169.254.169.254/"',
}
_BODIES = {
    "/v1/score": [
        '{"items": [{"question": %s, "response": "a"}]}',
        '{"items": [{"question": "q", "response": %s}]}',
        '{"items": [{"question": "q", "response": "a", "image": %s}]}',
        '{"items": [{"question": "q", "response": "a", "num_critiques": %s}]}',
        '{"items": [{"question": "q", "response": "a", "reference": %s}]}',
        '{"items": [{"messages": [{"role": "user", "content": %s}], "response": "a"}]}',
        '{"items": [{"messages": [{"role": %s, "content": "q"}], "response": "a"}]}',
        '{"items": [%s]}',
        '{"items": [], "deadline_s": %s}',
        "%s",
    ],
    "/v1/compare": ['{"item": {"question": "q", "response": ""}, "first": %s, "second": "b"}'],
    "/v1/rank": ['{"item": {"question": "q", "response": ""}, "responses": [%s]}'],
    "/v1/evidence": ['{"image": %s, "responses": ["a"]}', '{"image": "' + _IMAGE + '", "responses": [%s]}'],
    "/v1/model": ['{"model": %s}'],
    "/v1/images": ["%s"],
    "/get_reward": ['{"query": [%s], "prompts": ["q"]}', '{"query": ["qa"], "prompts": ["q"], "labels": [%s]}'],
    "/rm": ['{"prompt": %s, "response": "a"}', '{"prompt": "q", "response": "a", "label": %s}'],
    "/v1/score/evaluation": ['{"messages": [%s]}', '{"messages": ["user\\n%s"]}'],
    "/v1/chat/completions": [
        '{"messages": [{"role": "user", "content": %s}, {"role": "assistant", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": %s}], "n": 1}',
    ],
    "/verify": [
        '{"responses_create_params": {"input": %s}, "response": {"output": []}}',
        '{"responses_create_params": {"input": "q"}, "response": {"output": %s}, "answer": 1, "x": %s}',
    ],
    "/score": ['{"requests": [{"history": [{"image_b64": %s}], "required_rewards": ["vlgenrm"]}]}'],
}


@pytest.mark.parametrize("path", _BODIES)
def test_hostile_values_anywhere_are_no_server_error(path: str) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(application(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=_OPERATOR) as http:
            for body in _BODIES[path]:
                for name, value in _HOSTILE.items():
                    content = body.replace("%s", value)
                    reply = await http.post(path, content=content, headers={"content-type": "application/json"})
                    context = f"{path} {body} with {name} -> {reply.status_code} {reply.text[:300]}"
                    assert reply.status_code != 500, context
                    check(reply.status_code, reply.json(), context)

    asyncio.run(ask())
