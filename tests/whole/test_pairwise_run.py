"""A pairwise judge on real engines: cold start, evaluation, benchmark and ranking, then training by GRPO."""

import json
from pathlib import Path

import pytest
from policy_runs import read_log

from vlgenrm_ray import benchmark_entrypoints, config, entrypoints, pipeline
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.records import Critique, Example, PairResult

SMALL = (
    "pool.count=24",
    "heldout.count=8",
    "critiques.num_critiques=4",
    "judge.num_critiques=2",
    "judge.max_tokens=192",
    "selection.strategy=keep_all",
    "selection.check_evidence=false",
    "training.max_steps=12",
    "training.epochs=1",
    "rounds.num_rounds=1",
)
"""Overrides of the shipped recipe. With so few examples the strict selection might keep none."""


@pytest.fixture(scope="module")
def run(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of one round, the cold start."""
    folder = tmp_path_factory.mktemp("pairwise")
    pipeline.run(config.load(shipped_recipe("shapes_pairwise"), SMALL), folder)
    return folder


def test_the_cold_start_composes_pointwise_critiques_and_exports_a_pairwise_judge(run: Path) -> None:
    critiques = list(StageFolder(run / "round-1" / "critiques").records(Critique))
    assert {c.verdict for c in critiques} <= {"yes", "no", None}
    examples = list(StageFolder(run / "round-1" / "selection").records(Example))
    assert examples
    assert all("\nResponse B: " in e.prompt and e.completion.startswith("Response A.\n") for e in examples)
    assert {e.label for e in examples} <= {"a", "b", "tie"}
    model = run / "round-1" / "training" / "model"
    assert model_folder.judge_kind(model) == "pairwise"
    probes = json.loads((run / "round-1" / "training" / "probes.json").read_text())["probes"]
    assert all(0 <= probe["p_yes"] <= 1 for probe in probes)
    assert probes


def test_held_out_pairs_are_judged_in_both_orders(run: Path) -> None:
    results = list(StageFolder(run / "round-1" / "evaluation").records(PairResult))
    verdicts = {c.verdict for r in results for c in (*r.chosen.critiques, *r.rejected.critiques)}
    assert verdicts <= {"a", "b", "tie", None}
    summary = json.loads((run / "round-1" / "evaluation" / "manifest.json").read_text())["metrics"]
    assert set(summary["orders"]) == {
        "position_bias", "both_right", "both_wrong", "first_position", "second_position", "ties",
    }  # fmt: skip


def test_the_same_commands_measure_it(run: Path, tmp_path: Path) -> None:
    model = str(run / "round-1" / "training" / "model")
    small = ("evaluation.no_image_share=0", "judge.num_critiques=1", "judge.max_tokens=192", "heldout.count=4")
    path = shipped_recipe("shapes")
    metrics = entrypoints.evaluate(path, model=model, overrides=small, run=tmp_path / "evaluation")
    assert metrics["num_pairs"] == 4
    assert "orders" in metrics
    (result,) = benchmark_entrypoints.run_benchmarks(["heldout_pairs"], [run / "heldout"], model=model, overrides=small)
    assert result["role"] == "pairwise_judge"
    assert result["cost"]["requests"] == 16
    (ranked,) = benchmark_entrypoints.best_of_n(
        n=4, num_questions=2, model=model, overrides=small, run=tmp_path / "best-of-n"
    )
    assert ranked["role"] == "pairwise_judge"


def test_the_judge_is_trained_by_grpo_on_the_preferences_of_its_run(run: Path, tmp_path: Path) -> None:
    weights = {"run": str(run), "verdict": 1.0, "evidence": 0.5, "format": 0.1, "consistency": 0.4}
    overrides = (
        f"base={run / 'round-1' / 'training' / 'model'}",
        f"pool.path={run}",
        f"heldout.path={run}",
        f"policy.rewards={json.dumps([{'name': 'critique', 'critique': weights}])}",
        "policy.steps=2",
        "policy.questions_per_step=4",
        "policy.rollouts.group_size=4",
        "policy.rollouts.max_tokens=128",
        "policy.evaluation.num_samples=0",
    )
    entrypoints.train_policy(shipped_recipe("shapes_judge_grpo"), run=tmp_path, overrides=overrides)
    steps = read_log(tmp_path / "policy" / "metrics.jsonl")
    assert [step["statuses"].get("ok") for step in steps] == [16, 16], "every critique is verified"
    assert all(0.0 <= step["reward"] <= 1.0 for step in steps)
    for name in ("best", "model"):
        assert model_folder.judge_kind(tmp_path / "policy" / name) == "pairwise"
    (sample, *_) = read_log(tmp_path / "policy" / "samples.jsonl")
    assert "verdict" in sample["answers"][0]["critique"]
