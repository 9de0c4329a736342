"""Images of the benchmarks that a recipe names are not trained on; test_policy_training.py runs the benchmarks."""

from pathlib import Path

import pytest
from benchmark_files import write_lines

from vlgenrm_ray import entrypoints
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.records import CheckedResponse
from vlgenrm_ray.shapes import world

SHAPES = Path(__file__).parents[2] / "jobs" / "recipes" / "shapes.yaml"


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
