"""Gateways of clients that send conversations: OpenAI chat (judged ones, see also `test_chat`) and UniRL."""

import asyncio
import math

import httpx
import pytest
from fake_gateway import FakeGateway

from vlgenrm_ray.judge.protocol import image_references
from vlgenrm_ray.judge.wire import ScoreReply, ScoreRequest, ScoreResponse, Status, WireCritique
from vlgenrm_ray.serving.gateways import openai_chat, unirl

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
