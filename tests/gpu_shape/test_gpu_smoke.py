"""`vlgenrm doctor --gpu-smoke`: whole on the CPU, and its account of failures with the parts replaced."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlgenrm_ray import entrypoints, gpu_smoke, pipeline, policy_pipeline
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.gpu_smoke import SmokeRun, SmokeStatus

PREPARATION = ("responses", "experts", "preferences")


def finish(folder: Path) -> None:
    """Write a finished stage without rows."""
    stage = StageFolder(folder)
    stage.begin("test", {})
    stage.finish(seconds=1.0, metrics={"steps": 3, "last_loss": 0.5})


@pytest.fixture
def smoke(tmp_path: Path) -> SmokeRun:
    return SmokeRun(folder=tmp_path / "run", recipes=entrypoints.RECIPES, num_gpus=1, port=1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace pipelines and service: critiques cannot be written, IPC fails, the rest works."""
    calls_so_far: list[str] = []

    def run_reward(settings: Any, folder: Path, *, until: str | None = None) -> dict[str, Any]:
        calls_so_far.append(until or "round")
        if until is None:
            finish(folder / "round-0" / "evaluation")
            raise RuntimeError("CUDA error:\nno kernel image is available")
        finish(folder / until)
        return {"rounds": []}

    def run_policy(settings: Any, folder: Path) -> dict[str, Any]:
        transfer = settings.policy.sync.transfer
        calls_so_far.append(transfer)
        assert settings.policy.num_gpus == settings.policy.rollouts.num_gpus == 0.5
        if transfer == "ipc":
            raise ValueError("invalid device context")
        return {"steps": 2, "samples": 32, "failed": 0}

    monkeypatch.setattr(pipeline, "run", run_reward)
    monkeypatch.setattr(policy_pipeline, "run", run_policy)
    monkeypatch.setattr(gpu_smoke, "_serve", lambda smoke: "reward 0.5 of 2 critiques")
    return calls_so_far


def test_a_part_that_fails_does_not_stop_the_others(smoke: SmokeRun, calls: list[str]) -> None:
    shown: list[gpu_smoke.SmokeResult] = []
    results = gpu_smoke.run(smoke, shown.append)
    assert shown == results
    assert calls == [*PREPARATION, "round", "object_store", "ipc"]
    by_part = {result.part: (result.status, result.detail) for result in results}
    assert all(
        by_part[stage][0] is SmokeStatus.OK for stage in (*PREPARATION, "evaluation of the base", "served judge")
    )
    assert by_part["critiques"] == (SmokeStatus.FAILED, "RuntimeError: CUDA error: no kernel image is available")
    assert by_part["training, ZeRO 3"] == (SmokeStatus.SKIPPED, "not reached")
    assert by_part["2 GRPO steps, weights by ipc"] == (SmokeStatus.FAILED, "ValueError: invalid device context")
    assert by_part["2 GRPO steps, weights by nccl"] == (SmokeStatus.SKIPPED, "needs 2 GPUs")
    assert gpu_smoke.exit_code(results) == 1


def test_parts_that_are_left_out_are_no_failure(smoke: SmokeRun) -> None:
    skipped = gpu_smoke.SmokeResult(part="nccl", status=SmokeStatus.SKIPPED, seconds=0.0, detail="needs 2 GPUs")
    assert gpu_smoke.exit_code([skipped]) == 0


@pytest.mark.parametrize("num_gpus", [0, 1, 2, 8])
def test_settings_fit_machines_with_few_and_many_gpus(tmp_path: Path, num_gpus: int) -> None:
    """They are those of a recipe: one that does not exist any more, or does not fit the others, is an error here."""
    smoke = SmokeRun(folder=tmp_path, recipes=entrypoints.RECIPES, num_gpus=num_gpus, port=1)
    settings = gpu_smoke.reward_config(smoke)
    assert settings.training.engine.zero_stage == 3
    assert settings.training.num_gpus == bool(num_gpus)
    assert settings.training.workers * settings.training.num_gpus <= num_gpus
    for transfer, needed in (("object_store", 0), ("ipc", 1), ("nccl", 2)):
        if num_gpus >= needed:
            policy = gpu_smoke.policy_config(smoke, transfer).policy
            assert policy.sync_backend() == transfer
            assert policy.num_gpus + policy.rollouts.num_gpus <= num_gpus


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    with pytest.raises(entrypoints.InputError, match="name a new folder"):
        entrypoints.run_gpu_smoke(tmp_path)


@pytest.mark.slow
def test_every_part_that_needs_no_gpu_works_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlgenrm_ray.cli", "doctor", "--gpu-smoke", "--run", str(tmp_path / "smoke")]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1500)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^(ok|failed|skipped) +\d+ s  ([^:]+): (.*)$", done.stdout, re.MULTILINE)
    statuses = {part: status for status, part, _ in lines}
    assert [part for part, status in statuses.items() if status != "ok"] == [
        "2 GRPO steps, weights by ipc",
        "2 GRPO steps, weights by nccl",
    ]
    assert {detail for status, _, detail in lines if status == "skipped"} == {"needs a GPU", "needs 2 GPUs"}
    assert len(statuses) == 12
