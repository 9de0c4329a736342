"""Trainings that are ended by Ctrl-C and then meet a killed worker, or a damaged checkpoint."""

import shutil
from pathlib import Path

import pytest
from interruptions import kill_training_worker, when_steps_are_done
from training_runs import metrics, train, train_until_ctrl_c, weights, write_selection

from vlgenrm_ray.data.store import StageFolder


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> StageFolder:
    return write_selection(tmp_path_factory.mktemp("selection"))


@pytest.fixture(scope="module")
def uninterrupted(ray_local: None, selection: StageFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("uninterrupted") / "training"
    train(selection, target)
    return target


@pytest.fixture(scope="module")
def interrupted(ray_local: None, selection: StageFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training that Ctrl-C ended. Tests continue copies of it."""
    target = tmp_path_factory.mktemp("interrupted") / "training"
    train_until_ctrl_c(selection, target)
    return target


def test_results_are_the_same_after_ctrl_c_and_a_killed_worker(
    uninterrupted: Path, interrupted: Path, selection: StageFolder, tmp_path: Path
) -> None:
    target = shutil.copytree(interrupted, tmp_path / "training")
    # Beyond the first run's steps, so that a worker of the second is killed.
    with when_steps_are_done(target, len(metrics(target)) + 2, kill_training_worker):
        train(selection, target)
    whole, pieces = metrics(uninterrupted), metrics(target)
    assert [s["step"] for s in pieces] == [s["step"] for s in whole]
    assert [s["loss"] for s in pieces] == pytest.approx([s["loss"] for s in whole], rel=1e-4)
    assert weights(target) == pytest.approx(weights(uninterrupted), abs=2e-3)


def test_a_damaged_checkpoint_is_not_loaded_and_the_training_begins_again(
    uninterrupted: Path, interrupted: Path, selection: StageFolder, tmp_path: Path
) -> None:
    target = shutil.copytree(interrupted, tmp_path / "training")
    damaged = [path for path in (target / "ray").rglob("*.pt") if path.stat().st_size > 4]
    assert damaged
    for path in damaged:
        path.write_bytes(b"\0" * path.stat().st_size)
    train(selection, target)
    assert "training begins again from its base: checkpoint" in (target / "messages.txt").read_text()
    assert [s["loss"] for s in metrics(target)] == pytest.approx([s["loss"] for s in metrics(uninterrupted)], rel=1e-4)
