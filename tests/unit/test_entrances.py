"""Every entrance of texts and images: adapters, gateways and the API itself.

An item about an image that has none is refused unless blind judging is allowed; images are taken from where each
trainer keeps them; the policy's special tokens do not reach the judge.
"""

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gateway import FakeGateway
from PIL import Image
from serving_examples import item, png, request, service

from vlgenrm_ray.adapters import areal, clients, easyr1, inputs, ms_swift, nemo_rl, rewards, roll, skyrl, slime, trl
from vlgenrm_ray.adapters import verifiers as verifiers_adapter
from vlgenrm_ray.adapters import verl as verl_adapter
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.images import ImageUploads
from vlgenrm_ray.judge.protocol import ScoreInput, build_score_item, image_references
from vlgenrm_ray.judge.wire import (
    CompareRequest,
    RankRequest,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    Status,
)
from vlgenrm_ray.serving.gateways import llama_factory, nemo_gym, openai_chat, openrlhf, unirl
from vlgenrm_ray.serving.gateways import slime as slime_gateway

IMAGE = Image.new("RGB", (16, 16), "red")
URL = "data:image/png;base64," + base64.b64encode(png()).decode()
RENDERED = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
MARKED = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
GEO3K = {"split": "train", "index": 0, "answer": "48", "question": "<image>Find x."}
"""The `extra_info` of verl's own geo3k rows: a question with a placeholder, and no image."""


class RecordingJudge:
    """A client of a served judge that records the items it would send."""

    def __init__(self) -> None:
        self.items: list[ScoreItem] = []

    def _replies(self, score_inputs: Sequence[ScoreInput]) -> list[ScoreReply]:
        items = [build_score_item(score_input, ImageUploads()) for score_input in score_inputs]
        assert all(isinstance(item, ScoreItem) for item in items)
        self.items += items  # type: ignore[arg-type]
        return [ScoreReply(reward=0.5, status=Status.OK) for _ in items]

    def blocking(self, *_: Any) -> Any:
        return SimpleNamespace(score=lambda score_inputs, **_: self._replies(score_inputs))

    def asynchronous(self, *_: Any) -> Any:
        async def score(score_inputs: Sequence[ScoreInput], **_: Any) -> list[ScoreReply]:
            return self._replies(score_inputs)

        return SimpleNamespace(score=score)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingJudge]:
    recording = RecordingJudge()
    monkeypatch.setenv(clients.PROBE_VARIABLE, "0")
    adapters = (areal, easyr1, ms_swift, nemo_rl, roll, skyrl, slime, trl, verifiers_adapter, verl_adapter, clients)
    for module in adapters:
        for name, client in (("judge_client", recording.blocking), ("async_judge_client", recording.asynchronous)):
            monkeypatch.setattr(module, name, client, raising=False)
    rewards.reset_counts()
    yield recording
    rewards.reset_counts()


def data_proto(**fields: Any) -> Any:
    """The last sequence of verl's DataProto."""
    row = SimpleNamespace(
        batch={"responses": np.array([7]), "attention_mask": np.array([1, 1])}, non_tensor_batch=fields
    )
    return {-1: row}


def verl_manager(response: str, **fields: Any) -> None:
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: response)
    asyncio.run(verl_adapter.JudgeRewardManager(None, tokenizer).run_single(data_proto(**fields)))


def nemo_rl_input(content: Any, info: Any = None, response: str = "A cat.") -> ScoreInput:
    log = [{"role": "user", "content": content, "token_ids": object()}, {"role": "assistant", "content": response}]
    return nemo_rl._score_input(log, info)


def roll_input(prompt: str, response: str = "A cat.", **fields: Any) -> None:
    images = [inputs.sample_images(fields)]
    roll.rewards([prompt], [response], [None], [0], images)


def skyrl_step(prompt: Any, response: str = "A cat.") -> None:
    env = skyrl.JudgeEnv(extras={"reward_spec": {"ground_truth": None}})
    env.init(prompt)
    env.step(response)


def slime_sample(**fields: Any) -> Any:
    return SimpleNamespace(**{"response": "A cat.", "prompt": RENDERED, "label": "a cat", "group_index": 0} | fields)


END_TOKENS = ["<|im_end|>", "<end_of_turn>\n", "<turn|>", "</s>", "<|eot_id|><|endoftext|><|endoftext|>"]

