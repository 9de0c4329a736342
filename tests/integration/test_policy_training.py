"""Policy training on real engines: its files, its model, and its errors. tests/whole has further algorithms."""

import json
import time
from pathlib import Path

import pytest
from benchmark_files import ours, write_lines
from event_files import visible_steps
from golden_files import by_metric, compare, cpu_only
from policy_runs import CLAIM_REWARDS, read_log, served_reward, train, write_preferences, write_recipe
from ports import free_port

from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.errors import ConfigError, RemoteError, StageError
from vlgenrm_ray.policy import run as policy
from vlgenrm_ray.shapes import world

RUN = (
    "policy.steps=3",
    "policy.updates_per_step=2",
    "policy.rollouts.group_size=8",
    "policy.rollouts.temperature=1.3",
    "policy.engine.precision=fp32",
    "policy.engine.learning_rate=3e-4",
    "policy.evaluation.every=3",
)
"""Two updates per step: the loss of the first is close to 0. A high temperature makes the answers of a group differ."""
GOLDEN_METRICS = ("reward", "length", "loss", "grad_norm", "reference_kl", "entropy")
NUM_BENCHMARK_QUESTIONS = 12


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings of the uninterrupted run, whose best policy answers a benchmark at the end."""
    data = write_pope(tmp_path_factory.mktemp("pope"))
    return (*RUN, f"benchmarks=[{{name: pope, data: {data}}}]")


def write_pope(folder: Path) -> Path:
    """Write yes/no questions about scenes of the embedded world in the form of POPE, with their images."""
    rows = []
    for question in world.questions(folder / "images", seed=5, split="heldout", count=NUM_BENCHMARK_QUESTIONS // 2):
        for text, label in (("Is there an object?", "yes"), ("Is there a giraffe?", "no")):
            rows.append({"question_id": len(rows), "image": question.image.uri, "text": text, "label": label})
    return write_lines(folder / "pope.jsonl", rows)


@pytest.fixture(scope="module")
def whole(ray_local: None, recipe: Path, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    run = tmp_path_factory.mktemp("whole")
    train(recipe, run, *settings)
    return run / "policy"


def test_every_step_and_evaluation_has_a_line(whole: Path) -> None:
    steps = read_log(whole / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert {step["statuses"]["ok"] for step in steps} == {32}
    assert {step["staleness"] for step in steps} == {0.0}
    # The probabilities of engine and trainer agree.
    assert max(step["mismatch"] for step in steps) < 1e-4
    # The initial policy is the reference; the second update of a step is no longer by it.
    assert steps[0]["reference_kl"] < 1e-5 < 1e-4 < steps[-1]["reference_kl"]
    evaluations = read_log(whole / "evaluations.jsonl")
    assert [(one["step"], one["num_measured"], len(one["outcomes"])) for one in evaluations] == [(0, 8, 8), (3, 8, 8)]
    # A function does not depend on the image.
    assert {one["image_reward_gain"] for one in evaluations} == {None}
    assert [(one["step"], len(one["answers"])) for one in read_log(whole / "samples.jsonl")] == [(1, 8), (3, 8)]


@cpu_only
def test_golden_rewards_and_losses_of_a_policy_run(whole: Path) -> None:
    compare("policy_run", by_metric(read_log(whole / "metrics.jsonl"), *GOLDEN_METRICS), 1e-5)


def test_trackers_and_curves_have_every_step(whole: Path) -> None:
    assert visible_steps(whole / "tensorboard", "train/reward") == [1, 2, 3]
    assert visible_steps(whole / "tensorboard", "evaluation/held_out") == [0, 3]
    assert visible_steps(whole / "tensorboard", "samples") == [1, 3]
    assert (whole / "curves.svg").read_text().count("<path") > 8


def test_the_exported_models_are_trained(whole: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from vlgenrm_ray.shapes import pack_path

    best = json.loads((whole / "best.json").read_text())
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"], summary["samples"], summary["failed"]) == (3, "", 96, 0)
    assert summary["best"] == best
    assert best["held_out"] == max(one["held_out"] for one in read_log(whole / "evaluations.jsonl"))
    for name in ("model", "best"):
        AutoModelForImageTextToText.from_pretrained(whole / name)
    (weights,) = (whole / "model").glob("*.safetensors")
    before, after = load_file(pack_path("vlm") / "model.safetensors"), load_file(weights)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert not [name for name in changed if "visual" in name]


def test_the_best_policy_is_measured_on_the_recipe_s_benchmarks(whole: Path) -> None:
    result = read_json(whole / "benchmarks" / "pope.json")
    assert (result["role"], result["model"]) == ("policy", "best policy")
    # Some questions are asked without their image as well.
    assert result["statuses"] == {"ok": result["cost"]["requests"]}
    assert result["metrics"]["accuracy"]["ours"]["num"] == NUM_BENCHMARK_QUESTIONS
    assert 0 <= ours(result, "accuracy") <= 1
    assert result["cost"]["tokens"] >= NUM_BENCHMARK_QUESTIONS
    assert ">pope <" in (whole.parent / "report.html").read_text()


def test_a_finished_run_is_returned_and_other_settings_are_refused(
    whole: Path, recipe: Path, settings: tuple[str, ...]
) -> None:
    results = (whole / "model" / "config.json", whole / "benchmarks" / "replies" / "manifest.json")
    written = [path.stat().st_mtime_ns for path in results]
    assert train(recipe, whole.parent, *settings) == json.loads((whole / "summary.json").read_text())
    assert [path.stat().st_mtime_ns for path in results] == written
    with pytest.raises(ConfigError, match="other settings"):
        train(recipe, whole.parent, *settings, "policy.steps=5")


def test_ppo_one_step_off_by_rewards_of_claims(recipe: Path, ray_local: None, tmp_path: Path) -> None:
    ppo = ("algorithm=ppo", "kl.where=reward", "kl.estimator=k1", "ppo.gae_lambda=1")
    train(
        recipe,
        tmp_path,
        *CLAIM_REWARDS,
        "policy.mode=one_step_off",
        "policy.critic.learning_rate=3e-3",
        "policy.critic.warmup_ratio=0",
        "policy.rollouts.engine.image_processor.size={shortest_edge: 1152, longest_edge: 1152}",
        *(f"policy.algorithm.{setting}" for setting in ppo),
    )
    steps = read_log(tmp_path / "policy" / "metrics.jsonl")
    assert [step["staleness"] for step in steps] == [0.0, 1.0, 1.0, 1.0]
    assert max(step["segments"] for step in steps) > 1.0
    assert {step["samples_unaligned"] for step in steps} == {0.0}
    # Engine and learner encode an image as equally many tokens.
    assert steps[0]["mismatch"] < 1e-4
    assert min(step["value_grad_norm"] for step in steps) > 0


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
        "policy.steps=2",
    )
    summary = train(recipe, tmp_path / "run", *settings)
    assert (summary["steps"], summary["samples"], summary["decoding"]) == (2, 16, [])
    # The held-out pairs are the measure; before the first step the policy prefers nothing.
    assert (summary["first"]["value"], summary["first"]["num_measured"]) == (0.5, 16)
    assert summary["last"]["value"] > 0.5
    with pytest.raises(StageError, match="none of the pool's 16 questions has a chosen and a rejected response"):
        train(recipe, tmp_path / "other", *settings[4:])


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
