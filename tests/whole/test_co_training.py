"""Two iterations of the shipped co-training at a small size: real engines, one service throughout."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from vlgenrm_ray import config
from vlgenrm_ray.entrypoints import RECIPES

SIZES = {
    "reward.pool.count": 32,
    "reward.heldout.count": 10,
    "reward.judge.num_critiques": 2,
    "reward.training.epochs": 1,
    # A judge with little training must be served as well.
    "reward.selection.tau": 0,
    "policy.pool.count": 32,
    "policy.heldout.count": 10,
    "policy.policy.steps": 2,
    "policy.policy.questions_per_step": 4,
    "policy.policy.rollouts.group_size": 4,
    "policy.policy.evaluation.every": 2,
}
LIMIT_S = 1500.0


@pytest.fixture(scope="module")
def settings() -> list[str]:
    """Overrides of every start; other settings would be refused the folder."""
    port = free_port()
    address = f"[{{name: genrm, url: 'http://127.0.0.1:{port}'}}]"
    values = SIZES | {"judge_service.port": port, "policy.policy.rewards": address}
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def start(run: Path, settings: list[str]) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "vlgenrm_ray.cli",
        "co-train",
        "--config",
        str(RECIPES / "shapes_co_training.yaml"),
    ]
    return subprocess.Popen(
        [*command, "--run", str(run), *settings],
        env=os.environ | {"RAY_ADDRESS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_iterations_with_a_kill_between(tmp_path: Path, settings: list[str]) -> None:
    process = start(tmp_path, settings)
    wait_for(tmp_path / "iteration-2" / "reward" / "responses" / "manifest.json", process)
    process.kill()
    process.communicate()
    first = json.loads((tmp_path / "summary.json").read_text())["iterations"]
    assert len(first) == 1

    process = start(tmp_path, settings)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    assert "iteration 2: judge's held-out pairwise accuracy" in output
    results: list[dict[str, Any]] = json.loads((tmp_path / "summary.json").read_text())["iterations"]
    # Work finished before the kill is not repeated.
    assert results[0] == first[0]
    assert [result["iteration"] for result in results] == [1, 2]
    for result in results:
        assert (Path(result["policy"]) / "config.json").exists()
        assert (result["swap_error"] == "") == (result["served_judge"] == result["judge"])
        summary = json.loads((Path(result["policy"]).parent / "summary.json").read_text())
        assert (summary["steps"], summary["samples"], summary["failed"]) == (2, 32, 0)
    # The first iteration's policy answers the second's pool, and its judge is the second's base.
    second = config.load(tmp_path / "iteration-2" / "reward" / "config.yaml")
    assert second.base == results[0]["judge"]
    assert second.responses.generators[0].engine.model == results[0]["policy"]


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no {path}: {process.communicate()[0]}")
        time.sleep(0.2)
