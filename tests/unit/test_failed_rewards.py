"""Samples without a reward at the gateways: the operator's substitute, reasons, counters, and refused requests."""

import logging
from typing import Any

import pytest
from pydantic import ValidationError
from service_client import PROMPT, ServiceClient

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.failed_rewards import (
    FAILED_REWARD_VARIABLE,
    WINDOW,
    FailedRewards,
    substitute_from_environment,
)
from vlgenrm_ray.judge.serve_handle import ServeHandleTransport
from vlgenrm_ray.judge.wire import ScoreReply, Status
from vlgenrm_ray.rewards.config import RewardConfig
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.gateways import openrlhf
from vlgenrm_ray.serving.limits import REASON_HEADER

REQUESTS: dict[str, tuple[str, Any, Any]] = {
    "openrlhf": (
        "/get_reward",
        {"query": [f"{PROMPT}1.0", f"{PROMPT}fails:timeout"], "prompts": [PROMPT] * 2},
        lambda reply: reply["rewards"],
    ),
    "slime": (
        "/rm",
        {"prompt": PROMPT, "response": "fails:timeout", "label": None},
        lambda reply: [1.0, reply],
    ),
    "llama_factory": (
        "/v1/score/evaluation",
        {"messages": [f"{PROMPT}1.0", f"{PROMPT}fails:timeout"]},
        lambda reply: reply["scores"],
    ),
}
"""Gateway -> path, a batch whose last sample has no reward, and the rewards in the reply."""


@pytest.mark.parametrize("gateway", REQUESTS)
def test_the_operator_may_name_a_reward_for_samples_without_one(gateway: str, caplog: pytest.LogCaptureFixture) -> None:
    path, body, rewards = REQUESTS[gateway]
    by_setting = ServiceClient(failed_reward=0.25)
    with caplog.at_level(logging.WARNING):
        reply = by_setting.post(path, body)
    assert rewards(reply.json()) == [1.0, 0.25]
    assert by_setting.counter("failed_rewards", gateway=gateway, reason="timeout") == 1
    assert "a sample gets the reward 0.25 instead of none, timeout: as scripted (1 so far)" in caplog.text
    # The address of one trainer takes precedence over the setting.
    assert rewards(by_setting.post(f"{path}?failed_reward=0.5", body).json()) == [1.0, 0.5]
    assert rewards(ServiceClient().post(f"{path}?failed_reward=0", body).json()) == [1.0, 0.0]


@pytest.mark.parametrize("gateway", REQUESTS)
def test_without_that_choice_a_missing_reward_is_an_error_with_its_reason(gateway: str) -> None:
    path, body, _ = REQUESTS[gateway]
    client = ServiceClient()
    reply = client.post(path, body)
    assert reply.status_code == 503
    assert reply.headers[REASON_HEADER].startswith("timeout: 1 of ")
    assert "retry-after" in reply.headers
    assert client.counter("refusals", route=path, reason="timeout") == 1
    assert client.counter("failed_rewards", gateway=gateway, reason="timeout") == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/verify",
            {
                "responses_create_params": {"input": "Q"},
                "response": {"output": [{"type": "message", "content": [{"text": "fails:timeout"}]}]},
            },
        ),
        ("/score", {"requests": [{"history": [], "required_rewards": ["vlgenrm"]}]}),
    ],
)
def test_the_service_setting_gives_no_substitute_to_trainers_that_mask_a_sample(path: str, body: Any) -> None:
    client = ServiceClient(failed_reward=0.25)
    reply = client.post(path, body)
    assert reply.status_code == 200
    assert "0.25" not in reply.text


