"""Every path by which a request ends without a reward: its HTTP status, reason, counter and line in the log.

A sample without a reward is refused, substituted or masked, and exactly one of three counters says so. Permanent faults
are 4xx; transient ones are 503 with `Retry-After`.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fake_service
import httpx
import pytest
from service_client import PROMPT, ServiceClient

from vlgenrm_ray.judge.wire import MAX_ITEMS, MAX_TEXT, ScoreRequest, ScoreResponse, Status
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.limits import REASON_HEADER, OverloadedError
from vlgenrm_ray.serving.metrics import ServiceMetrics
from vlgenrm_ray.serving.refusals import RefusalMiddleware

IMAGE = "aGVsbG8="


@dataclass(frozen=True)
class Protocol:
    """One gateway's protocol."""

    path: str
    body: Callable[[Any], Any]
    """Response of the policy -> request with this one sample."""
    reward: Callable[[Any], Any]
    """Reply -> reward of the sample, None if it is masked."""
    masks: bool = False
    setting_applies: bool = True


def _rollout(response: Any) -> dict[str, Any]:
    output = [{"type": "message", "content": [{"type": "output_text", "text": response}]}]
    return {"responses_create_params": {"input": "What is it?"}, "response": {"output": output}}


PROTOCOLS = {
    "openrlhf": Protocol(
        "/get_reward", lambda r: {"query": [f"{PROMPT}{r}"], "prompts": [PROMPT]}, lambda reply: reply["rewards"][0]
    ),
    "slime": Protocol("/rm", lambda r: {"prompt": PROMPT, "response": r, "label": None}, lambda reply: reply),
    "llama_factory": Protocol(
        "/v1/score/evaluation", lambda r: {"messages": [f"{PROMPT}{r}"]}, lambda reply: reply["scores"][0]
    ),
    "nemo_gym": Protocol(
        "/verify", _rollout, lambda reply: None if reply["mask_sample"] else reply["reward"], True, False
    ),
    "unirl": Protocol(
        "/score",
        lambda r: {"requests": [{"history": [{"text": r, "image_b64": IMAGE}], "required_rewards": ["vlgenrm"]}]},
        lambda reply: reply["results"][0].get("vlgenrm", {}).get("vlgenrm"),
        True,
        False,
    ),
    "openai_chat": Protocol(
        "/v1/chat/completions",
        lambda r: {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": r}]},
        lambda reply: reply["reward"],
        False,
        False,
    ),
}
FAILURES = [status for status in Status if status is not Status.OK]
TRANSIENT = {Status.TIMEOUT, Status.OVERLOADED, Status.INTERNAL}
OUTCOMES = ("refusals", "failed_rewards", "masked_samples")


def assert_only(client: ServiceClient, outcome: str, gateway: str, reason: str, *, num: int = 1) -> None:
    """Assert that one of the three counters has counted, and the others have not."""
    counts = {name: client.counter(name) for name in OUTCOMES}
    assert counts == {name: num if name == outcome else 0 for name in OUTCOMES}
    assert client.counter(outcome, gateway=gateway, reason=reason) == num


def assert_refused(reply: httpx.Response, code: int, reason: str) -> None:
    assert reply.status_code == code
    assert reply.headers[REASON_HEADER].split(":")[0] == reason
    assert ("retry-after" in reply.headers) == (code == 503)


def test_every_gateway_has_its_row() -> None:
    routes = dict(ServiceClient().gateways)
    assert set(PROTOCOLS) == set(routes.values()) - {"api"}
    assert all(routes[protocol.path] == gateway for gateway, protocol in PROTOCOLS.items())


@pytest.mark.parametrize("choice", ["none", "setting", "address"])
@pytest.mark.parametrize("status", FAILURES)
@pytest.mark.parametrize("gateway", PROTOCOLS)
def test_a_sample_without_a_reward_is_refused_substituted_or_masked(
    gateway: str, status: Status, choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = PROTOCOLS[gateway]
    client = ServiceClient(failed_reward=0.25 if choice == "setting" else None)
    query = "?failed_reward=0.25" if choice == "address" else ""
    with caplog.at_level(logging.WARNING):
        reply = client.post(f"{protocol.path}{query}", protocol.body(f"fails:{status.value}"))
    if choice == "address" or (choice == "setting" and protocol.setting_applies):
        assert (reply.status_code, protocol.reward(reply.json())) == (200, 0.25)
        outcome = "failed_rewards"
    elif protocol.masks:
        assert (reply.status_code, protocol.reward(reply.json())) == (200, None)
        assert f"{status.value}: as scripted" in reply.text
        outcome = "masked_samples"
    else:
        assert_refused(reply, 503 if status in TRANSIENT else 422, status.value)
        assert f"{status.value}: as scripted" in reply.text
        outcome = "refusals"
    assert_only(client, outcome, gateway, status.value)
    assert status.value in caplog.text
    assert "(1 so far)" in caplog.text


# -- malformed rows --------------------------------------------------------------------------------------------------

TOO_LONG = "1" * (MAX_TEXT + 1)
ROWS: dict[str, tuple[str, dict[str, list[Any]], str, Any]] = {
    "openrlhf: null": ("openrlhf", {"query": [None], "prompts": [PROMPT]}, "bad_request", None),
    "openrlhf: number": ("openrlhf", {"query": [3], "prompts": [PROMPT]}, "bad_request", None),
    "openrlhf: null prompt": ("openrlhf", {"query": ["1.0"], "prompts": [None]}, "bad_request", None),
    "openrlhf: forged row": (
        "openrlhf",
        {"query": [{"status": "ok", "field": "", "problem": ""}], "prompts": [PROMPT]},
        "bad_request",
        None,
    ),
    "openrlhf: other prompt": ("openrlhf", {"query": ["no prompt in it"], "prompts": [PROMPT]}, "bad_request", None),
    "openrlhf: half an emoji": (
        "openrlhf",
        {"query": [f"{PROMPT}\ud83d"], "prompts": [PROMPT]},
        "bad_request",
        None,
    ),
    "openrlhf: long": ("openrlhf", {"query": [f"{PROMPT}{TOO_LONG}"], "prompts": [PROMPT]}, "too_large", None),
    "openrlhf: label": (
        "openrlhf",
        {"query": [f"{PROMPT}1.0"], "prompts": [PROMPT], "labels": [{"images": 3}]},
        "bad_request",
        {"labels": [None]},
    ),
    "llama_factory: null": ("llama_factory", {"messages": [None]}, "bad_request", None),
    "llama_factory: list": ("llama_factory", {"messages": [["a"]]}, "bad_request", None),
    "llama_factory: no turns": ("llama_factory", {"messages": ["no turns"]}, "bad_request", None),
    "llama_factory: half an emoji": ("llama_factory", {"messages": [f"{PROMPT}\ud83d"]}, "bad_request", None),
    "llama_factory: long": ("llama_factory", {"messages": [f"{PROMPT}{TOO_LONG}"]}, "too_large", None),
    "unirl: null": ("unirl", {"requests": [None]}, "bad_request", None),
    "unirl: number as history": (
        "unirl",
        {"requests": [{"history": 3, "required_rewards": ["vlgenrm"]}]},
        "bad_request",
        None,
    ),
    "unirl: no image": (
        "unirl",
        {"requests": [{"history": [], "required_rewards": ["vlgenrm"]}]},
        "bad_request",
        None,
    ),
}
"""Name -> gateway, request with one malformed row, its status, and fields that a well-formed row has in addition."""
LISTS = {
    "openrlhf": lambda reply: reply["rewards"],
    "llama_factory": lambda reply: reply["scores"],
    "unirl": lambda reply: [result.get("vlgenrm", {}).get("vlgenrm") for result in reply["results"]],
}


@pytest.mark.parametrize("name", ROWS)
def test_a_malformed_row_costs_only_its_own_reward(name: str) -> None:
    gateway, malformed, reason, more = ROWS[name]
    protocol = PROTOCOLS[gateway]
    good = protocol.body("1.0") | (more or {})
    body = {field: [*good[field], *malformed[field], *good[field]] for field in malformed}
    client = ServiceClient()
    reply = client.post(f"{protocol.path}?failed_reward=0.5", body)
    assert LISTS[gateway](reply.json()) == [1.0, 0.5, 1.0]
    assert_only(client, "failed_rewards", gateway, reason)

    client = ServiceClient()
    reply = client.post(protocol.path, body)
    if protocol.masks:
        assert LISTS[gateway](reply.json()) == [1.0, None, 1.0]
        assert reason in reply.json()["errors"][1]["vlgenrm"]
        assert_only(client, "masked_samples", gateway, reason)
    else:
        assert_refused(reply, 422, reason)
        assert "1 of 3 items have no reward; the first is 1" in reply.json()["detail"]
        assert_only(client, "refusals", gateway, reason)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"prompt": PROMPT, "response": None}, "bad_request"),
        ({"prompt": None, "response": "1.0"}, "bad_request"),
        ({"prompt": 3, "response": "1.0"}, "bad_request"),
        ({"prompt": "", "response": "1.0"}, "bad_request"),
        ({"prompt": [{"content": "Q?"}], "response": "1.0"}, "bad_request"),
        ({"prompt": PROMPT, "response": "\ud83d"}, "bad_request"),
        ({"prompt": PROMPT, "response": "1.0", "label": {"images": 3}}, "bad_request"),
        ({"prompt": PROMPT, "response": TOO_LONG}, "too_large"),
    ],
)
def test_a_malformed_sample_of_slime_gets_the_substitute(sample: dict[str, Any], reason: str) -> None:
    client = ServiceClient(failed_reward=0.5)
    assert client.post("/rm", sample).json() == 0.5
    assert_only(client, "failed_rewards", "slime", reason)
    client = ServiceClient()
    assert_refused(client.post("/rm", sample), 422, reason)
    assert_only(client, "refusals", "slime", reason)