# Calls of an adapter with a row that is about an image, without the image.
BLIND_ADAPTERS: dict[str, Callable[[RecordingJudge], Any]] = {
    "trl, marks": lambda judge: trl.vlgenrm_reward([[MARKED]], ["A cat."]),
    "trl, empty column": lambda judge: trl.vlgenrm_reward([[MARKED]], ["A cat."], image=[None]),
    "trl, text": lambda judge: trl.vlgenrm_reward([RENDERED], ["A cat."], images=[[]]),
    "verl function, geo3k": lambda judge: asyncio.run(verl_adapter.compute_score("geo3k", "48", "48", dict(GEO3K))),
    "verl manager": lambda judge: verl_manager(
        "48", raw_prompt=np.array([MARKED], dtype=object), extra_info=dict(GEO3K)
    ),
    "easyr1": lambda judge: easyr1.compute_score(
        [{"response": "A cat.", "response_length": 3, "ground_truth": json.dumps({"question": "<image>What is it?"})}]
    ),
    "ms_swift": lambda judge: asyncio.run(
        ms_swift.JudgeReward()(["A cat."], messages=[[{"role": "user", "content": "<image>What?"}]], images=[None])
    ),
    "areal": lambda judge: areal.vlgenrm_reward(RENDERED, "A cat.", [1], [2], images=[], messages=RENDERED),
    "slime, plain label": lambda judge: asyncio.run(slime.reward(SimpleNamespace(), slime_sample())),
    "slime, label": lambda judge: asyncio.run(
        slime.reward(SimpleNamespace(), slime_sample(label={"question": "What is it?"}))
    ),
    "roll": lambda judge: roll_input(RENDERED),
    "nemo_rl, marks": lambda judge: judge._replies([nemo_rl_input(MARKED["content"])]),
    "nemo_rl, rendered": lambda judge: judge._replies([nemo_rl_input(RENDERED, {"ground_truth": "a cat"})]),
    "skyrl": lambda judge: skyrl_step([MARKED]),
    "verifiers": lambda judge: asyncio.run(verifiers_adapter.rubric_reward([MARKED], "A cat.")),
}
# The same with the image, where the trainer keeps it.
SEEING_ADAPTERS: dict[str, Callable[[RecordingJudge, str], Any]] = {
    "trl, messages": lambda judge, text: trl.vlgenrm_reward([[user(IMAGE)]], [text], image=[IMAGE]),
    "trl, marks and column": lambda judge, text: trl.vlgenrm_reward([[MARKED]], [text], images=[[IMAGE]]),
    "verl function": lambda judge, text: asyncio.run(
        verl_adapter.compute_score("geo3k", text, "48", GEO3K | {"images": [{"bytes": png(), "path": None}]})
    ),
    "verl manager, messages": lambda judge, text: verl_manager(
        text, raw_prompt=np.array([user(IMAGE)], dtype=object), extra_info=dict(GEO3K)
    ),
    "verl manager, bytes in the part": lambda judge, text: verl_manager(
        text, raw_prompt=[{"role": "user", "content": [{"type": "image", "bytes": png(), "path": None}, "What is it?"]}]
    ),
    "verl manager, multi_modal_data": lambda judge, text: verl_manager(
        text,
        raw_prompt=np.array([MARKED], dtype=object),
        multi_modal_data={"images": [IMAGE]},
        extra_info=dict(GEO3K),
    ),
    "easyr1": lambda judge, text: easyr1.compute_score(
        [{"response": text, "response_length": 3, "ground_truth": {"question": "<image>What?", "image": IMAGE}}]
    ),
    "ms_swift": lambda judge, text: asyncio.run(
        ms_swift.JudgeReward()(
            [text],
            messages=[[{"role": "user", "content": "<image>What is it?"}]],
            images=[[{"bytes": png(), "path": None}]],
        )
    ),
    "areal": lambda judge, text: areal.vlgenrm_reward(RENDERED, text, images=[IMAGE], messages=RENDERED),
    "slime": lambda judge, text: asyncio.run(
        slime.reward(SimpleNamespace(), slime_sample(response=text, multimodal_inputs={"images": [IMAGE]}))
    ),
    "roll": lambda judge, text: roll_input(RENDERED, text, multi_modal_data={"multi_modal_data": {"image": [IMAGE]}}),
    "nemo_rl, content": lambda judge, text: judge._replies([nemo_rl_input(user(IMAGE)["content"], response=text)]),
    "nemo_rl, label": lambda judge, text: judge._replies([nemo_rl_input(RENDERED, {"images": [IMAGE]}, text)]),
    "skyrl": lambda judge, text: skyrl_step([user(URL)], text),
    "verifiers": lambda judge, text: asyncio.run(verifiers_adapter.rubric_reward([user(IMAGE)], text)),
}


