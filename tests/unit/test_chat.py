"""`/v1/chat/completions` with the model itself as a chat model, over a scripted engine, and `/v1/models`.

Requests are those of the `openai` package's client wherever it sends them.
"""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import openai
import pytest
from serving_examples import FIRST, item, png, request, service, worker

from vlgenrm_ray.engines.contracts import Prompt, Sampling, Turn
from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.judge.wire import MAX_TEXT, Status
from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.chat import ChatService
from vlgenrm_ray.serving.engine import ChatResult, ChatTask
from vlgenrm_ray.serving.service import Service

_T = TypeVar("_T")
URL = "data:image/png;base64," + base64.b64encode(png()).decode()
PART = {"type": "image_url", "image_url": {"url": URL}}
USER = {"role": "user", "content": [PART, {"type": "text", "text": "Rate it."}]}


def echo(prompt: Prompt, random: Any) -> str:
    """Answer with the whole conversation as the engine gets it."""
    return f"{len(prompt.images)} images\n{prompt.text}"


def throw(prompt: Prompt, random: Any) -> str:
    return random.choice(["one", "two", "three", "four", "five", "six"])


def showing(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def with_client(served: Service, use: Callable[[openai.AsyncOpenAI], Awaitable[_T]], token: str = "x") -> _T:
    """Let the `openai` client talk to a service in memory."""

    async def run() -> _T:
        api = build_api(served, ready=lambda: True, swap_model=lambda folder: NotImplemented)  # type: ignore[arg-type]
        http = httpx.AsyncClient(transport=httpx.ASGITransport(api))
        async with openai.AsyncOpenAI(
            api_key=token, base_url="http://judge/v1", max_retries=0, http_client=http
        ) as client:
            return await use(client)

    return asyncio.run(run())


def chat(served: Service, messages: Any = None, **fields: Any) -> Any:
    messages = [USER] if messages is None else messages
    return with_client(served, lambda client: client.chat.completions.create(model="any", messages=messages, **fields))


def refusal(served: Service, messages: Any = None, **fields: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as refused:
        chat(served, messages, **fields)
    assert set(json.loads(refused.value.response.text)["error"]) == {"message", "type", "param", "code"}
    return refused.value


def test_a_conversation_that_ends_with_a_user_is_answered_by_the_model() -> None:
    turns = [
        {"role": "developer", "content": "Be strict."},
        {"role": "user", "content": [{"type": "text", "text": "First: "}, PART]},
        {"role": "assistant", "content": "A star."},
        {"role": "user", "content": [PART, {"type": "text", "text": "And now?\nVerdict: Yes"}]},
    ]
    reply = chat(service(echo), turns)
    (choice,) = reply.choices
    assert choice.message.content == (
        "2 images\nsystem: Be strict.\nuser: First: <image>\nassistant: A star.\nuser: <image>And now?\nVerdict: Yes"
    )
    assert (choice.finish_reason, choice.message.role, choice.logprobs) == ("stop", "assistant", None)
    assert (reply.object, reply.model) == ("chat.completion", "first-0")
    assert "reward" not in (reply.model_extra or {})
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_conversation_that_ends_with_an_assistant_is_judged_and_has_a_usage() -> None:
    reply = chat(service(), [USER, {"role": "assistant", "content": "A star."}], n=2)
    assert reply.model_extra["reward"] == pytest.approx(0.9)
    assert [c.message.content for c in reply.choices] == ["Claim: a star.\nVerdict: Yes"] * 2
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.completion_tokens > 0


def test_sampling_parameters_have_an_effect() -> None:
    served = service(throw)
    texts = [[c.message.content for c in chat(served, n=8, seed=seed).choices] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 1
    assert len({tuple(c.message.content for c in chat(served, n=8).choices) for _ in range(3)}) > 1
    greedy = chat(served, n=3, temperature=0)
    assert len({c.message.content for c in greedy.choices}) == 1
    assert [c.index for c in greedy.choices] == [0, 1, 2]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_its_length_and_at_stop_texts(name: str) -> None:
    served = service(lambda prompt, random: "alpha beta gamma delta epsilon")
    (cut,) = chat(served, **{name: 2}).choices
    assert (cut.message.content, cut.finish_reason) == ("alpha beta", "length")
    for stop in ("gamma", ["delta", " gamma"]):
        (stopped,) = chat(served, stop=stop).choices
        assert (stopped.message.content.strip(), stopped.finish_reason) == ("alpha beta", "stop")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"stream": True}, "stream", "not streamed"),
        ({"logprobs": True}, "logprobs", "assistant's turn"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"extra_body": {"top_k": 5}}, "top_k", "not supported"),
        ({"extra_body": {"chat_template": "{{ 7 * 7 }}"}}, "chat_template", "not supported"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template_kwargs", "not supported"),
        ({"max_tokens": 10_000}, "max_tokens", "serving.limits.max_chat_tokens"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 65}, "n", "less than or equal to 64"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"stop": ["a", ""]}, "stop", "at least 1 character"),
    ],
)
def test_what_a_chat_does_not_support_is_refused(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(service(), **fields)
    assert isinstance(error, openai.UnprocessableEntityError)
    assert (error.param or "").startswith(param)
    assert message in error.message


def test_fields_that_change_nothing_are_accepted() -> None:
    neutral = {"tools": [], "top_k": -1, "repetition_penalty": 1.0, "chat_template_kwargs": {}, "min_p": 0.0}
    fields = {"presence_penalty": 0.0, "response_format": {"type": "text"}, "user": "trainer", "stream": False}
    assert chat(service(echo), extra_body=neutral, **fields).choices


@pytest.mark.parametrize(
    ("messages", "code", "message"),
    [
        ([{"role": "user", "content": "<image>Rate it."}], "no_image", "image_url"),
        ([{"role": "user", "content": [{"type": "image"}, "Rate it."]}], "no_image", "image_url"),
        ([{"role": "user", "content": [PART] * 3}], "too_large", "engine.max_images"),
        ([{"role": "user", "content": "x" * (MAX_TEXT // 2 + 1)}] * 2, "too_large", "characters"),
        ([{"role": "user", "content": "word " * 12_000}], "too_large", "characters"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}] * 1025}], "too_large", "1025 texts"),
        ([{"role": "user", "content": " "}], "no_question", "empty"),
        (showing("http://a/b.png"), "bad_image", "not fetched"),
        (showing("/etc/passwd.png"), "bad_image", "not below a folder"),
        (showing(URL[:60]), "bad_image", ""),
        ([{"role": "tool", "content": "3"}, USER], "bad_request", "messages[0].role"),
        ([USER, {"role": "tool", "content": "3"}], None, "the last turn"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], None, "input_audio"),
        ([{"role": "user", "content": "half \ud83d"}], None, "not a valid text"),
        ([{"content": "no role"}], None, "role"),
        ([], None, "messages"),
        ("Rate it.", None, "messages"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_answered_is_refused(messages: Any, code: str | None, message: str) -> None:
    api = build_api(service(echo, blind_judging="refuse"), ready=lambda: True, swap_model=lambda f: NotImplemented)  # type: ignore[arg-type]

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://judge") as http:
            return await http.post("/v1/chat/completions", content=json.dumps({"messages": messages}))

    answer = asyncio.run(send())
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert message in error["message"]


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '"x"', "[" * 100_000, '{"messages": NaN}'])
def test_a_body_that_is_no_request_is_refused_in_openais_form(body: str) -> None:
    api = build_api(service(), ready=lambda: True, swap_model=lambda folder: NotImplemented)  # type: ignore[arg-type]

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://judge") as http:
            return await http.post("/v1/chat/completions", content=body)

    answer = asyncio.run(send())
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_texts_about_no_image_are_answered_and_placeholders_may_be_allowed() -> None:
    strict = service(echo, blind_judging="refuse")
    assert chat(strict, [{"role": "user", "content": "2 + 2?"}]).choices[0].message.content == "0 images\nuser: 2 + 2?"
    assert chat(service(echo), [{"role": "user", "content": "<image>Rate it."}]).choices


def test_a_deadline_and_a_full_queue_are_503_with_retry_after() -> None:
    late = refusal(service(delay_s=5.0, deadline_s=0.05), n=2)
    assert isinstance(late, openai.InternalServerError)
    assert (late.code, late.type) == ("timeout", "server_error")
    assert "0 of 2 answers" in late.message
    assert late.response.headers["retry-after"] == "1"

    async def two(client: openai.AsyncOpenAI) -> list[Any]:
        ask = [client.chat.completions.create(model="m", messages=[USER]) for _ in range(3)]
        return await asyncio.gather(*ask, return_exceptions=True)

    served = service(delay_s=0.05, max_queue=1)
    outcomes = with_client(served, two)
    refused = [outcome for outcome in outcomes if isinstance(outcome, openai.InternalServerError)]
    assert (len(refused), {error.code for error in refused}) == (2, {"overloaded"})
    assert refused[0].response.headers["retry-after"] == "1"
    assert served.num_running == 0
    assert 'vlgenrm_chats_total{status="overloaded"} 2.0' in served.metrics.render().decode()


def test_chats_and_items_share_the_queue() -> None:
    served = service(delay_s=0.05, max_queue=1)

    async def both(client: openai.AsyncOpenAI) -> Any:
        asking = asyncio.ensure_future(client.chat.completions.create(model="m", messages=[USER]))
        while not served.num_running:
            await asyncio.sleep(0.001)
        judged = [USER, {"role": "assistant", "content": "A star."}]
        with pytest.raises(openai.InternalServerError, match="queue is full") as refused:
            await client.chat.completions.create(model="m", messages=judged)
        await asking
        return refused.value

    assert with_client(served, both).code == "overloaded"


def test_a_client_that_disconnects_aborts_the_answer() -> None:
    served = service(delay_s=5.0)

    async def run() -> None:
        answering = asyncio.ensure_future(ChatService(served).answer([USER], Sampling(), None))
        while not served.generator.num_asked:  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        assert (served.num_running, served.generator.num_aborted) == (0, 1)  # type: ignore[attr-defined]

    asyncio.run(run())


def test_a_conversation_is_repeated_on_another_engine_if_its_own_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlgenrm_ray.serving.engine._FIRST_PAUSE_S", 0.001)
    served = service(echo)
    calls: list[ChatTask] = []
    answer = served.dispatcher.engine.chat

    async def lost_first(task: ChatTask, model: Any) -> tuple[str, ChatResult]:
        calls.append(task)
        if len(calls) == 1:
            raise EngineLostError("gone")
        return await answer(task, model)

    monkeypatch.setattr(served.dispatcher.engine, "chat", lost_first)
    assert chat(served).choices
    assert len(calls) == 2
    assert "vlgenrm_replica_losses_total 1.0" in served.metrics.render().decode()


def test_errors_of_an_engine_are_internal_and_hide_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    served = service()

    async def fail(task: ChatTask, model: Any) -> tuple[str, ChatResult]:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(served.dispatcher.engine, "chat", fail)
    error = refusal(served)
    assert (error.code, error.status_code) == ("internal", 503)
    assert "RuntimeError" in error.message
    assert "secret" not in error.message


def test_a_worker_answers_failures_with_a_status() -> None:
    async def ask(**fields: Any) -> ChatResult:
        task = ChatTask(
            turns=(Turn(role="user", parts=("Hi",)),), images=(), sampling=Sampling(), seed=1, deadline_s=5.0
        )
        fields = {name: getattr(task, name) for name in task.__slots__} | fields
        return (await worker(echo).chat(ChatTask(**fields), FIRST))[1]

    long = asyncio.run(ask(turns=(Turn(role="user", parts=("x" * 30_000,)),)))
    assert (long.status, long.answers) == ("prompt_too_long", ())
    copies = asyncio.run(ask(sampling=Sampling(n=2, temperature=0.0)))
    assert (copies.status, copies.detail) == ("internal", "ConfigError")
    assert asyncio.run(ask(deadline_s=0.0)).status == "timeout"


def test_the_models_are_listed() -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        (model,) = (await client.models.list()).data
        assert (model.id, model.object) == ("first-0", "model")
        assert (await client.models.retrieve("first-0")).id == "first-0"
        for other in ("other", "some/where/else"):
            with pytest.raises(openai.NotFoundError, match="not served") as missing:
                await client.models.retrieve(other)
            assert missing.value.code == "model_not_found"

    with_client(service(), use)


def test_tokens_and_body_limits_are_refused_in_openais_form() -> None:
    served = service(max_body_mib=0.01)
    served.config = served.config.model_copy(update={"tokens": ApiTokens.from_secrets(api="secret")})

    async def use(client: openai.AsyncOpenAI) -> None:
        for call in (client.models.list(), client.chat.completions.create(model="m", messages=[USER])):
            with pytest.raises(openai.AuthenticationError) as unknown:
                await call
            assert unknown.value.type == "authentication_error"
        known = client.with_options(api_key="secret")
        with pytest.raises(openai.APIStatusError) as large:
            await known.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 20_000}])
        assert (large.value.status_code, large.value.type) == (413, "invalid_request_error")

    with_client(served, use, token="wrong")


def test_a_scored_item_reports_its_tokens() -> None:
    (reply,) = asyncio.run(service().score(request(item(num_critiques=3)))).items
    assert reply.status is Status.OK
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.completion_tokens == 3 * len(["Claim", ":", " a", " star", ".", "\n", "Verdict", ":", " Yes"])
