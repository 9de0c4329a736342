"""Gateways of clients that send conversations: OpenAI chat, NeMo Gym, UniRL."""

import asyncio
import json
import math

import httpx
import pytest
from fake_gateway import Gateway

from vlgenrm_ray.judge.protocol import image_references
from vlgenrm_ray.judge.wire import ScoreReply, ScoreRequest, ScoreResponse, Status, WireCritique
from vlgenrm_ray.serving.gateways import ROUTERS, nemo_gym, openai_chat, unirl

URL, OTHER = "data:image/png;base64,aGVsbG8=", "data:image/png;base64,d29ybGQ="
USER = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "What?"}],
}


def judged(response: str, **over: object) -> dict[str, object]:
    return {"model": "m", "messages": [USER, {"role": "assistant", "content": response}], **over}


def test_a_chat_completion_is_a_critique_with_the_verdicts_logprobs() -> None:
    gateway = Gateway(openai_chat.router)
    told = gateway.post("/v1/chat/completions", judged("0.25", n=3, seed=7, logprobs=True, temperature=0.2)).json()
    assert told["object"] == "chat.completion"
    assert (told["model"], told["reward"]) == ("scripted", 0.25)
    assert [c["index"] for c in told["choices"]] == [0, 1, 2]
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "Claim: 0.25.\nVerdict: No"}
    (verdict,) = told["choices"][0]["logprobs"]["content"]
    assert verdict["token"] == "No"
    assert {t["token"]: math.exp(t["logprob"]) for t in verdict["top_logprobs"]} == pytest.approx(
        {"Yes": 0.25, "No": 0.75}
    )
    (item,) = gateway.items
    assert (item.num_critiques, item.seed, item.response) == (3, 7, "0.25")
    assert item.messages[0]["content"][0]["image_url"]["url"] == URL


def test_a_chat_may_show_several_images() -> None:
    gateway = Gateway(openai_chat.router)
    more = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": OTHER}}]}
    turns = [USER, {"role": "assistant", "content": "And?"}, more, {"role": "assistant", "content": "0.5"}]
    assert gateway.post("/v1/chat/completions", {"messages": turns}).json()["reward"] == 0.5
    assert image_references(gateway.items[0]) == [URL, OTHER]


def test_a_certain_and_an_unreadable_verdict_have_finite_logprobs_or_none() -> None:
    async def judge(request: ScoreRequest) -> ScoreResponse:
        critiques = [WireCritique(text="Verdict: Yes", p_yes=1.0), WireCritique(text="Who knows", p_yes=None)]
        return ScoreResponse(items=[ScoreReply(reward=1.0, status=Status.OK, critiques=critiques)])

    told = Gateway(openai_chat.router, judge).post("/v1/chat/completions", judged("x", logprobs=True)).json()
    (sure, unsure) = told["choices"]
    assert [t["logprob"] for t in sure["logprobs"]["content"][0]["top_logprobs"]] == [0.0, -9999.0]
    assert unsure["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (judged("fails:overloaded"), 503, "overloaded"),
        (judged("fails:bad_image"), 422, "bad_image"),
        (judged("1", stream=True), 422, "stream"),
        ({"messages": [USER]}, 422, "last turn"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant"}]}, 422, "audio"),
    ],
)
def test_a_chat_error_has_openais_form(body: dict[str, object], code: int, said: str) -> None:
    answer = Gateway(openai_chat.router).post("/v1/chat/completions", body)
    assert answer.status_code == code
    assert said in answer.json()["error"]["message"]
    assert ("retry-after" in answer.headers) == (code == 503)


def rollout(text: str, **over: object) -> dict[str, object]:
    content = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "What?"}]
    output = [
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
    ]
    given = [{"type": "message", "role": "user", "content": content}, {"type": "function_call", "name": "f"}]
    return {"responses_create_params": {"input": given}, "response": {"output": output}, **over}