@pytest.mark.parametrize(
    ("path", "body", "rewards"),
    [
        (
            "/get_reward",
            {"query": [f"{PROMPT}1.0", "no prompt in it", f"{PROMPT}0.5"], "prompts": [PROMPT] * 3},
            lambda reply: reply["rewards"],
        ),
        (
            "/get_reward",
            {"query": [f"{PROMPT}{r}" for r in ("1.0", "1", "0.5")], "labels": ["q", {"images": 3}, "q"]},
            lambda reply: reply["rewards"],
        ),
        (
            "/get_reward",
            {"query": [f"{PROMPT}{r}" for r in ("1.0", "1" * 70_000, "0.5")], "prompts": [PROMPT] * 3},
            lambda reply: reply["rewards"],
        ),
        (
            "/v1/score/evaluation",
            {"messages": [f"{PROMPT}1.0", "no turns", f"{PROMPT}0.5"]},
            lambda reply: reply["scores"],
        ),
    ],
)
def test_a_malformed_row_costs_only_its_own_reward(path: str, body: Any, rewards: Any) -> None:
    assert rewards(ServiceClient(failed_reward=0.125).post(path, body).json()) == [1.0, 0.125, 0.5]
    refused = ServiceClient().post(path, body)
    assert refused.status_code == 422
    assert "1 of 3 items have no reward; the first is 1" in refused.json()["detail"]


def test_an_outage_is_not_hidden_by_substitutes() -> None:
    client = ServiceClient(failed_reward=0.25)
    assert client.openrlhf(*["0.5"] * 40, *["fails:internal"] * 40).status_code == 200
    reply = client.openrlhf("fails:internal", "fails:internal")
    assert reply.status_code == 503
    assert reply.headers[REASON_HEADER].startswith("outage: 42 of the latest 82 samples have no reward")
    assert "none is substituted; the last said internal: as scripted" in reply.json()["detail"]
    assert "retry-after" in reply.headers
    # When rewards come again, the window forgets the outage.
    for _ in range(2):
        client.openrlhf(*["0.5"] * WINDOW)
    assert client.openrlhf("fails:internal", "0.5").json()["rewards"] == [0.25, 0.5]


def test_gateways_have_windows_of_their_own() -> None:
    client = ServiceClient(failed_reward=0.25)
    client.openrlhf(*["fails:internal"] * 64)
    assert client.post(REQUESTS["slime"][0], REQUESTS["slime"][1]).json() == 0.25


