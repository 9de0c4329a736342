"""The training of a policy on real engines: what it writes, and what it says where it cannot."""

import json
import time
from pathlib import Path

import pytest
from event_files import shown
from policy_runs import lines, served_at, train, write

from tests.integration.test_job_submit import free_port
from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.policy import run as policy


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(ray_local: None, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole")
    train(recipe, run)
    return run / "policy"


def test_a_step_has_a_line_and_an_evaluation_has_one(whole: Path) -> None:
    steps = lines(whole / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert {step["statuses"]["ok"] for step in steps} == {16}
    assert {step["staleness"] for step in steps} == {0.0}
    # The engine's probabilities are those of the weights that learn.
    assert max(step["mismatch"] for step in steps) < 1e-4
    # The first version is the reference.
    assert steps[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6)
    assert steps[-1]["reference_kl"] > 1e-5
    evaluations = lines(whole / "evaluations.jsonl")
    assert [(one["step"], one["num_measured"], len(one["outcomes"])) for one in evaluations] == [
        (0, 8, 8),
        (2, 8, 8),
        (4, 8, 8),
    ]
    # A function does not depend on the image.
    assert {one["image_reward_gain"] for one in evaluations} == {None}
    assert [(one["step"], len(one["answers"])) for one in lines(whole / "samples.jsonl")] == [(1, 4), (3, 4)]


def test_it_is_told_while_it_goes_on_and_drawn_at_its_end(whole: Path) -> None:
    assert shown(whole / "tensorboard", "train/reward") == [1, 2, 3, 4]
    assert shown(whole / "tensorboard", "evaluation/held_out") == [0, 2, 4]
    assert shown(whole / "tensorboard", "samples") == [1, 3]
    assert (whole / "curves.svg").read_text().count("<path") > 8


def test_what_is_exported_is_a_model_that_learnt(whole: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from vlgenrm_ray.shapes import pack_path

    best = json.loads((whole / "best.json").read_text())
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"], summary["samples"], summary["failed"]) == (4, "", 64, 0)
    assert summary["best"] == best
    assert best["held_out"] == max(one["held_out"] for one in lines(whole / "evaluations.jsonl"))
    for name in ("model", "best"):
        AutoModelForImageTextToText.from_pretrained(whole / name)
    (weights,) = (whole / "model").glob("*.safetensors")
    before, after = load_file(pack_path("vlm") / "model.safetensors"), load_file(weights)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert not [name for name in changed if "visual" in name]


def test_the_same_command_finds_it_done_and_another_is_refused(whole: Path, recipe: Path) -> None:
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
        "policy.critic.warmup_share=0",
        "policy.rollouts.engine.image_processor.size={shortest_edge: 1152, longest_edge: 1152}",
        *(f"policy.algorithm.{setting}" for setting in ppo),
    )
    steps = lines(tmp_path / "policy" / "metrics.jsonl")
    assert [step["staleness"] for step in steps] == [0.0, 1.0, 1.0, 1.0]
    # Engine and learner see a picture as equally few tokens.
    assert steps[0]["mismatch"] < 1e-4
    assert min(step["value_grad_norm"] for step in steps) > 0
    # The critic begins with 0 for everything.
    assert steps[-1]["value_error"] < steps[0]["value_error"]


def test_a_reward_that_is_absent_is_waited_for_and_then_named(
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
        train(recipe, tmp_path, *served_at(port), "policy.reward_retry.start_s=2")
    assert time.monotonic() - began < 200.0
    assert f"the reward (http://127.0.0.1:{port})" in caplog.text
