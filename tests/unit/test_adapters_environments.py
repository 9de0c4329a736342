"""Adapters that are workers or environments, or change the sample: slime, ROLL, NeMo-RL, SkyRL."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_service import FakeService, listening
from PIL import Image

from vlgenrm_ray.adapters import clients, inputs, nemo_rl, rewards, roll, skyrl, slime
from vlgenrm_ray.errors import RemoteError
from vlgenrm_ray.judge.label import read_label, write_label
from vlgenrm_ray.judge.protocol import image_references

IMAGE, OTHER = (Image.new("RGB", (16, 16), shade) for shade in ("red", "blue"))
PROMPT = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A fake service whose address is in the environment."""
    fake = FakeService()
    rewards.reset_counts()
    with listening(fake) as url:
        monkeypatch.setenv(clients.URL_VARIABLE, url)
        yield fake
    rewards.reset_counts()


@dataclass
class Sample:
    """Fake of slime's Sample with the fields a reward function reads."""

    response: str
    prompt: Any = PROMPT
    label: Any = None
    group_index: int = 0
    remove_sample: bool = False
    multimodal_inputs: dict[str, Any] | None = field(default_factory=lambda: {"images": [IMAGE]})


def run_slime(args: Any, samples: Any) -> Any:
    return asyncio.run(slime.reward(args, samples))


def test_slime_scores_single_samples_and_groups(service: FakeService) -> None:
    plain, keyed = SimpleNamespace(reward_key=None), SimpleNamespace(reward_key="score")
    assert run_slime(plain, Sample("0.25")) == 0.25
    assert run_slime(plain, [Sample("0.25"), Sample("1", label=write_label(question="q"))]) == [0.25, 1.0]
    assert run_slime(keyed, Sample("0.25")) == {"score": 0.25}
    assert [item.question for item in service.items] == ["What?", "What?", "q", "What?"]
    assert list(service.uploads.values()) == [1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"reward_key": "score", "eval_reward_key": "acc"}, {"score": 0.25, "acc": 0.25}),
        ({"reward_key": None, "eval_reward_key": "acc"}, {"acc": 0.25}),
        ({"reward_key": "score", "eval_reward_key": None}, {"score": 0.25}),
        ({"reward_key": "score", "eval_reward_key": "score"}, {"score": 0.25}),
    ],
)
def test_slime_returns_the_reward_under_each_configured_key(
    service: FakeService, keys: dict[str, str | None], expected: dict[str, float]
) -> None:
    args = SimpleNamespace(**keys)
    assert run_slime(args, Sample("0.25")) == expected
    assert run_slime(args, [Sample("0.25")]) == [expected]


def test_images_of_the_messages_are_not_sent_twice(service: FakeService) -> None:
    images = [IMAGE, OTHER]
    spoken = [{"role": "user", "content": [*({"type": "image", "image": p} for p in images), "Which?"]}]
    marked = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, "Which?"]}]
    for prompt in (PROMPT, marked, spoken):
        run_slime(SimpleNamespace(), Sample("1", prompt=prompt, multimodal_inputs={"images": images}))
    assert len({tuple(image_references(item)) for item in service.items}) == 1
    assert [len(item.images) for item in service.items] == [2, 2, 0]
    label = write_label(question="Which?", images=[f"sha256:{name * 64}" for name in "ab"])
    assert inputs.build_score_input("1", prompt=spoken, label=read_label(label)).images == tuple(
        f"sha256:{name * 64}" for name in "ab"
    )


def test_slime_masks_within_a_group_and_keeps_its_mean(service: FakeService) -> None:
    group = [Sample("0"), Sample("fails:timeout"), Sample("1")]
    assert run_slime(SimpleNamespace(), group) == [0.0, 0.5, 1.0]
    assert [sample.remove_sample for sample in group] == [False, True, False]