def test_the_window_holds_the_latest_samples() -> None:
    counts = FailedRewards()
    ok = ScoreReply(reward=0.5, status=Status.OK)
    failed = ScoreReply(reward=None, status=Status.TIMEOUT)
    counts.record([failed] * 31)
    assert counts.outage() == "", "too few samples to tell"
    counts.record([failed])
    assert counts.outage() == "32 of the latest 32 samples have no reward"
    counts.record([ok] * 32)
    assert counts.outage() == "", "half is not more than half"
    counts.record([ok] * WINDOW)
    counts.record([failed] * (WINDOW // 2 + 1))
    assert counts.outage() == f"129 of the latest {WINDOW} samples have no reward"
    assert counts.num_failed == 32 + 129


@pytest.mark.parametrize("value", ["nan", "inf", "zero", "-0.1", "50"])
def test_a_substitute_must_be_a_reward(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = ServiceClient().openrlhf("fails:timeout", query=f"?failed_reward={value}")
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith("query.failed_reward: ")
    monkeypatch.setenv(FAILED_REWARD_VARIABLE, value)
    with pytest.raises(ConfigError, match=r"VLGENRM_FAILED_REWARD=.*\[0, 1\]"):
        substitute_from_environment()
    with pytest.raises(ValidationError, match="failed_reward"):
        ServingConfig.model_validate({"failed_reward": value})


REFUSALS: list[tuple[str, str, dict[str, Any], int, str, str]] = [
    ("POST", "/get_reward", {"content": b"{"}, 422, "/get_reward", "bad_request"),
    ("POST", "/get_reward", {"json": {"query": ["a"], "prompts": ["a", "b"]}}, 422, "/get_reward", "bad_request"),
    ("POST", "/get_reward", {"json": {"query": ["no turns"]}}, 422, "/get_reward", "bad_request"),
    ("POST", "/get_reward", {"content": b" " * 2_000_000}, 413, "/get_reward", "too_large"),
    ("POST", "/rm", {"json": {"prompt": "", "response": "r"}}, 422, "/rm", "bad_request"),
    ("POST", "/rm", {"json": {"prompt": PROMPT, "response": "fails:no_image"}}, 422, "/rm", "no_image"),
    ("POST", "/rm", {"json": {"prompt": PROMPT, "response": "1" * 70_000}}, 422, "/rm", "too_large"),
    ("GET", "/rm", {}, 405, "/rm", "method_not_allowed"),
    ("POST", "/v1/chat/completions", {"json": {"messages": []}}, 422, "/v1/chat/completions", "bad_request"),
    ("POST", "/v1/score", {"json": {"items": 3}}, 422, "/v1/score", "bad_request"),
    ("POST", "/verify", {"content": b"[]"}, 422, "/verify", "bad_request"),
    ("POST", "/nowhere/1", {}, 404, "other", "not_found"),
    ("POST", "/nowhere/2", {}, 404, "other", "not_found"),
]


@pytest.mark.parametrize(("method", "path", "options", "code", "route", "reason"), REFUSALS)
def test_every_refusal_is_counted_logged_and_states_its_reason(
    method: str, path: str, options: Any, code: int, route: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = ServiceClient()
    with caplog.at_level(logging.WARNING):
        reply = client.request(method, path, **options)
    assert reply.status_code == code
    assert client.counter("refusals", route=route, reason=reason) == 1
    assert reply.headers[REASON_HEADER].startswith(reason)
    assert f"refused {route} with {code}, {reason}" in caplog.text


def test_a_refused_token_is_counted_and_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    client = ServiceClient(tokens=ApiTokens.from_secrets(api="user-secret", operator="operator-secret"))
    with caplog.at_level(logging.DEBUG):
        reply = client.request("POST", "/rm", json={}, headers={"Authorization": "Bearer wrong-secret"})
    assert reply.status_code == 401
    assert client.counter("refusals", route="/rm", reason="unauthorized") == 1
    assert "unauthorized" in caplog.text
    assert "secret" not in caplog.text + reply.headers[REASON_HEADER]


def test_a_trainer_that_repeats_itself_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    client = ServiceClient()
    with caplog.at_level(logging.WARNING):
        for _ in range(25):
            client.post("/rm", {})
    assert caplog.text.count("refused /rm") == 2
    assert "(10 so far)" in caplog.text
    assert client.counter("refusals", route="/rm", reason="bad_request") == 25


def test_probes_are_no_refusals(caplog: pytest.LogCaptureFixture) -> None:
    client = ServiceClient()
    with caplog.at_level(logging.WARNING):
        assert client.request("GET", "/ready").status_code == 503
    assert client.counter("refusals", route="/ready", reason="unavailable") == 0
    assert not caplog.records


def test_a_reason_fits_into_a_header() -> None:
    reply = ServiceClient().post("/v1/score", {"items": [{"question": "q", "response": "r", "\u00e9\n\u4e00": 1}]})
    assert reply.status_code == 422
    assert reply.headers[REASON_HEADER].isascii()
    assert reply.headers[REASON_HEADER].isprintable()


def test_the_former_name_of_the_ingress_is_read_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="'vlgenrm:gate' is now 'vlgenrm:ingress'"):
        config = RewardConfig(handle="vlgenrm:gate")
    assert config.handle == "vlgenrm:ingress"
    with pytest.warns(FutureWarning, match="vlgenrm:ingress"):
        assert ServeHandleTransport("vlgenrm:gate").name == "vlgenrm:ingress"
    assert ServeHandleTransport("gate").name == "gate", "an application may be called that"


def test_a_huge_transcript_is_refused_before_turns_are_sought_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    answer_after_prompt = openrlhf.answer_after_prompt

    def record(query: str, prompt: str) -> str:
        searched.append(len(query))
        return answer_after_prompt(query, prompt)

    monkeypatch.setattr(openrlhf, "answer_after_prompt", record)
    body = {"query": [f"{PROMPT}1.0", "<|im_start|>user\n" * 400_000], "prompts": [PROMPT] * 2}
    reply = ServiceClient(failed_reward=0.25, max_mib=64.0).post("/get_reward", body)
    assert reply.json()["rewards"] == [1.0, 0.25]
    assert searched == [len(f"{PROMPT}1.0")]
