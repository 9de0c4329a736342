"""The gateway of NeMo Gym: recorded contract of Gym 0.7.0, as its agents and its environment server call it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from close_values import assert_close
from fake_gateway import FakeGateway

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.protocol import image_references
from vlgenrm_ray.judge.wire import MAX_TEXT, ScoreRequest, ScoreResponse
from vlgenrm_ray.serving.gateways import nemo_gym
from vlgenrm_ray.serving.gym_metrics import aggregate_metrics
from vlgenrm_ray.serving.limits import OverloadedError

URL, OTHER = "data:image/png;base64,aGVsbG8=", "data:image/png;base64,d29ybGQ="
EPISODE = {"rollout_id": "0-0", "attempt": 0}
SEED = {
    "resources_session_id": "resources-session-1f",
    "episode_id": EPISODE,
    "task_id": {"taskset": "shapes", "task_id": "7"},
    "task_data": {"expected_answer": "a cat"},
}


def rollout(text: str, **over: object) -> dict[str, object]:
    content = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "What?"}]
    output = [
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
    ]
    turns = [{"type": "message", "role": "user", "content": content}, {"type": "function_call", "name": "f"}]
    return {"responses_create_params": {"input": turns}, "response": {"output": output}, **over}


def post(path: str, body: Any, **options: Any) -> Any:
    answer = FakeGateway(nemo_gym.router, **options).post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_gym_receives_its_request_with_a_reward() -> None:
    gateway = FakeGateway(nemo_gym.router)
    body = rollout("0.75", expected_answer="a cat", row=3)
    reply = gateway.post("/verify", body).json()
    statistics = {"verdict_mass": 0.9, "num_critiques": 1, "model_version": "scripted"}
    valid = {"mask_sample": False, "failure_kind": None, "failure_reason": None}
    assert reply == {**body, "reward": 0.75, **statistics, **valid}
    (item,) = gateway.items
    assert (item.response, item.reference, len(item.messages)) == ("0.75", "a cat", 1)
    assert item.messages[0]["content"][0]["image_url"]["url"] == URL
    plain = {"responses_create_params": {"input": "What?"}, "response": rollout("1")["response"]}
    assert gateway.post("/verify", plain).json()["reward"] == 1.0


def test_a_rollout_may_have_several_images() -> None:
    gateway = FakeGateway(nemo_gym.router)
    content = [{"type": "input_image", "image_url": url} for url in (OTHER, URL)]
    params = {"input": [{"role": "user", "content": [*content, {"type": "input_text", "text": "Which?"}]}]}
    assert gateway.post("/verify", rollout("1", responses_create_params=params)).json()["reward"] == 1.0
    assert image_references(gateway.items[0]) == [OTHER, URL]


@pytest.mark.parametrize(
    ("status", "kind", "failure_class", "is_terminal"),
    [
        ("timeout", "judge_failed", "judge_failed", False),
        ("overloaded", "judge_failed", "judge_failed", False),
        ("internal", "judge_failed", "judge_failed", False),
        ("unreadable_verdict", "judge_unparseable", "judge_unparseable", True),
        ("bad_image", "verifier_error", "verifier_error", True),
        ("no_image", "verifier_error", "verifier_error", True),
        ("no_question", "verifier_error", "verifier_error", True),
        ("too_large", "verifier_error", "verifier_error", True),
        ("bad_request", "verifier_error", "verifier_error", True),
        ("empty_text", "vlgenrm:empty_text", None, None),
        ("forged_critique", "vlgenrm:forged_critique", None, None),
    ],
)
def test_a_sample_without_a_reward_is_masked(
    status: str, kind: str, failure_class: str | None, is_terminal: bool | None
) -> None:
    reply = post("/verify", rollout(f"fails:{status}", row=3, instance_config={"depth": 2}))
    assert (reply["reward"], reply["mask_sample"], reply["failure_kind"]) == (0.0, True, kind)
    assert reply["failure_reason"] == f"{status}: as scripted"
    assert reply["instance_config"] == {"depth": 2, "mask_sample": True}
    assert (reply["row"], reply.get("_ng_failure_class")) == (3, failure_class)
    assert reply.get("_ng_failure_terminal", False) is bool(is_terminal)


@pytest.mark.parametrize(
    "body",
    [
        rollout("1", responses_create_params={}),
        rollout("1", response={"output": "text"}),
        rollout("1", response={"output": [{"type": "message", "content": "text"}]}),
        rollout("1", responses_create_params={"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
        rollout("1" * (MAX_TEXT + 1)),
        rollout("1", instance_config="none", reference="x" * (MAX_TEXT + 1)),
    ],
)
def test_a_rollout_that_cannot_be_read_is_masked_alone(body: dict[str, object]) -> None:
    reply = post("/verify", body)
    assert (reply["reward"], reply["mask_sample"], reply["failure_kind"]) == (0.0, True, "verifier_error")
    assert reply["failure_reason"].startswith(("bad_request: re", "too_large: re"))
    assert len(reply["failure_reason"]) <= 2000


def test_a_full_queue_is_a_mask_that_gym_may_try_again() -> None:
    async def full(request: ScoreRequest) -> ScoreResponse:
        raise OverloadedError

    reply = post("/verify", rollout("1"), judge=full)
    assert (reply["mask_sample"], reply["failure_kind"]) == (True, "judge_failed")
    assert "_ng_failure_terminal" not in reply


def test_a_body_that_is_no_rollout_is_422() -> None:
    for body in ({}, {"response": {}}, [], {"responses_create_params": "x", "response": {}}):
        assert FakeGateway(nemo_gym.router).post("/verify", body).status_code == 422


def test_rows_are_returned_unchanged() -> None:
    text = json.dumps(rollout("1", odd=math.nan, half="\ud800"))
    answer = FakeGateway(nemo_gym.router).post("/verify", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert '"odd": NaN' in answer.text


@pytest.mark.parametrize("prefix", ["", "/ng-rollout/0-0-a1"])
def test_a_session_of_an_environment_server(prefix: str) -> None:
    gateway = FakeGateway(nemo_gym.router)
    for _ in range(2):
        seeded = gateway.post(f"{prefix}/seed_session", SEED)
        assert seeded.json() == {"resources_session_id": SEED["resources_session_id"]}
        # Gym refuses a session without a cookie.
        assert "vlgenrm_session=" in seeded.headers["set-cookie"]
    assert gateway.post(f"{prefix}/verify", rollout("1")).json()["reward"] == 1.0
    for _ in range(2):
        closing = {"resources_session_id": "resources-session-1f", "episode_id": EPISODE}
        assert gateway.post(f"{prefix}/close_session", closing).json() == {
            "resources_session_id": "resources-session-1f"
        }
    never_seeded = {"resources_session_id": "other", "episode_id": EPISODE}
    assert gateway.post(f"{prefix}/close_session", never_seeded).json() == {"resources_session_id": "other"}
    assert gateway.request("GET", f"{prefix}/reverify_mode").json() == "stateless"
    assert gateway.post(f"{prefix}/aggregate_metrics", {"verify_responses": []}).status_code == 200


def test_an_agents_own_session_is_confirmed_without_an_id() -> None:
    for body in ({}, rollout("1", row=3), {"resources_session_id": None}):
        assert post("/seed_session", body) == {}
    gateway = FakeGateway(nemo_gym.router)
    for path, body in (("/close_session", {}), ("/seed_session", {"resources_session_id": "x" * 2000})):
        assert gateway.post(path, body).status_code == 422


ROLLOUTS: list[dict[str, Any]] = [
    {"_ng_task_index": 0, "_ng_rollout_index": 0, "reward": 1.0, "mask_sample": False, "verdict_mass": 0.5},
    {"_ng_task_index": 0, "_ng_rollout_index": 1, "reward": 0.0, "ok": True, "response": {"usage": {"tokens": 7}}},
    {"_ng_task_index": 1, "_ng_rollout_index": 0, "reward": 0.25, "text": "x", "_ng_hidden": 3},
    {"_ng_task_index": 1, "_ng_rollout_index": 1, "reward": 0.0, "mask_sample": True, "failure_kind": "judge_failed"},
]  # fmt: skip
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "nemo_gym_aggregate_metrics.json").read_text())
"""Reply to `ROLLOUTS` of `nemo_gym.reward_profile.compute_aggregate_metrics`, NeMo Gym 0.7.0."""


def test_aggregate_metrics_are_those_of_gym() -> None:
    reply = post("/aggregate_metrics", {"verify_responses": ROLLOUTS})
    assert_close(reply, RECORDED)


def test_aggregate_metrics_of_masked_samples_alone_are_no_scores() -> None:
    reply = aggregate_metrics([ROLLOUTS[3]])
    coverage = {
        "coverage/measured_rollouts": 0,
        "coverage/masked_rollouts": 1,
        "coverage/measured_tasks": 0,
        "coverage/fully_masked_tasks": 1,
    }
    assert (reply["agent_metrics"], reply["key_metrics"], reply["group_level_metrics"]) == (coverage, coverage, [])
    assert aggregate_metrics([])["agent_metrics"] == {}


def test_the_performance_of_rollouts_is_summarized() -> None:
    perf = [{"prompt_tokens": 10, "completion_tokens": 6, "num_turns": 2, "total_latency_ms": 100.0}, {"num_turns": 4}]
    rollouts = [{"_ng_task_index": i, "reward": 1.0, "ng_perf": record} for i, record in enumerate(perf)]
    summary = aggregate_metrics([*rollouts, {"_ng_task_index": 2, "reward": 0.0}])["perf_summary"]
    assert summary["overall_observability_coverage"] == pytest.approx(2 / 3)
    assert (summary["total_prompt_tokens"], summary["mean_num_turns"], summary["max_num_turns"]) == (10, 3.0, 4)
    assert (summary["mean_tokens_per_turn"], summary["total_latency_p99_ms"]) == (3.0, 100.0)


@pytest.mark.parametrize(
    "rollouts",
    [
        [{"_ng_task_index": "a"}],
        [{"_ng_rollout_index": 1.5}],
        [{"_ng_task_index": True}],
        [{"_ng_task_index": 1}, {"_ng_task_index": 1}],
    ],
)
def test_rollouts_that_cannot_be_told_apart_are_refused(rollouts: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"verify_responses\[[01]\]"):
        aggregate_metrics(rollouts)
    assert FakeGateway(nemo_gym.router).post("/aggregate_metrics", {"verify_responses": rollouts}).status_code == 422


def test_numbers_that_are_none_are_left_out() -> None:
    odd = {"nan": math.nan, "infinite": math.inf, "huge": 10**400, "big": 1e200, "none": None, "list": [1]}
    rows = [{"_ng_rollout_index": i, "reward": 1.0, "ng_perf": odd, "response": "x", **odd} for i in range(2)]
    reply = aggregate_metrics(rows)
    json.dumps(reply, allow_nan=False)
    assert {name.partition("/")[2] for name in reply["key_metrics"]} == {"reward"}
