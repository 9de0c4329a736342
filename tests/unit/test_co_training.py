"""Co-training with fake parts: inputs of each iteration, model swap, resumption."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlgenrm_ray import co_training, config, pipeline, policy_pipeline
from vlgenrm_ray.config import ManagedJudgeService, PolicyRunConfig, RunConfig
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.shapes import pack_path

PACK = str(pack_path("vlm"))


class FakeParts:
    """Record the calls of the co-training to its parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.answer = answer
        monkeypatch.setattr(pipeline, "run", self._reward)
        monkeypatch.setattr(policy_pipeline, "train", self._policy)
        monkeypatch.setattr(policy_pipeline, "served", self._served)
        monkeypatch.setattr(httpx, "post", self._post)

    def _reward(self, settings: RunConfig, folder: Path) -> dict[str, Any]:
        self.calls.append(("reward", settings.base, settings.responses.generators[0].engine.model))
        return {"rounds": [{"pairwise_accuracy": 0.5}, {"pairwise_accuracy": 0.7}]}

    def _policy(self, settings: PolicyRunConfig, folder: Path) -> dict[str, Any]:
        assert settings.judge_service is None
        self.calls.append(("policy", settings.base))
        evaluation = {"step": 0, "value": 0.4, "reward": 0.5, "outcomes": {"q": 1.0}}
        return {"first": evaluation, "best": evaluation | {"value": 0.6}}

    @contextmanager
    def _served(self, service: ManagedJudgeService, run: Path, tokens: ApiTokens) -> Iterator[str]:
        assert tokens.operator
        self.calls.append(("serve", service.model))
        yield "http://judge"
        self.calls.append(("end",))

    def _post(self, url: str, *, json: dict[str, str], headers: dict[str, str], **options: Any) -> httpx.Response:
        assert url == "http://judge/v1/model"
        assert headers["Authorization"].startswith("Bearer ")
        self.calls.append(("swap", json["model"]))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def run(folder: Path, *overrides: str) -> list[co_training.IterationResult]:
    return co_training.run(config.load_co_training(shipped_recipe("shapes_co_training"), overrides), folder)


def test_each_iteration_starts_from_the_models_of_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FakeParts(monkeypatch, httpx.Response(200))
    results = run(tmp_path)
    judges = [str(tmp_path / f"iteration-{t}" / "reward" / "best") for t in (1, 2)]
    policy = str(tmp_path / "iteration-1" / "policy" / "policy" / "best")
    assert parts.calls == [
        ("reward", PACK, PACK),
        ("serve", judges[0]),
        ("policy", PACK),
        ("reward", judges[0], policy),
        ("swap", judges[1]),
        ("policy", policy),
        ("end",),
    ]
    assert [(result["accuracy"], result["best"]["value"], result["swap_error"]) for result in results] == [
        (0.7, 0.6, "")
    ] * 2
    assert "outcomes" not in (tmp_path / "summary.json").read_text()


def test_a_refused_swap_is_recorded_and_the_iteration_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FakeParts(monkeypatch, httpx.Response(409, text="it does not look"))
    results = run(tmp_path)
    assert results[1]["swap_error"] == "409: it does not look"
    assert results[1]["served_judge"] == results[0]["judge"] == results[0]["served_judge"] != results[1]["judge"]
    assert parts.calls[-2][0] == "policy"


def test_a_lost_service_ends_the_co_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = FakeParts(monkeypatch, httpx.ConnectError("refused"))
    with pytest.raises(StageError, match="does not answer"):
        run(tmp_path)
    assert parts.calls[-1] == ("end",)


def test_an_interrupted_co_training_continues_and_a_finished_one_calls_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FakeParts(monkeypatch, httpx.ConnectError("refused"))
    with pytest.raises(StageError):
        run(tmp_path)
    parts.calls.clear()
    parts.answer = httpx.Response(200)
    results = run(tmp_path)
    judges = [str(tmp_path / f"iteration-{t}" / "reward" / "best") for t in (1, 2)]
    policy = str(tmp_path / "iteration-1" / "policy" / "policy" / "best")
    assert parts.calls == [
        ("reward", judges[0], policy),
        ("serve", judges[0]),
        ("swap", judges[1]),
        ("policy", policy),
        ("end",),
    ]
    parts.calls.clear()
    assert run(tmp_path) == results
    assert not parts.calls
    with pytest.raises(ConfigError, match="other settings"):
        run(tmp_path, "iterations=1")


def test_one_iteration_needs_no_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = FakeParts(monkeypatch, httpx.ConnectError("refused"))
    assert len(run(tmp_path, "iterations=1")) == 1
    assert parts.calls[-1] == ("end",)


def test_the_old_setting_is_read_with_a_warning() -> None:
    values = config.load_co_training(shipped_recipe("shapes_co_training")).model_dump(exclude={"iterations"})
    with pytest.warns(FutureWarning, match="'turns' is now 'iterations'"):
        settings = config.CoTrainingConfig.model_validate(values | {"turns": 3})
    assert settings.iterations == 3


def test_a_run_folder_of_an_older_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "turn-1").mkdir()
    with pytest.raises(ConfigError, match=r"older version.*choose another run folder"):
        run(tmp_path)
