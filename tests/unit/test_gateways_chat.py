"""Gateways of clients that send conversations: OpenAI chat, NeMo Gym, UniRL."""

import asyncio
import json
import math

import httpx
import pytest
from fake_gateway import FakeGateway

from vlgenrm_ray.judge.protocol import image_references
from vlgenrm_ray.judge.wire import ScoreReply, ScoreRequest, ScoreResponse, Status, WireCritique
from vlgenrm_ray.serving.gateways import nemo_gym, openai_chat, unirl

URL, OTHER = "data:image/png;base64,aGVsbG8=", "data:image/png;base64,d29ybGQ="
USER = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "What?"}],
}


def chat(response: str, **over: object) -> dict[str, object]:
    return {"model": "m", "messages": [USER, {"role": "assistant", "content": response}], **over}


def test_a_chat_completion_is_a_critique_with_the_verdicts_logprobs() -> None:
    gateway = FakeGateway(openai_chat.router)
    reply = gateway.post("/v1/chat/completions", chat("0.25", n=3, seed=7, logprobs=True, temperature=0.2)).json()
    assert reply["object"] == "chat.completion"
    assert (reply["model"], reply["reward"]) == ("scripted", 0.25)
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Claim: 0.25.\nVerdict: No"}
    (verdict,) = reply["choices"][0]["logprobs"]["content"]
    assert verdict["token"] == "No"
    assert {t["token"]: math.exp(t["logprob"]) for t in verdict["top_logprobs"]} == pytest.approx(
        {"Yes": 0.25, "No": 0.75}
    )
    (item,) = gateway.items
    assert (item.num_critiques, item.seed, item.response) == (3, 7, "0.25")
    assert item.messages[0]["content"][0]["image_url"]["url"] == URL


def test_a_chat_may_have_several_images() -> None:
    gateway = FakeGateway(openai_chat.router)
    more = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": OTHER}}]}
    turns = [USER, {"role": "assistant", "content": "And?"}, more, {"role": "assistant", "content": "0.5"}]
    assert gateway.post("/v1/chat/completions", {"messages": turns}).json()["reward"] == 0.5
    assert image_references(gateway.items[0]) == [URL, OTHER]


def test_a_certain_and_an_unreadable_verdict_have_finite_logprobs_or_none() -> None:
    async def score(request: ScoreRequest) -> ScoreResponse:
        critiques = [WireCritique(text="Verdict: Yes", p_yes=1.0), WireCritique(text="Who knows", p_yes=None)]
        return ScoreResponse(items=[ScoreReply(reward=1.0, status=Status.OK, critiques=critiques)])

    reply = FakeGateway(openai_chat.router, score).post("/v1/chat/completions", chat("x", logprobs=True)).json()
    (sure, unsure) = reply["choices"]
    assert [t["logprob"] for t in sure["logprobs"]["content"][0]["top_logprobs"]] == [0.0, -9999.0]
    assert unsure["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (chat("fails:overloaded"), 503, "overloaded"),
        (chat("fails:bad_image"), 422, "bad_image"),
        (chat("1", stream=True), 422, "stream"),
        ({"messages": [USER]}, 422, "last turn"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant"}]}, 422, "audio"),
    ],
)
def test_a_chat_error_has_openais_form(body: dict[str, object], code: int, message: str) -> None:
    answer = FakeGateway(openai_chat.router).post("/v1/chat/completions", body)
    assert answer.status_code == code
    assert message in answer.json()["error"]["message"]
    assert ("retry-after" in answer.headers) == (code == 503)


def rollout(text: str, **over: object) -> dict[str, object]:
    content = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "What?"}]
    output = [
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
    ]
    turns = [{"type": "message", "role": "user", "content": content}, {"type": "function_call", "name": "f"}]
    return {"responses_create_params": {"input": turns}, "response": {"output": output}, **over}


def test_gym_receives_its_request_with_a_reward() -> None:
    gateway = FakeGateway(nemo_gym.router)
    body = rollout("0.75", expected_answer="a cat", row=3)
    reply = gateway.post("/verify", body).json()
    assert reply == {**body, "reward": 0.75, "verdict_mass": 0.9, "num_critiques": 1, "model_version": "scripted"}
    (item,) = gateway.items
    assert (item.response, item.reference, len(item.messages)) == ("0.75", "a cat", 1)
    assert item.messages[0]["content"][0]["image_url"]["url"] == URL
    plain = {"responses_create_params": {"input": "What?"}, "response": rollout("1")["response"]}
    assert gateway.post("/verify", plain).json()["reward"] == 1.0
    assert gateway.post("/seed_session", {}).json() == {}


