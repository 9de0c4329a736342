"""Adapters of trainers that call a function with the sample: TRL, verl, EasyR1, ms-swift, AReaL, verifiers."""

import asyncio
import gc
import logging
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_service import FakeService, listening
from PIL import Image

from vlgenrm_ray.adapters import areal, clients, easyr1, ms_swift, rewards, trl, verifiers, verl
from vlgenrm_ray.adapters.inputs import build_score_input, decode_response
from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.judge.label import read_label, write_label

IMAGE = Image.new("RGB", (16, 16), "red")
OTHER = Image.new("RGB", (16, 16), "blue")
URL = "data:image/png;base64,iVBORw0KGgo="


def user(text: str, image: Any = None) -> dict[str, Any]:
    parts = [] if image is None else [{"type": "image", "image": image}]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A fake service whose address is in the environment."""
    fake = FakeService()
    rewards.reset_counts()
    with listening(fake) as url:
        monkeypatch.setenv(clients.URL_VARIABLE, url)
        monkeypatch.setenv(clients.TOKEN_VARIABLE, "secret")
        yield fake
    rewards.reset_counts()


def test_trl_masks_items_without_a_reward(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    logged: dict[str, float] = {}
    prompts = [[user("What is it?", IMAGE)]] * 2 + [[user("And this?", OTHER)]] * 2
    completions = [[{"role": "assistant", "content": c}] for c in ("0.25", "fails:timeout", "1", "0")]
    with caplog.at_level(logging.WARNING):
        rewards = trl.vlgenrm_reward(
            prompts=prompts,
            completions=completions,
            completion_ids=[[1]] * 4,
            trainer_state=None,
            log_extra=None,
            log_metric=logged.__setitem__,
            image=[IMAGE, IMAGE, OTHER, OTHER],
            reference=["a star", None, None, None],
        )
    assert rewards == [0.25, None, 1.0, 0.0]
    assert "1 of 4 samples without a reward: {'timeout': 1}" in caplog.text
    assert list(service.uploads.values()) == [1, 1]
    assert [item.reference for item in service.items] == ["a star", None, None, None]
    assert all(item.images == [] for item in service.items), "the prompts' messages carry the images already"
    assert service.requests[0].headers["authorization"] == "Bearer secret"
    assert logged["vlgenrm/verdict_mass"] == pytest.approx(0.675)


def test_trl_reads_images_from_columns_and_accepts_plain_prompts(service: FakeService) -> None:
    assert trl.vlgenrm_reward(["What?"] * 2, ["0.5", "1"], image=[IMAGE, None]) == [0.5, 1.0]
    assert trl.vlgenrm_reward([[user("What?")]], ["0"], images=[[OTHER]]) == [0.0]
    assert asyncio.run(trl.vlgenrm_reward_async(["What?"], ["1"], images=[[OTHER]])) == [1.0]
    assert [len(item.images) for item in service.items] == [1, 0, 1, 1]


def test_a_majority_of_failed_samples_stops_the_run(service: FakeService) -> None:
    assert trl.vlgenrm_reward(["q"] * 20, ["fails:internal"] * 20) == [None] * 20
    with pytest.raises(RemoteError, match="of the latest 40 samples have no reward; the last said internal"):
        trl.vlgenrm_reward(["q"] * 20, ["fails:internal"] * 20)


def test_the_operator_can_set_a_reward_for_failed_samples(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"response": r, "response_length": 1, "ground_truth": write_label(question="q")} for r in ("1", "fails:timeout")
    ]
    with pytest.raises(RemoteError, match="timeout: as scripted; VLGENRM_FAILED_REWARD"):
        easyr1.compute_score(rows)
    monkeypatch.setenv(rewards.FAILED_REWARD_VARIABLE, "0.5")
    with caplog.at_level(logging.WARNING):
        results = easyr1.compute_score(rows)
    assert results == [
        {"overall": 1.0, "verdict_mass": 0.9, "scored": 1.0},
        {"overall": 0.5, "verdict_mass": 0.0, "scored": 0.0},
    ]
    assert rewards.status_counts == {"ok": 2, "timeout": 2}
    assert "1 of 2 samples without a reward" in caplog.text
    monkeypatch.setenv(rewards.FAILED_REWARD_VARIABLE, "nan")
    with pytest.raises(ConfigError, match="VLGENRM_FAILED_REWARD"):
        easyr1.compute_score(rows)


def test_easyr1_reads_question_and_image_from_the_ground_truth(service: FakeService, tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    IMAGE.save(path)
    truth = write_label(question="What?", images=[str(path)], reference="a star")
    easyr1.compute_score([{"response": "1", "response_length": 3, "ground_truth": truth}], weight=2)
    (item,) = service.items
    assert (item.question, item.reference, len(item.images)) == ("What?", "a star", 1)
    assert (easyr1.REWARD_NAME, easyr1.REWARD_TYPE) == ("vlgenrm", "batch")
    easyr1.compute_score([{"response": "1", "response_length": 3, "ground_truth": "a star"}])
    assert (service.items[-1].question, service.items[-1].reference) == ("", "a star"), "the service refuses it"


def test_verl_function_reads_extra_info(service: FakeService) -> None:
    extra = {"question": "What?", "images": np.array([{"bytes": b"\x89PNG", "path": None}], dtype=object), "index": 3}
    result = asyncio.run(verl.compute_score("geo3k", "0.75", "a star", extra, data_length=3))
    assert result == {"score": 0.75, "verdict_mass": 0.9, "scored": 1.0}
    (item,) = service.items
    assert (item.question, item.reference, len(item.images)) == ("What?", "a star", 1)
    with pytest.raises(RemoteError, match="bad_image"):
        asyncio.run(verl.compute_score("d", "fails:bad_image", write_label(question="q")))


class FakeDataProto:
    """Fake of verl's DataProto with the parts a manager reads."""

    def __init__(self, response: list[int], mask: list[int], **fields: Any) -> None:
        self.batch = {"responses": np.array(response), "attention_mask": np.array(mask)}
        self.non_tensor_batch = fields

    def __getitem__(self, index: int) -> "FakeDataProto":
        assert index == -1
        return self


