"""Jobs on a Ray head: the first stage of the embedded world's recipe; tests/whole submits all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from submitted_jobs import running_head, submit

from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.records import Question

NUM_QUESTIONS = 8
RECIPE = ("--config", "jobs/recipes/shapes.yaml", "--set", f"pool.count={NUM_QUESTIONS}")


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    with running_head() as address:
        yield address


def test_a_job_runs_in_workers_that_import_the_uploaded_package(head: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = submit(head, "vlgenrm", "run", *RECIPE, "--run", str(run), "--until", "pool")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert len(list(StageFolder(run / "pool").records(Question))) == NUM_QUESTIONS


def test_a_job_that_cannot_run_fails_and_says_why(head: str, tmp_path: Path) -> None:
    job = ("python", "jobs/train_reward.py", *RECIPE, "--run", str(tmp_path / "run"), "--set", "training.num_gpus=1")
    failed = submit(head, *job)
    assert failed.returncode == 1
    assert "stage 'training'" in failed.stdout
    assert "the cluster has 2 CPUs" in failed.stdout