def user(image: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}


def status(score_item: ScoreItem, **settings: Any) -> Status:
    return asyncio.run(service(**settings).score(request(score_item))).items[0].status


@pytest.mark.parametrize("call", BLIND_ADAPTERS.values(), ids=BLIND_ADAPTERS)
def test_an_adapter_without_the_image_gets_no_reward(
    judge: RecordingJudge, call: Callable[[RecordingJudge], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(judge)
    (sent,) = judge.items
    assert image_references(sent) == []
    assert sent.image_expected
    assert "<" not in (sent.question or json.dumps(sent.messages)), "placeholders and Python objects are not words"
    assert status(sent, blind_judging="refuse") is Status.NO_IMAGE
    assert status(sent, blind_judging="text_only") is Status.NO_IMAGE
    assert status(sent, blind_judging="allow") is Status.OK
    monkeypatch.setenv(inputs.ALLOW_BLIND_VARIABLE, "1")
    call(judge)
    assert status(judge.items[-1], blind_judging="refuse") is Status.OK


@pytest.mark.parametrize("call", SEEING_ADAPTERS.values(), ids=SEEING_ADAPTERS)
def test_an_adapter_takes_the_image_from_where_its_trainer_keeps_it(
    judge: RecordingJudge, call: Callable[[RecordingJudge, str], Any]
) -> None:
    call(judge, "A cat.")
    (sent,) = judge.items
    assert len(image_references(sent)) == 1
    assert not sent.image_expected
    assert "<" not in (sent.question or json.dumps(sent.messages))


@pytest.mark.parametrize("call", SEEING_ADAPTERS.values(), ids=SEEING_ADAPTERS)
@pytest.mark.parametrize("token", END_TOKENS)
def test_special_tokens_of_the_policy_do_not_reach_the_judge(
    judge: RecordingJudge, call: Callable[[RecordingJudge, str], Any], token: str
) -> None:
    call(judge, f"A cat.{token}")
    assert [sent.response for sent in judge.items] == ["A cat."]


@pytest.mark.parametrize("token", END_TOKENS)
def test_gateways_and_the_api_remove_special_tokens_too(token: str) -> None:
    for gateway, path, body in BLIND_GATEWAYS.values():
        fake = FakeGateway(gateway.router, half)
        text = (
            json.dumps(body)
            .replace("A cat.<|im_end|>", "A cat.")
            .replace("A cat.", f"A cat.{token}".replace("\n", "\\n"))
        )
        assert fake.post(path, json.loads(text)).status_code == 200
        assert [sent.response for sent in fake.items] == ["A cat."]
    assert item(f"A cat.{token}").response == "A cat."
    assert CompareRequest(item=item(), first=f"A cat.{token}", second="A dog.").first == "A cat."
    assert RankRequest(item=item(), responses=[f"A cat.{token}"]).responses == ["A cat."]


async def half(score_request: ScoreRequest) -> ScoreResponse:
    return ScoreResponse(items=[ScoreReply(reward=0.5, status=Status.OK) for _ in score_request.items])


TRANSCRIPT = RENDERED + "A cat.<|im_end|>"
BLIND_GATEWAYS: dict[str, tuple[Any, str, Any]] = {
    "openrlhf": (openrlhf, "/get_reward", {"query": [TRANSCRIPT], "prompts": [RENDERED], "labels": ["a cat"]}),
    "openrlhf, no label": (openrlhf, "/get_reward", {"query": [TRANSCRIPT], "prompts": [RENDERED]}),
    "openrlhf, question": (
        openrlhf,
        "/get_reward",
        {"query": [TRANSCRIPT], "prompts": [RENDERED], "labels": ['{"question": "What is it?"}']},
    ),
    "lmm_r1": (openrlhf, "/get_reward", {"query": [TRANSCRIPT], "prompts": [json.dumps([MARKED])]}),
    "slime": (slime_gateway, "/rm", {"prompt": RENDERED, "response": "A cat.", "label": "a cat"}),
    "slime, question": (
        slime_gateway,
        "/rm",
        {"prompt": RENDERED, "response": "A cat.", "label": {"question": "What is it?"}},
    ),
    "slime, messages": (slime_gateway, "/rm", {"prompt": [MARKED], "response": "A cat."}),
    "llama_factory": (llama_factory, "/v1/score/evaluation", {"messages": [TRANSCRIPT]}),
    "openai_chat": (
        openai_chat,
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]},
    ),
    "nemo_gym": (
        nemo_gym,
        "/verify",
        {
            "responses_create_params": {"input": [MARKED]},
            "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "A cat."}]}]},
        },
    ),
}