def run_manager(data: FakeDataProto, decoded: list[list[int]]) -> dict[str, Any]:
    """Run verl's manager on a sample whose response decodes to "0.25"."""

    def decode(ids: Any, skip_special_tokens: bool) -> str:
        decoded.append(list(ids))
        return "0.25"

    manager = verl.JudgeRewardManager(None, SimpleNamespace(decode=decode), None, reward_router_address=None)
    return asyncio.run(manager.run_single(data))


def test_verl_manager_passes_on_prompt_and_images(service: FakeService) -> None:
    decoded: list[list[int]] = []
    prompt = np.array([user("What?", IMAGE)], dtype=object)
    data = FakeDataProto(
        [7, 8, 0], [1, 1, 1, 1, 0], raw_prompt=prompt, reward_model={"ground_truth": "a star"}, extra_info={}
    )
    result = run_manager(data, decoded)
    assert result == {"reward_score": 0.25, "reward_extra_info": {"score": 0.25, "verdict_mass": 0.9, "scored": 1.0}}
    assert decoded == [[7, 8]]
    (item,) = service.items
    assert item.messages[0]["content"][0]["image_url"]["url"] in service.images
    assert item.reference == "a star"


def test_verl_manager_passes_images_with_the_question_of_extra_info(service: FakeService) -> None:
    """As in geo3k, whose `extra_info` has the question without the prompt's instructions."""
    turn = {"role": "user", "content": [{"type": "image", "image": p} for p in (IMAGE, OTHER)] + ["What? Think."]}
    extra = {"question": "What?", "answer": "a star", "index": 3}
    run_manager(FakeDataProto([7], [1], raw_prompt=np.array([turn], dtype=object), extra_info=extra), [])
    (item,) = service.items
    assert (item.question, item.reference) == ("What?", "a star")
    assert item.images == list(service.images), "both, in their order"
    assert len(item.images) == 2


def test_verl_geo3k_rows_are_judged_with_their_image_and_without_its_mark(service: FakeService) -> None:
    """The manager's rows; the function's rows have no image, so the placeholder must refuse them."""
    extra = {"question": "<image>Find x.", "answer": "3", "split": "train", "index": 0}
    turn = {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "Find x."}]}
    run_manager(FakeDataProto([7], [1], raw_prompt=np.array([turn], dtype=object), extra_info=extra), [])
    asyncio.run(verl.compute_score("geo3k", "1", "3", extra))
    shown, blind = service.items
    assert (shown.question, len(shown.images), shown.reference) == ("Find x.", 1, "3")
    assert (blind.question, blind.images, blind.image_expected) == ("Find x.", [], True)


def test_verl_own_reward_model_is_refused_with_the_remedy(service: FakeService) -> None:
    with pytest.raises(ConfigError, match=r"reward\.reward_model\.enable=True"):
        asyncio.run(
            verl.compute_score("d", "1", "3", None, reward_router_address="10.0.0.1:80", reward_model_tokenizer=1)
        )
    with pytest.raises(ConfigError, match="vlgenrm serve"):
        verl.JudgeRewardManager(None, None, reward_router_address="10.0.0.1:80")


