"""Policy trainings by further algorithms; tests/integration trains by GRPO, PPO and DPO."""

import math
from pathlib import Path

import pytest
from policy_runs import CLAIM_REWARDS, read_log, train, write_preferences, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def test_mdpo_learns_from_the_pairs_of_a_run_folder_and_reports_the_measure(
    recipe: Path, ray_local: None, tmp_path: Path
) -> None:
    summary = train(
        recipe,
        tmp_path / "run",
        "pool.source=run",
        f"pool.path={write_preferences(tmp_path / 'pairs')}",
        "policy.rewards=[]",
        "policy.algorithm.algorithm=mdpo",
        "policy.engine.learning_rate=3e-4",
        "policy.steps=8",
        "policy.questions_per_step=8",
        "policy.evaluation.every=8",
    )
    steps = read_log(tmp_path / "run" / "policy" / "metrics.jsonl")
    assert [(step["step"], step["pairs"], step["pairs_skipped"]) for step in steps] == [(i, 8, 0) for i in range(1, 9)]
    # Policy and reference are equal at first: three terms of log 2, and no preference.
    assert steps[0]["loss"] == pytest.approx(3 * math.log(2), rel=1e-4)
    assert (steps[0]["pair_accuracy"], steps[0]["pair_margin"]) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-5))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["pair_margin"] > 0
    evaluations = read_log(tmp_path / "run" / "policy" / "evaluations.jsonl")
    assert [(one["step"], one["num_measured"], one["num_pairs"], one["reward"]) for one in evaluations] == [
        (0, 8, 0, None),
        (8, 8, 0, None),
    ]
    assert [line["step"] for line in summary["decoding"]] == [0, 8]


def test_the_critic_of_ppo_learns_values_one_step_off(recipe: Path, ray_local: None, tmp_path: Path) -> None:
    train(
        recipe,
        tmp_path,
        "policy.mode=one_step_off",
        "policy.critic.learning_rate=3e-3",
        "policy.critic.warmup_ratio=0",
        "policy.algorithm.algorithm=ppo",
        "policy.algorithm.kl.where=reward",
        "policy.algorithm.kl.estimator=k1",
        "policy.algorithm.ppo.gae_lambda=1",
    )
    steps = read_log(tmp_path / "policy" / "metrics.jsonl")
    # The critic starts with values of 0.
    assert steps[-1]["value_error"] < steps[0]["value_error"]


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "raft"])
def test_online_algorithms_train(recipe: Path, ray_local: None, tmp_path: Path, name: str) -> None:
    train(recipe, tmp_path, f"policy.algorithm.algorithm={name}", "policy.steps=2", "policy.evaluation.num_samples=0")
    steps = read_log(tmp_path / "policy" / "metrics.jsonl")
    assert min(step["grad_norm"] for step in steps) > 0
    if name == "raft":
        # One sample of each group whose rewards differ.
        assert steps[0]["loss"] > 0
    else:
        # The estimator k1 has either sign; at first the policy is the reference.
        assert steps[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6)
        assert abs(steps[1]["reference_kl"]) > 1e-6


def test_grpo_trains_by_rewards_of_claims(recipe: Path, ray_local: None, tmp_path: Path) -> None:
    train(recipe, tmp_path, *CLAIM_REWARDS, "policy.steps=2", "policy.evaluation.num_samples=0")
    steps = read_log(tmp_path / "policy" / "metrics.jsonl")
    # A fifth of the questions want descriptions, of several sentences.
    assert max(step["segments"] for step in steps) > 1.0
    assert {step["samples_unaligned"] for step in steps} == {0.0}
    assert min(step["grad_norm"] for step in steps) > 0