@pytest.mark.parametrize(("gateway", "path", "body"), BLIND_GATEWAYS.values(), ids=BLIND_GATEWAYS)
@pytest.mark.parametrize("setting", ["refuse", "text_only", "allow"])
def test_a_gateway_without_the_image_answers_422_or_a_mask(gateway: Any, path: str, body: Any, setting: str) -> None:
    async def score(score_request: ScoreRequest) -> ScoreResponse:
        return await service(blind_judging=setting).score(score_request)

    answer = FakeGateway(gateway.router, score).post(path, body)
    assert answer.status_code == (200 if setting == "allow" or gateway is nemo_gym else 422)
    if gateway is nemo_gym:
        assert answer.json()["mask_sample"] == (setting != "allow")
    assert ("no_image" in answer.text) == (setting != "allow")


def test_the_unirl_gateway_needs_an_image() -> None:
    body = {"requests": [{"history": [{"text": "A cat."}], "required_rewards": ["vlgenrm"]}]}
    reply = FakeGateway(unirl.router).post("/score", body).json()
    assert reply["results"] == [{}]
    assert "no image" in reply["errors"][0]["vlgenrm"]


def test_text_only_items_are_judged_if_the_setting_says_so() -> None:
    plain = item(question="What is 1 + 1?")
    assert status(plain, blind_judging="refuse") is Status.NO_IMAGE
    assert status(plain, blind_judging="text_only") is Status.OK
    assert status(item(image_expected=True), blind_judging="text_only") is Status.NO_IMAGE
    assert status(item(allow_blind=True), blind_judging="refuse") is Status.OK
    assert status(item(image=URL), blind_judging="refuse") is Status.OK


def test_refusals_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    served = service(blind_judging="refuse")
    with caplog.at_level(logging.WARNING):
        replies = asyncio.run(served.score(request(*[item(question="<image>What?")] * 3, item(allow_blind=True)))).items
    assert [reply.status for reply in replies] == [Status.NO_IMAGE] * 3 + [Status.OK]
    assert "serving.blind_judging" in replies[0].detail
    assert "VLGENRM_ALLOW_BLIND" in replies[0].detail
    assert len([record for record in caplog.records if "no_image" in record.message]) == 1
    assert len([record for record in caplog.records if "by their text alone" in record.message]) == 1
    metrics = served.metrics.render().decode()
    assert 'vlgenrm_items_total{status="no_image"} 3.0' in metrics
    assert 'vlgenrm_items_without_image_total{judged="no"} 3.0' in metrics
    assert 'vlgenrm_items_without_image_total{judged="yes"} 1.0' in metrics


@pytest.mark.parametrize(
    "fields",
    [
        {"question": ""},
        {"question": " \n"},
        {"question": "<image>"},
        {"question": None, "messages": []},
        {"question": None, "messages": [{"role": "user", "content": ""}]},
        {"question": None, "messages": [{"role": "system", "content": "Be brief."}]},
        {"question": None, "messages": [{"role": "user", "content": [{"type": "image", "image": URL}]}]},
        {"question": "", "reference": "a cat"},
    ],
)
def test_an_item_without_a_question_gets_no_reward(fields: dict[str, object]) -> None:
    assert status(item(image=URL, **fields)) is Status.NO_QUESTION
    assert status(item(**fields), blind_judging="allow") is Status.NO_QUESTION


def test_an_empty_reference_is_none() -> None:
    served = service()
    asyncio.run(served.score(request(item(reference=""), item(reference=" "), item())))
    assert served.generator.num_asked == 1  # type: ignore[attr-defined]


def test_blind_judging_is_allowed_by_1_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inputs.ALLOW_BLIND_VARIABLE, "yes")
    with pytest.raises(ConfigError, match="VLGENRM_ALLOW_BLIND"):
        inputs.build_score_input("A cat.", prompt="What?")
