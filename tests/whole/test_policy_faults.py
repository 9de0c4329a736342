"""Interrupted policy trainings: every part is killed once, and the results equal those of an uninterrupted run."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from event_files import visible_steps
from interruptions import kill_training_worker, when_steps_are_done
from policy_runs import read_log, served_reward, train, write_recipe
from ports import free_port
from processes import descendants

from vlgenrm_ray.errors import RemoteError

WAIT_S = 400.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(ray_local: None, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    run = tmp_path_factory.mktemp("whole")
    train(recipe, run)
    return run / "policy"


def test_steps_are_equal_after_kills_of_driver_engine_and_trainer(whole: Path, recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "policy"
    with driver(recipe, tmp_path) as process:
        wait_for_steps(target, 1, process)
        process.kill()
    assert not (target / "result.json").exists()
    with ExitStack() as interruptions:
        interruptions.enter_context(when_steps_are_done(target, 2, kill_the_engine))
        interruptions.enter_context(when_steps_are_done(target, 3, kill_training_worker))
        done = train(recipe, tmp_path)
    assert done["samples"] == 64
    pieces, expected = read_log(target / "metrics.jsonl"), read_log(whole / "metrics.jsonl")
    assert [step["step"] for step in pieces] == [1, 2, 3, 4]
    for name in ("reward", "length", "loss", "reference_kl", "grad_norm"):
        values = [step[name] for step in pieces]
        assert values == pytest.approx([step[name] for step in expected], rel=1e-3, abs=1e-5), name
    ends = [read_log(folder / "evaluations.jsonl")[-1] for folder in (target, whole)]
    assert ends[0]["outcomes"] == ends[1]["outcomes"]
    tracked = visible_steps(target / "tensorboard", "train/reward")
    assert tracked == sorted(set(tracked)), "no step twice"
    assert tracked[-1] == 4


def test_a_lost_reward_stops_the_run_which_then_resumes(recipe: Path, ray_local: None, tmp_path: Path) -> None:
    port = free_port()
    settings = (
        *served_reward(port),
        "policy.reward_retry.outage_timeout_s=3",
        "policy.steps=3",
        "policy.evaluation.every=9",
    )
    target = tmp_path / "policy"
    with (
        service(port) as process,
        when_steps_are_done(target, 1, process.kill),
        pytest.raises(RemoteError, match=r"no reward for \d+ s \(limit 3 s\)"),
    ):
        train(recipe, tmp_path, *settings)
    before = read_log(target / "metrics.jsonl")
    assert 1 <= len(before) < 3
    with service(port):
        done = train(recipe, tmp_path, *settings)
    assert (done["steps"], done["failed"]) == (3, 0)
    steps = read_log(target / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[0] == before[0]


# -- interruptions ----------------------------------------------------------------------------------------------------


@contextmanager
def service(port: int) -> Iterator["subprocess.Popen[str]"]:
    """Serve a reward in another process."""
    code = (
        "import sys, time\nfrom fake_service import FakeLengthService, listening\n"
        f"with listening(FakeLengthService(), {port}):\n    print('up', flush=True)\n    time.sleep(3600)"
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
    """Run the command on the cluster that the tests share."""
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
    descendants("ray::RolloutWorker")[0].kill()
