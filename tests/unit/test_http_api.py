"""The HTTP API over a scripted engine: authentication, limits, and the form of errors."""

import asyncio
import base64
import json
import time
from base64 import b64encode
from typing import Any

import httpx
import jsonschema
import pytest
from serving_examples import png, service

from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.auth import API_TOKEN, OPERATOR_TOKEN, PUBLIC_PATHS, ApiTokens, Role
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.gateways.scoring import MAX_ROWS

GOOD = {"items": [{"question": "What is there?", "response": "There is a star."}]}


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> ApiTokens:
    monkeypatch.setenv(API_TOKEN, "user-secret")
    monkeypatch.setenv(OPERATOR_TOKEN, "operator-secret")
    return ApiTokens.from_environment()


async def swap_model(folder: str) -> CanaryResult:
    if folder == "/none":
        raise InputError("model folder /none: no such folder")
    if folder == "/lost":
        raise EngineLostError("the engine was lost while it tried the version")
    return CanaryResult(problem="it does not look" if folder == "/blind" else "", margin=0.5, change=0.25)


def call(
    method: str,
    path: str,
    *,
    tokens: ApiTokens | None = None,
    token: str = "",
    max_mib: float = 0.01,
    prefix: str = "",
    **more: Any,
) -> httpx.Response:
    served = service(max_body_mib=max_mib)
    served.config = served.config.model_copy(update={"tokens": tokens or ApiTokens()})
    application = build_api(served, ready=lambda: True, swap_model=swap_model)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(application, root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return await http.request(method, path, headers=headers | more.pop("headers", {}), **more)

    return asyncio.run(run())


def test_tokens_are_hashed_and_give_roles(tokens: ApiTokens) -> None:
    assert "secret" not in repr(tokens)
    assert tokens.role("Bearer user-secret") is Role.USER
    assert tokens.role("bearer operator-secret") is Role.OPERATOR
    assert tokens.role(f"Basic {b64encode(b'anyone:user-secret').decode()}") is Role.USER
    for wrong in ("", "Bearer ", "Bearer user", "Basic user-secret", "Basic dXNlcg==", "Basic \xff", "user-secret"):
        assert tokens.role(wrong) is Role.ANONYMOUS


def test_without_tokens_every_caller_is_a_user_and_none_an_operator() -> None:
    assert ApiTokens().role("") is ApiTokens().role("Bearer x") is Role.USER


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/v1/score", "", 401),
        ("/v1/score", "wrong", 401),
        ("/v1/score", "user-secret", 200),
        ("/v1/score", "operator-secret", 200),
        ("/v1/model", "user-secret", 401),
    ],
)
def test_scores_need_the_users_token_and_swaps_the_operators(
    path: str, token: str, status: int, tokens: ApiTokens
) -> None:
    body = GOOD if path == "/v1/score" else {"model": "/new"}
    assert call("POST", path, json=body, tokens=tokens, token=token).status_code == status


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/docs", "/openapi.json"])
def test_probes_need_no_token(path: str, tokens: ApiTokens) -> None:
    assert call("GET", path, tokens=tokens).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "/judge/health", "", 200),
        ("GET", "/judge/", "", 200),
        ("GET", "/judge/v1/example", "", 401),
        ("POST", "/judge/v1/model", "", 401),
        ("POST", "/judge/v1/model", "user-secret", 401),
        ("POST", "/judge/v1/model", "operator-secret", 200),
    ],
)
def test_permissions_do_not_depend_on_the_route_prefix(
    method: str, path: str, token: str, status: int, tokens: ApiTokens
) -> None:
    body = {"json": {"model": "/new"}} if method == "POST" else {}
    assert call(method, path, tokens=tokens, token=token, prefix="/judge", **body).status_code == status
    if path == "/judge/v1/model":
        assert call(method, path, prefix="/judge", **body).status_code == 403, "without a token there is no operator"


@pytest.mark.parametrize("path", ["/", "/health"])
def test_the_page_and_the_health_that_unirls_client_reads_need_no_token(path: str, tokens: ApiTokens) -> None:
    reply = call("GET", path, tokens=tokens)
    if path == "/health":
        assert reply.json() == {"status": "ok", "rewards": {"vlgenrm": ["ready"]}}
    else:
        assert "script-src 'sha256-" in reply.headers["content-security-policy"]
        assert "secret" not in reply.text
    assert call("GET", "/v1/example", tokens=tokens).status_code == 401
    example = call("GET", "/v1/example", tokens=tokens, token="user-secret").json()
    assert example["image"].startswith("data:image/png;base64,")


def test_without_an_operator_token_swaps_are_forbidden() -> None:
    reply = call("POST", "/v1/model", json={"model": "/new"})
    assert reply.status_code == 403
    assert "operator" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("folder", "status", "message"),
    [("/new", 200, "first-0"), ("/blind", 409, "does not look"), ("/none", 422, "model:"), ("/lost", 503, "ask again")],
)
def test_an_operator_swaps_the_model(folder: str, status: int, message: str, tokens: ApiTokens) -> None:
    reply = call("POST", "/v1/model", json={"model": folder}, tokens=tokens, token="operator-secret")
    assert reply.status_code == status
    assert message in reply.text


