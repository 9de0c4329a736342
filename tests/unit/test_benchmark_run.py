"""Benchmarks of models: engines, served judges, pairwise judges; resumption, blind runs, missing images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmark_files import ours, rules, write_lines
from fake_service import FakeService
from PIL import Image
from typer.testing import CliRunner

from vlgenrm_ray import recipe
from vlgenrm_ray.cli import app
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import ConfigError, InputError
from vlgenrm_ray.evaluation.benchmark_models import BenchmarkModel, EngineModel, ServedModel
from vlgenrm_ray.evaluation.benchmark_run import BenchmarkTask, check_tasks, measure_here, tasks_of
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReply, BenchmarkRequest, BenchmarkRole
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.remote import RemoteJudge

JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=2)


def is_grey(prompt: Prompt) -> bool:
    (image,) = prompt.images
    return len(image.getcolors() or ()) == 1


def script(prompt: Prompt, chance: Any) -> str:
    """Judge: "Yes" to a response with "good" if it sees an image. Policy: "Yes." if it sees one."""
    sees = bool(prompt.images) and not is_grey(prompt)
    if "Is there" in prompt.text and "Verdict" not in prompt.text and "Yes or No" not in prompt.text:
        return "Yes." if sees else "No."
    return f"It looks so.\nVerdict: {'Yes' if sees and 'good' in prompt.text else 'No'}"


def engine_model() -> EngineModel:
    return EngineModel(VllmConfig(), JUDGE, ImageLimits(), lambda config: ScriptedGenerator(script))


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (32, 32), (200, 10, 10))
    image.putpixel((0, 0), (0, 0, 0))
    image.save(path)
    return path


def pair_task(tmp_path: Path, num: int = 4, images: int = 4) -> BenchmarkTask:
    """`num` items, of which every second has its better response second; `images` of them have an image."""
    rows = []
    for i in range(num):
        responses = ["a good one", "a bad one"]
        rows.append(
            {
                "id": f"wildvision-{i}",
                "query": "What is it?",
                "response": responses[:: -1 if i % 2 else 1],
                "human_ranking": [0, 1][:: -1 if i % 2 else 1],
                "image": f"{i}.png",
            }
        )
        if i < images:
            photo(tmp_path / f"{i}.png")
    return BenchmarkTask(name="vl_rewardbench", data=write_lines(tmp_path / "pairs.jsonl", rows))


def pope_task(tmp_path: Path) -> BenchmarkTask:
    photo(tmp_path / "dog.png")
    rows = [
        {"question_id": i, "image": "dog.png", "text": f"Is there a {name}?", "label": label}
        for i, (name, label) in enumerate((("dog", "yes"), ("cat", "no")))
    ]
    return BenchmarkTask(name="pope", data=write_lines(tmp_path / "pope.json", rows))


def measure(
    tasks: Sequence[BenchmarkTask], model: BenchmarkModel, folder: Path, role: BenchmarkRole | None = None, **over: Any
) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"name": "scripted", "role": role, "folder": folder, "no_image_share": 1.0} | over
    return [result.as_json() for result in measure_here(tasks, model, **settings)]


class CountingModel:
    """Counts the requests that reach a model, and fails after a number of them."""

    def __init__(self, model: BenchmarkModel, fail_after: int | None = None) -> None:
        self.model = model
        self.fail_after = fail_after
        self.requests: list[BenchmarkRequest] = []

    def reply(self, requests: Sequence[BenchmarkRequest]) -> list[BenchmarkReply]:
        if self.fail_after is not None and len(self.requests) >= self.fail_after:
            raise ConfigError("the model is gone")
        self.requests += requests
        return self.model.reply(requests)


def test_several_benchmarks_are_asked_of_one_engine(tmp_path: Path) -> None:
    model = CountingModel(engine_model())
    pairs, pope = measure([pair_task(tmp_path), pope_task(tmp_path)], model, tmp_path / "run")
    assert (ours(pairs, "overall accuracy"), ours(pairs, "no image")) == (1.0, 0.5)
    # Usual roles: a judge of pairs, a policy for questions. The policy always says yes if it sees an image.
    assert (pairs["role"], pope["role"]) == ("judge", "policy")
    assert rules(pope, "accuracy")["official"] == 0.5
    assert rules(pope, "yes ratio")["official"] == 1.0
    assert len(model.requests) == 4 * 4 + 2 * 2
    assert pairs["cost"]["requests"] == 16
    assert pairs["cost"]["tokens"] > 0
    assert pairs["statuses"] == {"ok": 16}
    assert json.loads((tmp_path / "run" / "pope.json").read_text()) == pope


def test_an_interrupted_run_continues_and_asks_nothing_twice(tmp_path: Path) -> None:
    task = pair_task(tmp_path, num=40, images=40)
    failing = CountingModel(engine_model(), fail_after=64)
    with pytest.raises(ConfigError, match="gone"):
        measure([task], failing, tmp_path / "run")
    model = CountingModel(engine_model())
    (result,) = measure([task], model, tmp_path / "run")
    assert len(failing.requests) + len(model.requests) == 160
    assert ours(result, "overall accuracy") == 1.0
    again = CountingModel(engine_model())
    assert measure([task], again, tmp_path / "run") == [result]
    assert again.requests == []
    with pytest.raises(ConfigError, match="other settings or inputs"):
        measure([pair_task(tmp_path, num=39)], again, tmp_path / "run")


def test_missing_images_are_counted_and_never_rewarded(tmp_path: Path) -> None:
    (result,) = measure([pair_task(tmp_path, images=3)], engine_model(), tmp_path / "run")
    assert result["statuses"] == {"image_missing": 4, "ok": 12}
    assert result["counts"]["unreadable"] == 1
    assert rules(result, "overall accuracy")["official"] == 1.0, "the official rule leaves it out"
    assert ours(result, "overall accuracy") == (3 + 0.5) / 4


def test_a_run_without_any_image_is_refused_unless_it_is_blind(tmp_path: Path) -> None:
    task = pair_task(tmp_path, images=0)
    with pytest.raises(InputError, match=r"none of its 4 images exists, such as .*--images.*--blind"):
        measure([task], engine_model(), tmp_path / "run")
    model = CountingModel(engine_model())
    (result,) = measure([task], model, tmp_path / "blind", blind=True)
    assert all(not request.images for request in model.requests)
    assert ours(result, "overall accuracy") == 0.5
    assert result["blind"] is True


def test_roles_that_do_not_fit_are_refused_before_anything_starts(tmp_path: Path) -> None:
    model = CountingModel(engine_model())
    with pytest.raises(InputError, match="vl_rewardbench: no benchmark of the role policy; choose from judge"):
        measure([pair_task(tmp_path)], model, tmp_path / "run", BenchmarkRole.POLICY)
    questions = write_lines(tmp_path / "mmhal.jsonl", [{"question": "What?"}])
    with pytest.raises(InputError, match="mmhal: asks no model"):
        measure([BenchmarkTask(name="mmhal", data=questions)], model, tmp_path / "run")
    with pytest.raises(InputError, match="pope-pope is named twice"):
        measure([pope_task(tmp_path)] * 2, model, tmp_path / "run")
    assert model.requests == []


def test_a_judge_of_single_responses_refuses_to_be_pairwise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pairwise_judge: this judge rewards single responses"):
        measure([pair_task(tmp_path)], engine_model(), tmp_path / "run", BenchmarkRole.PAIRWISE_JUDGE)


class FirstIsBetter:
    """A pairwise judge that knows the better response, but prefers the first in three of four cases."""

    def reply(self, requests: Sequence[BenchmarkRequest]) -> list[BenchmarkReply]:
        replies = []
        for request in requests:
            assert request.response is not None
            is_biased = "-0/" not in request.id
            p_first = 1.0 if is_biased or "good" in request.response else 0.0
            replies.append(BenchmarkReply(id=request.id, status="ok", reward=p_first))
        return replies


def test_a_pairwise_judge_of_the_user_is_measured_in_both_orders(tmp_path: Path) -> None:
    (result,) = measure(
        [pair_task(tmp_path)], FirstIsBetter(), tmp_path / "run", BenchmarkRole.PAIRWISE_JUDGE, no_image_share=0.0
    )
    assert (ours(result, "better first"), ours(result, "better second")) == (1.0, 0.25)
    assert ours(result, "both orders agree") == 0.25
    assert ours(result, "overall accuracy") == pytest.approx(0.625)
    assert result["counts"] == {
        "items": 4,
        "votes": 8,
        "ties": 0,
        "unreadable": 0,
        "left out by the official rule": 3,
    }


def test_a_served_judge_is_measured_by_its_rewards(tmp_path: Path) -> None:
    task = pair_task(tmp_path)
    rows = [json.loads(line) for line in task.data.read_text().splitlines()]
    for row in rows:
        row["response"] = ["0.75" if "good" in response else "0.25" for response in row["response"]]
    rows[3]["response"] = ["fails:timeout", "0.5"]
    write_lines(task.data, rows)
    service = FakeService()
    judge = RemoteJudge("http://judge", transport=httpx.MockTransport(service))
    (result,) = measure([task], ServedModel(judge, ImageLimits()), tmp_path / "run", BenchmarkRole.JUDGE)
    assert result["statuses"] == {"ok": 14, "timeout": 2}
    assert ours(result, "overall accuracy") == (3 + 0.5) / 4
    # Each distinct image is uploaded once: four photographs with the same pixels, and one grey image.
    assert len(service.uploads) == 2
    with pytest.raises(ConfigError, match="answers no question"):
        measure([pope_task(tmp_path)], ServedModel(judge, ImageLimits()), tmp_path / "other", BenchmarkRole.POLICY)


MODEL = """
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReply


