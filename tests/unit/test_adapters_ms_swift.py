"""ms-swift's reward model plugin: the judge in the trainer's process, over a fake of ms-swift's engine."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from vlgenrm_ray.adapters import ms_swift, rewards
from vlgenrm_ray.errors import RemoteError

RED, BLUE = (Image.new("RGB", (32, 32), shade) for shade in ("red", "blue"))


class FakeSwiftEngine:
    """Replies as ms-swift 4.6.0's `TransformersEngine.infer`: Yes with p = 0.75 for red images, else with 0.25."""

    def __init__(self, model: Any, *, template: Any, max_batch_size: int) -> None:
        self.requests: list[dict[str, Any]] = []
        self.config: Any = None
        model.engine = self

    def infer(self, requests: list[dict[str, Any]], config: Any, use_tqdm: bool) -> list[Any]:
        self.requests += requests
        self.config = config
        return [self._reply(request) for request in requests]

    def _reply(self, request: dict[str, Any]) -> Any:
        (turn,) = request["messages"]
        image = next(part["image"] for part in turn["content"] if part["type"] == "image")
        p_yes = 0.75 if image.getpixel((0, 0)) == (255, 0, 0) else 0.25
        word = "Yes" if p_yes > 0.5 else "No"
        critique = ["It is", " so.", "\nVerdict", ":", f" {word}"]
        words = [word] if self.config["max_tokens"] < 8 else critique
        verdict = [(form, p) for form, p in ((" Yes", p_yes - 0.05), ("Yes", 0.05), (" No", 1 - p_yes))]
        if len(words) == 1:
            verdict = [("Yes", p_yes), ("No", 1 - p_yes)]
        content = [self._entry(token, [(token, 1.0)]) for token in words[:-1]]
        content += [self._entry(words[-1], verdict), self._entry("<|im_end|>", [("<|im_end|>", 1.0)])]
        message = SimpleNamespace(content="".join(words))
        choice = SimpleNamespace(message=message, finish_reason="stop", logprobs={"content": content})
        return SimpleNamespace(choices=[choice])

    def _entry(self, token: str, candidates: list[tuple[str, float]]) -> dict[str, Any]:
        top = [{"token": text, "logprob": math.log(p), "bytes": []} for text, p in candidates]
        return {"token": token, "logprob": 0.0, "bytes": [], "top_logprobs": top}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    imports = {"swift.infer_engine:TransformersEngine": FakeSwiftEngine}
    monkeypatch.setattr(ms_swift, "optional_import", lambda path, default=object: imports.get(path, default))
    rewards.reset_counts()
    yield SimpleNamespace()
    rewards.reset_counts()


def row(response: str, image: Any = RED, **columns: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": response}]
    return {"messages": turns, "images": [image], "request_id": f"r{response}", "prompt_id": "p", **columns}


@pytest.mark.parametrize("plugin", [ms_swift.JudgePlugin, ms_swift.DirectJudgePlugin])
def test_the_reward_is_the_judges_verdict_on_the_image(model: Any, plugin: type[ms_swift.JudgePlugin]) -> None:
    judge = plugin(model, template=None)
    rows = [row("A star.<|im_end|>", reference="a star"), row("A circle.", BLUE)]
    assert judge(inputs=rows, trainer_state=None) == pytest.approx([0.75, 0.25])
    num_critiques = 1 if plugin is ms_swift.DirectJudgePlugin else 4
    assert len(model.engine.requests) == 2 * num_critiques
    texts = [part["text"] for r in model.engine.requests for part in r["messages"][0]["content"] if "text" in part]
    assert "Reference answer: a star" in texts[0]
    assert not any("<image>" in text or "<|im_end|>" in text for text in texts)


def test_a_row_without_a_reward_raises(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ms_swift.JudgePlugin(model, template=None)
    for broken, status in ((row("A star.") | {"images": []}, "no_image"), (row("  "), "empty_text")):
        with pytest.raises(RemoteError, match=status):
            judge(inputs=[row("A star."), broken])
    with pytest.raises(RemoteError, match="bad_image"):
        judge(inputs=[row("A star.", {"bytes": b"no image", "path": None})])
    monkeypatch.setenv("VLGENRM_FAILED_REWARD", "0.5")
    assert judge(inputs=[row(" "), row("A star.")]) == pytest.approx([0.5, 0.75])


def test_plugins_are_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: dict[str, dict[str, Any]] = {"swift.rewards.orm:orms": {}, "swift.rewards.rm_plugin:rm_plugins": {}}
    monkeypatch.setattr(ms_swift, "optional_import", lambda path, default=object: tables.get(path, default))
    ms_swift.register()
    assert {name: set(table) for name, table in tables.items()} == {
        "swift.rewards.orm:orms": {"vlgenrm"},
        "swift.rewards.rm_plugin:rm_plugins": {"vlgenrm", "vlgenrm_direct"},
    }
