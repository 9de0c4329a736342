"""Forecasts from the manifests of a small run, against runs whose true costs are known."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vlgenrm_ray import config, forecast, recipe
from vlgenrm_ray.cli import app
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.data.files import write_json
from vlgenrm_ray.data.store import Manifest
from vlgenrm_ray.errors import InputError

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "shapes.yaml"
START_S = {"pool": 1.0, "responses": 20.0, "experts": 10.0, "critiques": 25.0, "training": 30.0, "evaluation": 22.0}
ROW_S = {"pool": 0.002, "responses": 0.1, "experts": 0.02, "critiques": 0.4, "training": 0.15, "evaluation": 0.05}
CHAIN = ("pool", "responses", "experts", "preferences", "critiques", "selection", "training")
NUM_FIRST = 8


def seconds(stage: str, rows: int) -> float:
    return START_S.get(stage, 0.5) + rows * ROW_S.get(stage, 0.001)


def write_run(folder: Path, overrides: tuple[str, ...] = ()) -> float:
    """Write the manifests of a run whose stages cost `seconds`; return the sum."""
    settings = config.load(RECIPE, overrides)
    write_json(folder / "ignored.json", {})
    (folder / "config.yaml").write_text(recipe.dump(settings))
    rows, total = settings.pool.count, 0.0
    stages = [(stage, rows) for stage in CHAIN[:4]] + [
        (stage, settings.heldout.count) for stage in ("heldout-pool", "heldout")
    ]
    for number in range(settings.rounds.num_rounds + 1):
        stages += [(f"round-{number}/{stage}", rows) for stage in CHAIN[4:] if number]
        stages.append((f"round-{number}/evaluation", settings.heldout.count))
    for path, num_rows in stages:
        stage = path.split("/")[-1]
        manifest = Manifest(
            stage=stage,
            fingerprint="f",
            inputs={},
            data_hash="h",
            rows_in=num_rows,
            rows_out=num_rows,
            dropped={},
            num_tokens=10 * num_rows,
            seconds=seconds(stage, num_rows),
            start_seconds=seconds(stage, NUM_FIRST),
            num_first_rows=NUM_FIRST,
        )
        if stage == "training":
            learn = num_rows * ROW_S[stage]
            metrics = {"num_examples": num_rows, "phases": {"load": 3.0, "learn": learn, "measure": 0.0}}
            manifest = replace(manifest, rows_in=1, num_first_rows=0, metrics=metrics)
        write_json(folder / path / "manifest.json", asdict(manifest))
        total += manifest.seconds
    return total


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    folder.mkdir()
    write_run(folder, ("pool.count=40", "heldout.count=40", "rounds.num_rounds=1"))
    return folder


def load(*overrides: str) -> RunConfig:
    return config.load(RECIPE, overrides)


@pytest.mark.parametrize("times", [1, 4, 16, 1000])
def test_a_larger_run_costs_its_starts_once_and_its_rows_in_proportion(
    sample: Path, tmp_path: Path, times: int
) -> None:
    sizes = (f"pool.count={40 * times}", "heldout.count=40", "rounds.num_rounds=2")
    true_seconds = write_run(tmp_path, sizes)
    costs = forecast.forecast(load(*sizes), sample)
    assert sum(cost.seconds for cost in costs) == pytest.approx(true_seconds, rel=1e-6)
    by_stage = {cost.stage: cost for cost in costs}
    assert (by_stage["responses"].rows, by_stage["critiques"].rows) == (40 * times, 2 * 40 * times)
    assert by_stage["evaluation"].rows == 3 * 40
    assert by_stage["critiques"].tokens == 2 * 400 * times


def test_more_actors_share_the_rows_but_not_the_start(sample: Path) -> None:
    costs = {c.stage: c for c in forecast.forecast(load("pool.count=40", "critiques.actors.num_actors=8"), sample)}
    # The sample had two actors. The second round of the recipe costs as much as the first.
    assert costs["critiques"].seconds == pytest.approx(2 * (START_S["critiques"] + 40 * ROW_S["critiques"] / 4))


def test_a_sample_on_other_hardware_is_refused(sample: Path) -> None:
    with pytest.raises(InputError, match=r"stage 'critiques' had 0 GPUs for each actor there and has 1 in the recipe"):
        forecast.forecast(load("critiques.actors.num_gpus=1"), sample)


def test_an_unfinished_sample_is_named(sample: Path) -> None:
    (sample / "experts" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"experts is not a finished stage; finish the sample"):
        forecast.forecast(load(), sample)


def gpu_sample(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    gpus = ("actors.num_gpus=1", "training.num_gpus=1", "actors.num_actors=1", "training.workers=1")
    write_run(tmp_path, ("pool.count=40", "rounds.num_rounds=1", *gpus))
    return tmp_path, gpus


def test_all_gpus_of_the_cluster_are_used_and_paid_for(tmp_path: Path) -> None:
    sample, gpus = gpu_sample(tmp_path)
    costs = {c.stage: c for c in forecast.forecast(load("pool.count=40000", *gpus), sample, num_gpus=8)}
    assert costs["critiques"].num_gpus == 8
    assert costs["critiques"].seconds == pytest.approx(2 * (START_S["critiques"] + 40000 * ROW_S["critiques"] / 8))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(forecast.forecast_table(list(costs.values()), num_gpus=8, price=2.0))
    text = captured.get()
    assert "bottleneck: critiques" in text
    dollars = sum(c.seconds for c in costs.values()) / 3600 * 8 * 2.0
    assert f"{dollars:,.2f}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_command_prints_the_forecast(sample: Path) -> None:
    arguments = ["plan", "--config", str(RECIPE), "--from", str(sample), "--set", "pool.count=4000"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "bottleneck: " in done.output
