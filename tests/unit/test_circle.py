"""The circle: what each turn begins with, and the judge that is exchanged under way. Its parts are straw here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlgenrm_ray import co_training as circle
from vlgenrm_ray import config, pipeline, policy_pipeline
from vlgenrm_ray.commands import shipped_recipe
from vlgenrm_ray.config import ManagedJudgeService, PolicyRunConfig, RunConfig
from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.shapes import pack_path

PACK = str(pack_path("vlm"))


class Straw:
    """Writes down what the circle asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.answer = answer
        monkeypatch.setattr(pipeline, "run", self._reward)
        monkeypatch.setattr(policy_pipeline, "train", self._policy)
        monkeypatch.setattr(policy_pipeline, "served", self._served)
        monkeypatch.setattr(httpx, "post", self._post)

    def _reward(self, settings: RunConfig, folder: Path) -> dict[str, Any]:
        self.asked.append(("reward", settings.base, settings.responses.generators[0].engine.model))
        return {"rounds": [{"pairwise_accuracy": 0.5}, {"pairwise_accuracy": 0.7}]}

    def _policy(self, settings: PolicyRunConfig, folder: Path) -> dict[str, Any]:
        assert settings.service is None
        self.asked.append(("policy", settings.base))
        found = {"step": 0, "value": 0.4, "reward": 0.5, "outcomes": {"q": 1.0}}
        return {"first": found, "best": found | {"value": 0.6}}

    @contextmanager
    def _served(self, own: ManagedJudgeService, run: Path) -> Iterator[str]:
        assert own.serving.tokens.operator
        self.asked.append(("serve", own.model))
        yield "http://judge"
        self.asked.append(("end",))

    def _post(self, url: str, *, json: dict[str, str], headers: dict[str, str], **how: Any) -> httpx.Response:
        assert url == "http://judge/v1/model"
        assert headers["Authorization"].startswith("Bearer ")
        self.asked.append(("exchange", json["model"]))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def go_round(folder: Path, *overrides: str) -> list[circle.Turn]:
    return circle.run(config.load_co_training(shipped_recipe("shapes_circle"), overrides), folder)


def test_each_turn_begins_with_what_the_one_before_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straw = Straw(monkeypatch, httpx.Response(200))
    turns = go_round(tmp_path)
    judges = [str(tmp_path / f"turn-{t}" / "reward" / "best") for t in (1, 2)]
    policy = str(tmp_path / "turn-1" / "policy" / "policy" / "best")
    assert straw.asked == [
        ("reward", PACK, PACK),
        ("serve", judges[0]),
        ("policy", PACK),
        ("reward", judges[0], policy),
        ("exchange", judges[1]),
        ("policy", policy),
        ("end",),
    ]
    assert [(turn["accuracy"], turn["best"]["value"], turn["exchanged"]) for turn in turns] == [(0.7, 0.6, "")] * 2
    assert "outcomes" not in (tmp_path / "summary.json").read_text()


def test_a_judge_that_is_refused_is_named_and_the_turn_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straw = Straw(monkeypatch, httpx.Response(409, text="it does not look"))
    turns = go_round(tmp_path)
    assert turns[1]["exchanged"] == "409: it does not look"
    assert turns[1]["served"] == turns[0]["judge"] == turns[0]["served"] != turns[1]["judge"]
    assert straw.asked[-2][0] == "policy"


def test_a_service_that_is_gone_ends_the_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straw = Straw(monkeypatch, httpx.ConnectError("refused"))
    with pytest.raises(StageError, match="does not answer"):
        go_round(tmp_path)
    assert straw.asked[-1] == ("end",)


def test_a_circle_goes_on_with_the_turn_it_was_in_and_a_whole_one_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straw = Straw(monkeypatch, httpx.ConnectError("refused"))
    with pytest.raises(StageError):
        go_round(tmp_path)
    straw.asked.clear()
    straw.answer = httpx.Response(200)
    turns = go_round(tmp_path)
    judges = [str(tmp_path / f"turn-{t}" / "reward" / "best") for t in (1, 2)]
    policy = str(tmp_path / "turn-1" / "policy" / "policy" / "best")
    assert straw.asked == [
        ("reward", judges[0], policy),
        ("serve", judges[0]),
        ("exchange", judges[1]),
        ("policy", policy),
        ("end",),
    ]
    straw.asked.clear()
    assert go_round(tmp_path) == turns
    assert not straw.asked
    with pytest.raises(ConfigError, match="other settings"):
        go_round(tmp_path, "turns=1")


def test_one_turn_needs_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straw = Straw(monkeypatch, httpx.ConnectError("refused"))
    assert len(go_round(tmp_path, "turns=1")) == 1
    assert straw.asked[-1] == ("end",)
