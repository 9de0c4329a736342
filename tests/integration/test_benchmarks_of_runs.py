"""Benchmarks that a recipe names: a policy is measured on them at the end, and their images are not trained on."""

from pathlib import Path

import pytest
from benchmark_files import ours, write_lines
from policy_runs import train, write_recipe

from vlgenrm_ray import entrypoints
from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.records import CheckedResponse
from vlgenrm_ray.shapes import world

SHAPES = Path(__file__).parents[2] / "jobs" / "recipes" / "shapes.yaml"
NUM_QUESTIONS = 12


def write_pope(folder: Path) -> Path:
    """Write yes/no questions about scenes of the embedded world in the form of POPE, with their images."""
    rows = []
    for question in world.questions(folder / "images", seed=5, split="heldout", count=NUM_QUESTIONS // 2):
        for text, label in (("Is there an object?", "yes"), ("Is there a giraffe?", "no")):
            rows.append({"question_id": len(rows), "image": question.image.uri, "text": text, "label": label})
    return write_lines(folder / "pope.jsonl", rows)


@pytest.mark.usefixtures("ray_local")
def test_the_best_policy_is_measured_on_the_recipe_s_benchmarks(tmp_path: Path) -> None:
    data = write_pope(tmp_path / "pope")
    run, recipe = tmp_path / "run", write_recipe(tmp_path)
    overrides = ("policy.steps=1", f"benchmarks=[{{name: pope, data: {data}}}]")
    train(recipe, run, *overrides)
    path = run / "policy" / "benchmarks" / "pope.json"
    result = read_json(path)
    assert (result["role"], result["model"]) == ("policy", "best policy")
    # Some questions are asked without their image as well.
    assert result["statuses"] == {"ok": result["cost"]["requests"]}
    assert result["metrics"]["accuracy"]["ours"]["num"] == NUM_QUESTIONS
    assert 0 <= ours(result, "accuracy") <= 1
    assert result["cost"]["tokens"] >= NUM_QUESTIONS
    assert ">pope <" in (run / "report.html").read_text()
    # The same command again asks nothing.
    manifest = (path.parent / "replies" / "manifest.json").read_text()
    train(recipe, run, *overrides)
    assert (path.parent / "replies" / "manifest.json").read_text() == manifest
    assert read_json(path) == result


@pytest.mark.usefixtures("ray_local")
def test_images_of_the_recipe_s_benchmarks_are_not_trained_on(tmp_path: Path) -> None:
    # Scenes of the run's own pool, in other files.
    own = world.questions(tmp_path / "benchmark", seed=3, split="train", count=2)
    pair = {"query": "What?", "response": ["a", "b"], "human_ranking": [0, 1]}
    data = write_lines(tmp_path / "pairs.jsonl", [pair | {"id": q.id, "image": q.image.uri} for q in own])
    run = tmp_path / "run"
    overrides = (
        "pool.seed=3",
        "pool.count=6",
        "responses.generators.0.n=1",
        f"benchmarks=[{{name: vl_rewardbench, data: {data}}}]",
    )
    entrypoints.train_reward(SHAPES, run=run, overrides=overrides, until="experts")
    experts = StageFolder(run / "experts")
    dropped = [drop for drop in experts.dropped() if drop.reason == "benchmark_image"]
    assert len(dropped) >= 2
    assert {str(tmp_path / "benchmark") in drop.detail for drop in dropped} == {True}
    assert list(experts.records(CheckedResponse))