def test_a_body_is_bounded_with_or_without_content_length() -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 1000

    for content in (b" " * 20_000, pieces()):
        reply = call("POST", "/v1/score", content=content)
        assert reply.status_code == 413
        assert "body" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "items"),
        ({"items": [{"question": "q"}]}, "items.0.response"),
        ({"items": [{"question": "q", "response": "r", "colour": 1}]}, "items.0.colour"),
        ({"items": [{"question": "q", "response": "r", "K": 0}]}, "items.0.K"),
        ({"items": [{"response": "r"}]}, "items.0: give exactly one of `question` and `messages`"),
        ({"items": [], "deadline_s": -1}, "deadline_s"),
        ([], "body"),
    ],
)
def test_a_422_names_the_field(body: Any, field: str) -> None:
    reply = call("POST", "/v1/score", json=body)
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith(field)


def test_missing_and_broken_bodies_are_client_errors() -> None:
    for content in (b"", b"{", b"\xff\xfe", b'{"items": [' * 2000, b'{"items": NaN}'):
        assert call("POST", "/v1/score", content=content, max_mib=1).status_code in (400, 422)


def test_uploaded_images_must_decode() -> None:
    reply = call("POST", "/v1/images", content=png())
    assert reply.status_code == 200
    assert len(reply.json()["sha256"]) == 64
    assert call("POST", "/v1/images", content=png()[:50]).status_code == 422
    assert call("POST", "/v1/images", content=b"").status_code == 422


def test_uploads_are_decoded_within_a_bound_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlgenrm_ray.data import images
    from vlgenrm_ray.serving import api

    pixels, most = 0, 0
    decode = images.decode

    def count(data: bytes, *arguments: Any, **options: Any) -> Any:
        nonlocal pixels, most
        image = decode(data, *arguments, **options)
        pixels += image.width * image.height
        most = max(most, pixels)
        time.sleep(0.02)
        pixels -= image.width * image.height
        return image

    monkeypatch.setattr(images, "decode", count)
    monkeypatch.setattr(api, "_MAX_UPLOAD_PIXELS", 2 * 300 * 300)
    application = build_api(service(max_body_mib=1), ready=lambda: True, swap_model=swap_model)

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as http:
            bodies = [png(number, 300) for number in range(8)]
            return list(await asyncio.gather(*(http.post("/v1/images", content=body) for body in bodies)))

    assert {reply.status_code for reply in asyncio.run(run())} == {200}
    assert 300 * 300 <= most <= 2 * 300 * 300


def test_errors_never_contain_the_value() -> None:
    image = base64.b64encode(png()).decode()
    reply = call("POST", "/v1/score", json={"items": [{"image": image, "question": "q", "response": 3}]})
    assert image not in reply.text
    assert "items.0.response" in reply.text


def test_a_full_queue_is_503_with_retry_after() -> None:
    served = service(delay_s=1.0, max_queue=1)
    application = build_api(served, ready=lambda: False, swap_model=swap_model)

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as http:
            busy = asyncio.ensure_future(http.post("/v1/score", json=GOOD))
            await asyncio.sleep(0.1)
            other = {"items": [GOOD["items"][0] | {"response": "Other."}]}
            answers = [await http.post("/v1/score", json=other), await http.get("/ready")]
            busy.cancel()
            return answers

    full, unready = asyncio.run(run())
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    assert (unready.status_code, unready.json()["ready"]) == (503, False)


def test_every_operation_describes_its_refusals_and_they_look_like_that(tokens: ApiTokens) -> None:
    description = call("GET", "/openapi.json").json()
    num_operations = 0
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            num_operations += 1
            if path not in PUBLIC_PATHS:
                assert "401" in statuses, path
            if method == "post":
                assert {"408", "413", "422", "503"} <= statuses, path
                reply = call("POST", path, tokens=tokens)
                assert reply.status_code == 401, path
                schema = operation["responses"]["401"]["content"]["application/json"]["schema"]
                jsonschema.validate(reply.json(), schema | {"components": description["components"]})
                assert "Retry-After" in operation["responses"]["503"]["headers"]
    assert num_operations > 20
    assert "503" in description["paths"]["/ready"]["get"]["responses"]
    assert "HTTPValidationError" not in str(description["paths"])
    malformed = call("POST", "/v1/compare", json={}).json()
    schema = description["paths"]["/v1/compare"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]
    jsonschema.validate(malformed, schema | {"components": description["components"]})


def test_the_event_loop_never_sees_millions_of_values_or_tokens() -> None:
    texts = {sign: b'"' + sign * 30_000 + b'",' for sign in (b"<|", b"\\u003c")}
    for values in (b'"",' * 2_100_000, *(text * 80 for text in texts.values())):
        body = b'{"query":[' + values + b'""]}'
        begin = time.process_time()
        reply = call("POST", "/get_reward", content=body, max_mib=16.0, headers={"content-type": "application/json"})
        assert reply.status_code == 413
        assert reply.json()["detail"].startswith("body: more than 2000000 JSON values and `<` signs")
        assert time.process_time() - begin < 5.0
    rows = json.dumps({"query": ["a"] * (MAX_ROWS + 1)}).encode()
    reply = call("POST", "/get_reward", content=rows, max_mib=16.0, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    assert "query" in reply.json()["detail"]