def test_gym_gets_its_request_back_with_a_reward() -> None:
    gateway = Gateway(nemo_gym.router)
    body = rollout("0.75", expected_answer="a cat", row=3)
    told = gateway.post("/verify", body).json()
    assert told == {**body, "reward": 0.75, "verdict_mass": 0.9, "num_critiques": 1, "model_version": "scripted"}
    (item,) = gateway.items
    assert (item.response, item.reference, len(item.messages)) == ("0.75", "a cat", 1)
    assert item.messages[0]["content"][0]["image_url"]["url"] == URL
    plain = {"responses_create_params": {"input": "What?"}, "response": rollout("1")["response"]}
    assert gateway.post("/verify", plain).json()["reward"] == 1.0
    assert gateway.post("/seed_session", {}).json() == {}


def test_gym_may_show_several_images() -> None:
    gateway = Gateway(nemo_gym.router)
    content = [{"type": "input_image", "image_url": url} for url in (OTHER, URL)]
    given = {"input": [{"role": "user", "content": [*content, {"type": "input_text", "text": "Which?"}]}]}
    assert gateway.post("/verify", rollout("1", responses_create_params=given)).json()["reward"] == 1.0
    assert image_references(gateway.items[0]) == [OTHER, URL]


def test_gym_is_told_of_a_failure_by_http() -> None:
    for status, code in (("timeout", 503), ("unreadable_verdict", 422)):
        answer = Gateway(nemo_gym.router).post("/verify", rollout(f"fails:{status}"))
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
def test_gym_rollouts_that_cannot_be_read(body: dict[str, object]) -> None:
    assert Gateway(nemo_gym.router).post("/verify", body).status_code == 422


def test_gym_rows_go_back_as_they_came() -> None:
    text = json.dumps(rollout("1", odd=math.nan, half="\ud800"))
    answer = Gateway(nemo_gym.router).post("/verify", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert '"odd": NaN' in answer.text


def test_unirl_gets_results_and_errors_side_by_side() -> None:
    gateway = Gateway(unirl.router)
    turn = {"text": "0.5", "image_b64": "aGVsbG8="}
    asked = {"question": "What?", "response": "fails:timeout"}
    body = {
        "requests": [
            {"history": [{"text": "before", "image_b64": "eA=="}, turn], "required_rewards": ["vlgenrm", "clip"]},
            {"history": [turn], "required_rewards": ["vlgenrm"], "metadata": asked},
            {"history": [{"text": "x", "video_path": "/a.mp4"}], "required_rewards": ["vlgenrm"]},
            {"history": [turn], "required_rewards": ["clip"]},
        ]
    }
    told = gateway.post("/score", body).json()
    assert told["results"] == [{"vlgenrm": {"vlgenrm": 0.5}}, {}, {}, {}]
    assert [sorted(e) for e in told["errors"]] == [["clip"], ["vlgenrm"], ["vlgenrm"], ["clip"]]
    assert told["errors"][1]["vlgenrm"] == "timeout: as scripted"
    assert [(i.question, i.response) for i in gateway.items] == [
        ("Describe the image.", "0.5"),
        ("What?", "fails:timeout"),
    ]
    assert gateway.request("GET", "/rewards").json() == {"rewards": ["vlgenrm"]}


def test_every_gateway_is_listed_and_their_paths_differ() -> None:
    apps = [Gateway(router).app.openapi()["paths"] for router in ROUTERS]
    paths = [path for app in apps for path in app]
    assert len(paths) == len(set(paths)) == 8


def test_openais_own_client_reads_the_answer_and_raises_on_a_failure() -> None:
    import openai

    gateway = Gateway(openai_chat.router)

    async def talk() -> None:
        transport = httpx.ASGITransport(gateway.app)
        async with openai.AsyncOpenAI(
            api_key="x",
            base_url="http://judge/v1",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=transport),
        ) as client:
            told = await client.chat.completions.create(**judged("0.25", n=2, logprobs=True, max_tokens=64))
            assert [choice.message.content for choice in told.choices] == ["Claim: 0.25.\nVerdict: No"] * 2
            assert told.choices[0].logprobs.content[0].token == "No"
            assert told.model_extra["reward"] == 0.25
            with pytest.raises(openai.InternalServerError, match="overloaded"):
                await client.chat.completions.create(**judged("fails:overloaded"))
            with pytest.raises(openai.UnprocessableEntityError, match="bad_image"):
                await client.chat.completions.create(**judged("fails:bad_image"))

    asyncio.run(talk())
