"""A head of its own, and the embedded world's recipe submitted to it as users of a cluster do."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from ports import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 120.0
TOKEN = secrets.token_hex(32)
"""Ray's own guard: the head, whoever submits and the job must know it."""


def environment() -> dict[str, str]:
    """This process', with the environment's commands first and without another cluster's address."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    return inherited | ours | {"PATH": f"{RAY.parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Address of the job server of a Ray head with two CPUs."""
    dashboard = free_port()
    ports = ["--port=0", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", *ports]
    process = subprocess.Popen(
        command, env=environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(process, f"{address}/api/version")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_for(process: "subprocess.Popen[str]", url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urlopen(Request(url, headers={"Authorization": f"Bearer {TOKEN}"}), timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                assert process.stdout
                pytest.fail(f"no Ray head: {process.stdout.read()}")
            time.sleep(0.5)


def submit(head: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`ray job submit`, waiting for the job's end."""
    command = [str(RAY), "job", "submit", "--address", head, "--working-dir", str(ROOT)]
    job = ["--", "python", "jobs/train_reward.py", *arguments]
    return subprocess.run([*command, *job], env=environment(), capture_output=True, text=True, timeout=600)


def small(run: Path) -> list[str]:
    sizes = {
        "pool.count": 24,
        "heldout.count": 10,
        "rounds.num_rounds": 1,
        "judge.num_critiques": 2,
        "selection.tau": 0,
    }
    overrides = [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]
    return ["--config", "jobs/recipes/shapes.yaml", "--run", str(run), *overrides]


def test_the_shapes_recipe_runs_as_a_job_and_is_not_run_twice(head: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = submit(head, *small(run))
    assert first.returncode == 0, first.stdout + first.stderr
    for message in ("base: held-out pairwise accuracy", "round 1: held-out pairwise accuracy", "succeeded"):
        assert message in first.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert [r["round"] for r in summary["rounds"]] == [0, 1]
    assert all(r["num_pairs"] == 10 for r in summary["rounds"])
    assert (run / "best" / "config.json").exists()

    written = (run / "round-1" / "evaluation" / "manifest.json").stat().st_mtime_ns
    second = submit(head, *small(run))
    assert second.returncode == 0, second.stdout + second.stderr
    assert json.loads((run / "summary.json").read_text())["rounds"] == summary["rounds"]
    assert (run / "round-1" / "evaluation" / "manifest.json").stat().st_mtime_ns == written


def test_a_job_that_cannot_run_fails_and_says_why(head: str, tmp_path: Path) -> None:
    failed = submit(head, *small(tmp_path / "run"), "--set", "training.num_gpus=1")
    assert failed.returncode == 1
    assert "stage 'training'" in failed.stdout
    assert "the cluster has 2 CPUs" in failed.stdout