def test_slime_raises_without_a_group_mean_or_substitute(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    several = [Sample("1", group_index=0), Sample("fails:timeout", group_index=1)]
    for samples in (Sample("fails:timeout"), [Sample("fails:timeout")], several):
        with pytest.raises(RemoteError, match="timeout"):
            run_slime(SimpleNamespace(), samples)
    monkeypatch.setenv(rewards.FAILED_REWARD_VARIABLE, "0")
    assert run_slime(SimpleNamespace(), sample := Sample("fails:timeout")) == 0.0
    assert sample.remove_sample


def test_roll_scores_a_batch_in_one_call(service: FakeService) -> None:
    truths = [write_label(question="What is drawn?", images=["sha256:" + "0" * 64]), "a star"]
    with pytest.raises(RemoteError, match="unknown image"):
        roll.rewards([PROMPT] * 2, ["0.5", "1"], truths, [1, 2])
    assert roll.rewards([PROMPT] * 2, ["0.5", "1"], ["a star", None], [1, 2]) == [0.5, 1.0]
    assert len(service.requests) == 2
    assert [item.question for item in service.items] == ["What is drawn?", "What?", "What?", "What?"]
    with pytest.raises(ValueError, match="one length"):
        roll.rewards([PROMPT], ["0", "1"], [None] * 2, [1, 2])


def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace torch by lists: unit tests import no torch."""
    lists = SimpleNamespace(
        tensor=list,
        ones=lambda n: [1.0] * n,
        zeros_like=lambda x, dtype: [[0.0] * len(row) for row in x],
        float32="f32",
    )
    monkeypatch.setitem(sys.modules, "torch", lists)


def test_roll_worker_returns_three_reward_tensors(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)

    class DataProto(SimpleNamespace):
        @classmethod
        def from_dict(cls, tensors: dict[str, Any]) -> "DataProto":
            return cls(batch=tensors)

    worker = roll.JudgeRewardWorker(worker_config=None)
    worker.tokenizer = SimpleNamespace(batch_decode=lambda rows, skip_special_tokens: list(rows))
    fields = {"id": [0, 1], "ground_truth": ["a star", "a circle"]}
    data = DataProto(batch={"prompts": [PROMPT] * 2, "responses": ["0.5", "1"]}, non_tensor_batch=fields)
    result = worker.compute_rewards(data).batch
    assert result["response_level_rewards"] == result["scores"] == [0.5, 1.0]
    assert result["token_level_rewards"] == [[0.0] * 3, [0.0]]


def test_nemo_rl_scores_a_batch_per_step(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    log = [{"role": "user", "content": "What?", "token_ids": object()}, {"role": "assistant", "content": "0.5"}]
    info = {"ground_truth": "a star", "image": "data:image/png;base64,iVBORw0KGgo="}
    result = nemo_rl.Environment({"url": None}).step(
        [log, [log[0], {"role": "assistant", "content": "1"}]], [info, None]
    )
    assert result["rewards"] == [0.5, 1.0]
    assert result["terminateds"] == [1.0, 1.0]
    assert result["metadata"] == [info, None]
    assert len(result["observations"]) == len(result["next_stop_strings"]) == 2
    assert [item.reference for item in service.items] == ["a star", None]
    assert len(service.items[0].images) == 1
    assert service.items[0].messages == [{"role": "user", "content": "What?"}]
    with pytest.raises(RemoteError):
        nemo_rl.Environment().step([[log[0], {"role": "assistant", "content": "fails:internal"}]], [None])


def test_nemo_rl_creates_its_actor_on_access(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    ray = SimpleNamespace(remote=lambda **how: lambda cls: calls.append((how, cls)) or "actor")
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert nemo_rl.JudgeEnvironment == "actor"
    assert calls == [({"max_restarts": 3}, nemo_rl.Environment)]
    with pytest.raises(AttributeError):
        _ = nemo_rl.Another


def test_skyrl_scores_one_turn(service: FakeService) -> None:
    env = skyrl.JudgeEnv(env_config=None, extras={"reward_spec": {"method": "judge", "ground_truth": "a star"}})
    url = "data:image/png;base64,iVBORw0KGgo="
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    prompt = [{"role": "user", "content": parts}]
    assert env.init(prompt) == (prompt, {})
    result = env.step("0.5")
    assert (result["reward"], result["done"], result["observations"]) == (0.5, True, [])
    assert result["metadata"] == {"verdict_mass": 0.9, "scored": True}
    assert service.items[0].reference == "a star"
    with pytest.raises(RemoteError):
        env.step("fails:unreadable_verdict")


def test_optional_import_falls_back_if_a_trainer_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inputs.optional_import("no_such_trainer.base:Base") is object
    module = ModuleType("some_trainer")
    module.Base = dict
    module.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "some_trainer", module)
    assert inputs.optional_import("some_trainer:Base") is dict
    with pytest.raises(AttributeError):
        inputs.optional_import("some_trainer:Gone")


def test_a_sample_without_a_question_is_left_to_the_service() -> None:
    """One row must not end a run: its status is `no_question`, and the rules of missing rewards apply."""
    for prompt in (None, "", [], float("nan")):
        assert inputs.build_score_input("0.5", prompt=prompt).question == ""