def test_tokens_that_mark_thinking_survive_decoding() -> None:
    def tokenizer(*special: str) -> Any:
        texts = {True: "abA star.", False: "[THINK]ab[/THINK]A star.</s>"}
        return SimpleNamespace(
            all_special_tokens=special, decode=lambda ids, skip_special_tokens: texts[skip_special_tokens]
        )

    assert decode_response(tokenizer("</s>", "[THINK]", "[/THINK]"), [1]) == "<think>ab</think>A star.</s>"
    assert decode_response(tokenizer("</s>"), [1]) == "abA star."


def test_a_label_question_is_shown_with_its_images_or_the_prompts() -> None:
    turns, question = [user("What? Think.", URL)], {"question": "What?"}
    assert build_score_input("1", prompt=turns, label=read_label(question)).images == (URL,)
    assert build_score_input("1", prompt=turns, label=read_label(question | {"image": "a.png"})).images == ("a.png",)
    assert build_score_input("1", prompt=turns, images=["b.png"], label=read_label(question)).images == ("b.png",)
    for blind in ([user("What?")], "What?", (), None):
        assert build_score_input("1", prompt=blind, label=read_label(question)).images == ()


def test_ms_swift_reads_messages_and_images(service: FakeService, tmp_path: Any) -> None:
    IMAGE.save(tmp_path / "a.png")
    conversation = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "0"}]
    reward = ms_swift.JudgeReward(args=None)
    result = asyncio.run(
        reward(
            completions=["0.5", "1"],
            messages=[conversation, conversation[:1]],
            images=[[{"bytes": None, "path": str(tmp_path / "a.png")}], str(tmp_path / "a.png")],
            reference=["a star", None],
            trainer_state=None,
        )
    )
    assert result == [0.5, 1.0]
    assert [item.messages for item in service.items] == [[{"role": "user", "content": "What?"}]] * 2
    assert list(service.uploads.values()) == [1]
    assert service.items[0].reference == "a star"
    with pytest.raises(RemoteError):
        asyncio.run(reward(completions=["fails:internal"], messages=[conversation]))


def test_areal_returns_or_raises_within_its_deadline(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    assert areal.vlgenrm_reward(rendered, "0.5", [1], [2], images=[IMAGE], answer="a star", messages=rendered) == 0.5
    (item,) = service.items
    assert (item.question, item.reference, len(item.images)) == ("What?", "a star", 1)
    assert b'"deadline_s":1' in service.requests[-1].content
    with pytest.raises(RemoteError, match="timeout"):
        areal.vlgenrm_reward("What?", "fails:timeout")
    monkeypatch.setenv(areal.DEADLINE_VARIABLE, "soon")
    with pytest.raises(ConfigError, match="VLGENRM_DEADLINE_S"):
        areal.vlgenrm_reward("What?", "1")


def test_verifiers_traces_and_rubrics(service: FakeService) -> None:
    message = SimpleNamespace(model_dump=lambda: user("What?", URL))
    task = SimpleNamespace(prompt=[message], answer="a star")
    assert asyncio.run(verifiers.reward(task=task, trace=SimpleNamespace(last_reply="0.75"))) == 0.75
    assert asyncio.run(verifiers.reward(SimpleNamespace(prompt="What?"), SimpleNamespace(last_reply="1"))) == 1.0
    completion = [{"role": "assistant", "content": "0.5"}]
    arguments = {"prompt": [user("What?")], "completion": completion, "answer": "a star", "info": {"image": URL}}
    assert asyncio.run(verifiers.rubric_reward(**arguments, state={})) == 0.5
    assert [item.reference for item in service.items] == ["a star", None, "a star"]
    with pytest.raises(RemoteError):
        asyncio.run(verifiers.reward(task, SimpleNamespace(last_reply="fails:unreadable_verdict")))


def test_one_client_per_process_and_event_loop(service: FakeService) -> None:
    assert clients.judge_client() is clients.judge_client()
    assert clients.judge_client() is not clients.judge_client(token="other")

    async def same() -> bool:
        return clients.async_judge_client() is clients.async_judge_client()

    assert asyncio.run(same())
    assert asyncio.run(same())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_event_loop_per_batch_leaks_neither_clients_nor_sockets(service: FakeService) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def batch() -> None:
        asyncio.run(trl.vlgenrm_reward_async(["What?"] * 3, ["1"] * 3))

    batch()
    before = descriptors()
    gc.disable()
    try:
        for _ in range(8):
            batch()
    finally:
        gc.enable()
    assert len(clients._clients) == 1, "only the last batch's"
    assert descriptors() <= before + 4, "sockets are closed without waiting for the garbage collector"


def test_a_missing_address_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(clients.URL_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="VLGENRM_URL"):
        trl.vlgenrm_reward(["q"], ["1"])