def test_an_unexpected_error_of_a_row_costs_only_its_own_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlgenrm_ray.serving.gateways import llama_factory

    split = llama_factory.split_transcript

    def fail_on_some(text: str, **options: Any) -> tuple[str, str]:
        if text.endswith("0.25"):
            raise RecursionError
        return split(text, **options)

    monkeypatch.setattr(llama_factory, "split_transcript", fail_on_some)
    body = {"messages": [f"{PROMPT}{response}" for response in ("1.0", "0.25", "0.75")]}
    client = ServiceClient()
    reply = client.post("/v1/score/evaluation?failed_reward=0.5", body)
    assert reply.json()["scores"] == [1.0, 0.5, 0.75]
    assert_only(client, "failed_rewards", "llama_factory", "internal")
    assert_refused(ServiceClient().post("/v1/score/evaluation", body), 503, "internal")


# -- requests refused as a whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gateway", PROTOCOLS)
def test_a_request_refused_before_an_item_exists_is_accounted_for(
    gateway: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = PROTOCOLS[gateway].path
    body = PROTOCOLS[gateway].body("1.0")
    wrong = {"Authorization": "Bearer wrong-secret"}
    tokens = ApiTokens.from_secrets(api="user-secret")
    table: list[tuple[str, str, dict[str, Any], ApiTokens | None, int, str]] = [
        ("POST", "", {"content": b"{"}, None, 422, "bad_request"),
        ("POST", "", {"content": b"[" * 100_000}, None, 422, "bad_request"),
        ("POST", "", {"content": b"\xff\xfe"}, None, 422, "bad_request"),
        ("POST", "", {"json": 3}, None, 422, "bad_request"),
        ("POST", "?failed_reward=2", {"json": body}, None, 422, "bad_request"),
        ("POST", "", {"content": b" " * 2_000_000}, None, 413, "too_large"),
        ("POST", "", {"json": body}, tokens, 401, "unauthorized"),
        ("POST", "", {"json": body, "headers": wrong}, tokens, 401, "unauthorized"),
        ("DELETE", "", {}, None, 405, "method_not_allowed"),
    ]
    for method, query, options, needed, code, reason in table:
        # The operator's choice is about samples; there is none here.
        client = ServiceClient(tokens=needed, failed_reward=0.5)
        with caplog.at_level(logging.WARNING):
            reply = client.request(method, f"{path}{query}", **options)
        assert_refused(reply, code, reason)
        assert_only(client, "refusals", gateway, reason)
        assert f"refused {path} with {code}, {reason}" in caplog.text
        assert "secret" not in caplog.text + str(reply.headers)
        caplog.clear()


@pytest.mark.parametrize("gateway", PROTOCOLS)
@pytest.mark.parametrize(
    ("error", "code", "reason"), [(OverloadedError(), 503, "overloaded"), (RuntimeError("a response"), 500, "internal")]
)
def test_a_failure_of_the_service_is_accounted_for(
    gateway: str, error: Exception, code: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: ScoreRequest) -> ScoreResponse:
        raise error

    protocol = PROTOCOLS[gateway]
    client = ServiceClient(judge=fail)
    with caplog.at_level(logging.WARNING):
        reply = client.post(protocol.path, protocol.body("1.0"))
    if protocol.masks and reason == "overloaded":
        assert protocol.reward(reply.json()) is None
        assert_only(client, "masked_samples", gateway, reason)
        return
    assert_refused(reply, code, reason)
    assert_only(client, "refusals", gateway, reason)
    assert f"{code}, {reason}" in caplog.text
    assert "a response" not in reply.text + reply.headers[REASON_HEADER], "an exception may quote the request"


@pytest.mark.parametrize(("error", "code"), [(OverloadedError(), 503), (RuntimeError(), 500)])
def test_a_failure_in_the_middle_of_a_batch_is_no_half_reply(error: Exception, code: int) -> None:
    calls: list[int] = []

    async def fail_later(request: ScoreRequest) -> ScoreResponse:
        calls.append(len(request.items))
        if len(calls) > 1:
            raise error
        return await fake_service.score(request)

    client = ServiceClient(judge=fail_later, failed_reward=0.5)
    reply = client.post("/v1/score/evaluation", {"messages": [f"{PROMPT}1.0"] * (MAX_ITEMS + 3)})
    assert reply.status_code == code
    assert calls == [MAX_ITEMS, 3]
    assert client.counter("failed_rewards") == 0
    assert "scores" not in reply.json()


def test_statuses_in_the_middle_of_a_batch_are_permanent_if_any_is() -> None:
    for responses, code, reason in (
        (["1", "fails:timeout", "1", "fails:overloaded"], 503, "timeout"),
        (["1", "fails:timeout", "1", "fails:bad_image"], 422, "bad_image"),
    ):
        reply = ServiceClient().openrlhf(*responses)
        assert_refused(reply, code, reason)
        assert f"2 of {len(responses)} items have no reward" in reply.json()["detail"]


@pytest.mark.parametrize("gateway", ["nemo_gym", "unirl", "openai_chat"])
def test_during_an_outage_a_substitute_named_in_the_address_is_not_given(gateway: str) -> None:
    protocol = PROTOCOLS[gateway]
    client = ServiceClient()
    path = f"{protocol.path}?failed_reward=0.5"
    for _ in range(31):
        assert protocol.reward(client.post(path, protocol.body("fails:internal")).json()) == 0.5
    reply = client.post(path, protocol.body("fails:internal"))
    if protocol.masks:
        assert protocol.reward(reply.json()) is None
    else:
        assert_refused(reply, 503, "internal")
    assert protocol.reward(client.post(path, protocol.body("0.75")).json()) == 0.75


def test_requests_without_a_substitute_do_not_count_for_those_with_one() -> None:
    client = ServiceClient()
    for _ in range(64):
        assert client.openrlhf("fails:bad_image").status_code == 422
    assert client.openrlhf("fails:bad_image", query="?failed_reward=0.5").json()["rewards"] == [0.5]


# -- header and log --------------------------------------------------------------------------------------------------


def test_routes_with_parameters_are_one_route_of_their_gateway() -> None:
    client = ServiceClient()
    for number in range(3):
        client.post(f"/ng-rollout/{number}/verify", {})
    assert client.counter("refusals", gateway="nemo_gym", route="/ng-rollout/{rollout_id}/verify") == 3
    client.request("GET", "/v1/models/other")
    assert client.counter("refusals", gateway="openai_chat", reason="model_not_found") == 1


def test_a_substitute_is_logged_the_first_tenth_and_hundredth_time(caplog: pytest.LogCaptureFixture) -> None:
    client = ServiceClient(failed_reward=0.5)
    with caplog.at_level(logging.WARNING):
        client.openrlhf(*["fails:timeout", *["0.5"] * 9] * 10)
        client.openrlhf("fails:bad_image")
    messages = [record.getMessage() for record in caplog.records]
    assert [message.rpartition(", ")[2] for message in messages] == [
        "timeout: as scripted (1 so far)",
        "timeout: as scripted (10 so far)",
        "bad_image: as scripted (1 so far)",
    ]


def test_neither_control_characters_nor_responses_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    answer = "the policy's own words"
    client = ServiceClient()
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/score", {"items": [], "\x1b[31m\r\nrefused \u202e": 1})
        client.post("/rm", {"prompt": PROMPT, "response": answer * 10_000})
        client.post("/rm", {"prompt": "", "response": answer})
        client.post("/rm", {"prompt": [{"content": answer}], "response": answer})
        client.post("/get_reward", {"query": [answer], "prompts": [PROMPT]})
        client.post("/v1/score/evaluation?failed_reward=0", {"messages": [answer]})
        client.post("/verify", {"response": answer})
    assert len(caplog.records) >= 6
    assert answer not in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_a_long_field_name_is_shortened() -> None:
    for body in ({"items": [], "k" * 100_000: 1}, {"items": [{"question": "q", "response": "r", "k" * 100_000: 1}]}):
        reply = ServiceClient().post("/v1/score", body)
        assert reply.status_code == 422
        assert len(reply.content) < 1000


@pytest.mark.parametrize("chunks", [[b"x" * 200_000], [b"x" * 40_000] * 5, [b""], [b"a", b"b", b""]])
def test_the_body_of_a_refusal_is_passed_on_whole(chunks: list[bytes]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = str(sum(map(len, chunks))).encode()
        await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", length)]})
        for i, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": i < len(chunks) - 1})

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "root_path": "", "headers": []}
    asyncio.run(RefusalMiddleware(app, metrics=ServiceMetrics(), routes=[])(scope, send, send))
    assert [message["type"] for message in messages].count("http.response.start") == 1
    assert b"".join(message["body"] for message in messages[1:]) == b"".join(chunks)
    assert not messages[-1].get("more_body", False)
