"""Policy training on real engines: its files, its model, and its errors."""

import json
import math
import time
from pathlib import Path

import factories
import pytest
from event_files import visible_steps
from policy_runs import read_log, served_reward, train, write_recipe
from ports import free_port

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import ConfigError, RemoteError, StageError
from vlgenrm_ray.policy import run as policy
from vlgenrm_ray.records import Preference
from vlgenrm_ray.shapes.pairs import gold_pairs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(ray_local: None, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    run = tmp_path_factory.mktemp("whole")
    train(recipe, run)
    return run / "policy"


def test_every_step_and_evaluation_has_a_line(whole: Path) -> None:
    steps = read_log(whole / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert {step["statuses"]["ok"] for step in steps} == {16}
    assert {step["staleness"] for step in steps} == {0.0}
    # The probabilities of engine and trainer agree.
    assert max(step["mismatch"] for step in steps) < 1e-4
    # The initial policy is the reference.
    assert steps[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6)
    assert steps[-1]["reference_kl"] > 1e-5
    evaluations = read_log(whole / "evaluations.jsonl")
    assert [(one["step"], one["num_measured"], len(one["outcomes"])) for one in evaluations] == [
        (0, 8, 8),
        (2, 8, 8),
        (4, 8, 8),
    ]
    # A function does not depend on the image.
    assert {one["image_reward_gain"] for one in evaluations} == {None}
    assert [(one["step"], len(one["answers"])) for one in read_log(whole / "samples.jsonl")] == [(1, 4), (3, 4)]


def test_trackers_and_curves_have_every_step(whole: Path) -> None:
    assert visible_steps(whole / "tensorboard", "train/reward") == [1, 2, 3, 4]
    assert visible_steps(whole / "tensorboard", "evaluation/held_out") == [0, 2, 4]
    assert visible_steps(whole / "tensorboard", "samples") == [1, 3]
    assert (whole / "curves.svg").read_text().count("<path") > 8


def test_the_exported_models_are_trained(whole: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from vlgenrm_ray.shapes import pack_path

    best = json.loads((whole / "best.json").read_text())
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"], summary["samples"], summary["failed"]) == (4, "", 64, 0)
    assert summary["best"] == best
    assert best["held_out"] == max(one["held_out"] for one in read_log(whole / "evaluations.jsonl"))
    for name in ("model", "best"):
        AutoModelForImageTextToText.from_pretrained(whole / name)
    (weights,) = (whole / "model").glob("*.safetensors")
    before, after = load_file(pack_path("vlm") / "model.safetensors"), load_file(weights)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert not [name for name in changed if "visual" in name]


def test_a_finished_run_is_returned_and_other_settings_are_refused(whole: Path, recipe: Path) -> None:
    written = (whole / "model" / "config.json").stat().st_mtime_ns
    assert train(recipe, whole.parent) == json.loads((whole / "summary.json").read_text())
    assert (whole / "model" / "config.json").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="other settings"):
        train(recipe, whole.parent, "policy.steps=5")


def test_ppo_one_step_off(recipe: Path, ray_local: None, tmp_path: Path) -> None:
    ppo = ("algorithm=ppo", "kl.where=reward", "kl.estimator=k1", "ppo.gae_lambda=1")
    train(
        recipe,
        tmp_path,
        "policy.mode=one_step_off",
        "policy.critic.learning_rate=3e-3",
        "policy.critic.warmup_ratio=0",
        "policy.rollouts.engine.image_processor.size={shortest_edge: 1152, longest_edge: 1152}",
        *(f"policy.algorithm.{setting}" for setting in ppo),
    )
    steps = read_log(tmp_path / "policy" / "metrics.jsonl")
    assert [step["staleness"] for step in steps] == [0.0, 1.0, 1.0, 1.0]
    # Engine and learner encode an image as equally many tokens.
    assert steps[0]["mismatch"] < 1e-4
    assert min(step["value_grad_norm"] for step in steps) > 0
    # The critic starts with values of 0.
    assert steps[-1]["value_error"] < steps[0]["value_error"]


def write_preferences(run: Path) -> Path:
    """Write the preferences of a run folder: true against wrong answers of the embedded world."""
    folder = StageFolder(run / "preferences")
    pairs = [
        factories.preference(f"{pair.id}/p0", question=pair.question, chosen=pair.chosen, rejected=pair.rejected)
        for pair in gold_pairs(run / "images", seed=4, split="train", count=16)
    ]
    folder.begin("f", {})
    write_units(folder, Preference, [Unit(id=pair.id, records=(pair,)) for pair in pairs])
    folder.finish(seconds=0.0)
    return run


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


def test_dpo_without_a_measure_starts_no_engine_and_continues_from_a_checkpoint(
    recipe: Path, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an orchestrator was started")

    monkeypatch.setattr(policy, "start_orchestrator", refuse)
    pairs = write_preferences(tmp_path / "pairs")
    settings = (
        "pool.source=run",
        f"pool.path={pairs}",
        "heldout.source=run",
        f"heldout.path={pairs}",
        "policy.rewards=[]",
        "policy.algorithm.algorithm=dpo",
        "policy.evaluation.measure=''",
        "policy.questions_per_step=8",
        "policy.workers=2",
    )
    summary = train(recipe, tmp_path / "run", *settings)
    assert (summary["steps"], summary["samples"], summary["decoding"]) == (4, 32, [])
    # The held-out pairs are the measure; before the first step the policy prefers nothing.
    assert (summary["first"]["value"], summary["first"]["num_measured"]) == (0.5, 16)
    assert summary["last"]["value"] > 0.5
    with pytest.raises(StageError, match="none of the pool's 16 questions has a chosen and a rejected response"):
        train(recipe, tmp_path / "other", *settings[4:])


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


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_online_algorithms_train_by_rewards_of_claims(recipe: Path, ray_local: None, tmp_path: Path, name: str) -> None:
    reward = "{name: truth, function: 'vlgenrm_ray.shapes.world:sentences_are_true', granularity: claim}"
    train(
        recipe,
        tmp_path,
        f"policy.rewards=[{reward}]",
        f"policy.algorithm.algorithm={name}",
        "policy.rollouts.max_tokens=96",
        "policy.steps=2",
        "policy.evaluation.num_samples=0",
    )
    steps = read_log(tmp_path / "policy" / "metrics.jsonl")
    # A fifth of the questions want descriptions, of several sentences.
    assert max(step["segments"] for step in steps) > 1.0
    assert {step["samples_unaligned"] for step in steps} == {0.0}
    assert min(step["grad_norm"] for step in steps) > 0


def test_a_missing_reward_is_waited_for_and_then_named(
    recipe: Path,
    ray_local: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy, "_REPORT_EVERY_S", 0.5)
    port = free_port()
    began = time.monotonic()
    with pytest.raises(RemoteError, match=rf"no reward for \d+ s \(limit 2 s\).*127\.0\.0\.1:{port}.*run the same"):
        train(recipe, tmp_path, *served_reward(port), "policy.reward_retry.startup_timeout_s=2")
    assert time.monotonic() - began < 200.0
    assert f"the reward (http://127.0.0.1:{port})" in caplog.text
