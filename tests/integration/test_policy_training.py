"""The training of a policy on real engines: it goes to its end, or on from wherever it was interrupted."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.test_job_submit import free_port
from tests.integration.test_training import kill_a_worker, once_steps_are_done
from vlgenrm_ray import commands
from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.policy import run as policy

TRUTH = "vlgenrm_ray.shapes.world:response_is_true"
RECIPE = f"""
base: pack:vlm
pool: {{source: shapes, split: train, seed: 10, count: 16}}
heldout: {{source: shapes, split: heldout, seed: 2, count: 8}}
policy:
  rewards: [{{name: truth, function: "{TRUTH}"}}]
  steps: 4
  questions_per_step: 4
  tokens_per_batch: 2048
  rollouts:
    engine: {{max_model_len: 384, max_num_seqs: 64, kv_cache_gib: 0.05, threads: 1}}
    num_cpus: 0.5
    group_size: 4
    max_tokens: 32
  engine: {{zero_stage: 0, learning_rate: 1.0e-4, freeze_vision: true}}
  checkpoint_every: 1
  evaluation: {{every: 2, measure: "{TRUTH}"}}
  samples_every: 2
"""
WAIT_S = 400.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(ray_local: None, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole")
    train(recipe, run)
    return run / "policy"


def train(recipe: Path, run: Path, *overrides: str) -> dict[str, Any]:
    return commands.train_policy(recipe, run=run, overrides=overrides)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    assert [(one["step"], one["num"], len(one["outcomes"])) for one in evaluations] == [(0, 8, 8), (2, 8, 8), (4, 8, 8)]
    assert [(one["step"], len(one["answers"])) for one in lines(whole / "samples.jsonl")] == [(1, 4), (3, 4)]


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


def test_driver_engine_and_learner_are_killed_and_every_step_is_as_without(
    whole: Path, recipe: Path, tmp_path: Path
) -> None:
    target = tmp_path / "policy"
    with driver(recipe, tmp_path) as process:
        wait_for_steps(target, 1, process)
        process.kill()
    assert not (target / "result.json").exists()
    with ExitStack() as interruptions:
        interruptions.enter_context(once_steps_are_done(target, 2, kill_the_engine))
        interruptions.enter_context(once_steps_are_done(target, 3, kill_a_worker))
        done = train(recipe, tmp_path)
    assert done["samples"] == 64
    pieces, expected = lines(target / "metrics.jsonl"), lines(whole / "metrics.jsonl")
    assert [step["step"] for step in pieces] == [1, 2, 3, 4]
    for name in ("reward", "length", "loss", "reference_kl", "grad_norm"):
        found = [step[name] for step in pieces]
        assert found == pytest.approx([step[name] for step in expected], rel=1e-3, abs=1e-5), name
    ends = [lines(folder / "evaluations.jsonl")[-1] for folder in (target, whole)]
    assert ends[0]["outcomes"] == ends[1]["outcomes"]


def test_ppo_one_step_off(recipe: Path, ray_local: None, tmp_path: Path) -> None:
    ppo = ("algorithm=ppo", "kl.where=reward", "kl.estimator=k1", "ppo.gae_lambda=1")
    train(
        recipe,
        tmp_path,
        "policy.mode=one_step_off",
        "policy.critic.learning_rate=3e-3",
        "policy.critic.warmup_share=0",
        *(f"policy.algorithm.{setting}" for setting in ppo),
    )
    steps = lines(tmp_path / "policy" / "metrics.jsonl")
    assert [step["staleness"] for step in steps] == [0.0, 1.0, 1.0, 1.0]
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
    monkeypatch.setattr(policy, "_TELL_S", 0.5)
    port = free_port()
    began = time.monotonic()
    with pytest.raises(RemoteError, match=rf"no reward for \d+ s \(limit 2 s\).*127\.0\.0\.1:{port}.*run the same"):
        train(recipe, tmp_path, *served_at(port), "policy.patience.start_s=2")
    assert time.monotonic() - began < WAIT_S / 2
    assert f"the reward (http://127.0.0.1:{port})" in caplog.text


def test_a_reward_that_goes_away_stops_the_run_which_then_goes_on(
    recipe: Path, ray_local: None, tmp_path: Path
) -> None:
    port = free_port()
    settings = (*served_at(port), "policy.patience.run_s=3", "policy.steps=3", "policy.evaluation.every=9")
    target = tmp_path / "policy"
    with (
        service(port) as process,
        once_steps_are_done(target, 1, process.kill),
        pytest.raises(RemoteError, match=r"no reward for \d+ s \(limit 3 s\)"),
    ):
        train(recipe, tmp_path, *settings)
    before = lines(target / "metrics.jsonl")
    assert 1 <= len(before) < 3
    with service(port):
        done = train(recipe, tmp_path, *settings)
    assert (done["steps"], done["failed"]) == (3, 0)
    steps = lines(target / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[0] == before[0]


# -- what they do to it ------------------------------------------------------------------------------------------------


def served_at(port: int) -> tuple[str, str]:
    url = f"http://127.0.0.1:{port}"
    return f"policy.rewards=[{{name: served, url: '{url}', retries: 0}}]", "policy.evaluation.measure=''"


@contextmanager
def service(port: int) -> Iterator["subprocess.Popen[str]"]:
    """A served reward in a process of its own."""
    code = (
        "import sys, time\nfrom scripted_service import ByLength, listening\n"
        f"with listening(ByLength(), {port}):\n    print('up', flush=True)\n    time.sleep(3600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def driver(recipe: Path, run: Path) -> Iterator["subprocess.Popen[str]"]:
    """The command, on the cluster that the tests share."""
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "vlgenrm_ray.cli", "policy", "--config", str(recipe), "--run", str(run)]
    process = subprocess.Popen(
        [*command, "--address", address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_steps(target: Path, number: int, process: "subprocess.Popen[str]") -> None:
    path, deadline = target / "metrics.jsonl", time.monotonic() + WAIT_S
    while not path.exists() or len(path.read_text().splitlines()) < number:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no step {number}: {process.communicate()[0]}")
        time.sleep(0.05)


def kill_the_engine() -> None:
    mine = psutil.Process().children(recursive=True)
    next(p for p in mine if "ray::RolloutActor" in " ".join(p.cmdline())).kill()