def test_a_gym_rollout_may_have_several_images() -> None:
    gateway = FakeGateway(nemo_gym.router)
    content = [{"type": "input_image", "image_url": url} for url in (OTHER, URL)]
    params = {"input": [{"role": "user", "content": [*content, {"type": "input_text", "text": "Which?"}]}]}
    assert gateway.post("/verify", rollout("1", responses_create_params=params)).json()["reward"] == 1.0
    assert image_references(gateway.items[0]) == [OTHER, URL]


def test_gym_receives_failures_as_http_errors() -> None:
    for status, code in (("timeout", 503), ("unreadable_verdict", 422)):
        answer = FakeGateway(nemo_gym.router).post("/verify", rollout(f"fails:{status}"))
        assert answer.status_code == code
        assert "reward" not in answer.json()


@pytest.mark.parametrize(
    "body",
    [
        rollout("1", responses_create_params={}),
        rollout("1", response={"output": "text"}),
        rollout("1", response={"output": [{"type": "message", "content": "text"}]}),
        rollout("1", responses_create_params={"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
    ],
)
def test_unreadable_gym_rollouts_are_422(body: dict[str, object]) -> None:
    assert FakeGateway(nemo_gym.router).post("/verify", body).status_code == 422


def test_gym_rows_are_returned_unchanged() -> None:
    text = json.dumps(rollout("1", odd=math.nan, half="\ud800"))
    answer = FakeGateway(nemo_gym.router).post("/verify", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert '"odd": NaN' in answer.text


def test_unirl_receives_results_and_errors_per_item() -> None:
    gateway = FakeGateway(unirl.router)
    turn = {"text": "0.5", "image_b64": "aGVsbG8="}
    metadata = {"question": "What?", "response": "fails:timeout"}
    body = {
        "requests": [
            {"history": [{"text": "before", "image_b64": "eA=="}, turn], "required_rewards": ["vlgenrm", "clip"]},
            {"history": [turn], "required_rewards": ["vlgenrm"], "metadata": metadata},
            {"history": [{"text": "x", "video_path": "/a.mp4"}], "required_rewards": ["vlgenrm"]},
            {"history": [turn], "required_rewards": ["clip"]},
        ]
    }
    reply = gateway.post("/score", body).json()
    assert reply["results"] == [{"vlgenrm": {"vlgenrm": 0.5}}, {}, {}, {}]
    assert [sorted(e) for e in reply["errors"]] == [["clip"], ["vlgenrm"], ["vlgenrm"], ["clip"]]
    assert reply["errors"][1]["vlgenrm"] == "timeout: as scripted"
    assert [(i.question, i.response) for i in gateway.items] == [
        ("Describe the image.", "0.5"),
        ("What?", "fails:timeout"),
    ]
    assert gateway.request("GET", "/rewards").json() == {"rewards": ["vlgenrm"]}


def test_the_openai_client_reads_replies_and_raises_on_failures() -> None:
    import openai

    gateway = FakeGateway(openai_chat.router)

    async def talk() -> None:
        transport = httpx.ASGITransport(gateway.app)
        async with openai.AsyncOpenAI(
            api_key="x",
            base_url="http://judge/v1",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=transport),
        ) as client:
            reply = await client.chat.completions.create(**chat("0.25", n=2, logprobs=True, max_tokens=64))
            assert [choice.message.content for choice in reply.choices] == ["Claim: 0.25.\nVerdict: No"] * 2
            assert reply.choices[0].logprobs.content[0].token == "No"
            assert reply.model_extra["reward"] == 0.25
            with pytest.raises(openai.InternalServerError, match="overloaded"):
                await client.chat.completions.create(**chat("fails:overloaded"))
            with pytest.raises(openai.UnprocessableEntityError, match="bad_image"):
                await client.chat.completions.create(**chat("fails:bad_image"))

    asyncio.run(talk())