class LongerIsBetter:
    def reply(self, requests):
        return [BenchmarkReply(id=r.id, status="ok", reward=float(len(r.response))) for r in requests]
"""


def test_a_model_of_another_package_is_measured_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = pair_task(tmp_path)
    arguments = ["benchmark", "vl_rewardbench", "--data", str(task.data), "--judge", "my_models:LongerIsBetter"]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*arguments, "--out", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert ours(result, "overall accuracy") == ours(result, "longer") == 1.0


def shapes_recipe(*overrides: str) -> RunConfig:
    return recipe.load(RunConfig, shipped_recipe("shapes"), overrides)


def test_a_recipe_names_benchmarks_and_a_rule_that_watches_one(tmp_path: Path) -> None:
    listed = "benchmarks=[{name: pope, data: pope.json}, {name: vl_rewardbench, data: pairs.jsonl, images: photos}]"
    config = shapes_recipe(listed, "rounds.stop={metric: pope, patience: 2}")
    assert [task.name for task in tasks_of(config.benchmarks)] == ["pope", "vl_rewardbench"]
    with pytest.raises(ConfigError, match=r"rounds.stop.metric 'amber' is no benchmark .*\(pope, vl_rewardbench\)"):
        shapes_recipe(listed, "rounds.stop={metric: amber}")
    with pytest.raises(ConfigError, match=r"benchmarks.0.name: .*'popee' is unknown"):
        shapes_recipe("benchmarks=[{name: popee, data: x}]")
    with pytest.raises(ConfigError, match="pope-a is named twice"):
        shapes_recipe("benchmarks=[{name: pope, data: a}, {name: pope, data: a}]")


def test_the_benchmarks_of_a_recipe_are_read_before_anything_starts(tmp_path: Path) -> None:
    check_tasks([pair_task(tmp_path), pope_task(tmp_path)], BenchmarkRole.JUDGE)
    with pytest.raises(InputError, match="cannot be read"):
        check_tasks([BenchmarkTask(name="pope", data=tmp_path / "gone.json")], BenchmarkRole.JUDGE)
    with pytest.raises(InputError, match="no benchmark of the role policy"):
        check_tasks([pair_task(tmp_path)], BenchmarkRole.POLICY)


def test_the_command_wants_exactly_one_thing_to_measure() -> None:
    done = CliRunner().invoke(app, ["benchmark", "pope", "--data", "x"])
    assert done.exit_code == 2
    done = CliRunner().invoke(app, ["benchmark", "pope", "--data", "x", "--model", "a", "--url", "b"])
    assert done.exit_code == 2
