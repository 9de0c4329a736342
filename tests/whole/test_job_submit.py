"""The embedded world's whole recipe as a job on a Ray head; tests/integration has the job's first stage."""

import json
from pathlib import Path

from submitted_jobs import running_head, submit

SIZES = {"pool.count": 24, "heldout.count": 10, "rounds.num_rounds": 1, "judge.num_critiques": 2, "selection.tau": 0}


def test_the_shapes_recipe_runs_as_a_job_and_is_not_run_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = [word for name, value in SIZES.items() for word in ("--set", f"{name}={value}")]
    job = ["python", "jobs/train_reward.py", "--config", "jobs/recipes/shapes.yaml", "--run", str(run), *sizes]
    with running_head() as head:
        first = submit(head, *job)
        assert first.returncode == 0, first.stdout + first.stderr
        for message in ("base: held-out pairwise accuracy", "round 1: held-out pairwise accuracy", "succeeded"):
            assert message in first.stdout
        summary = json.loads((run / "summary.json").read_text())
        assert [r["round"] for r in summary["rounds"]] == [0, 1]
        assert all(r["num_pairs"] == 10 for r in summary["rounds"])
        assert (run / "best" / "config.json").exists()

        written = (run / "round-1" / "evaluation" / "manifest.json").stat().st_mtime_ns
        second = submit(head, *job)
        assert second.returncode == 0, second.stdout + second.stderr
        assert json.loads((run / "summary.json").read_text())["rounds"] == summary["rounds"]
        assert (run / "round-1" / "evaluation" / "manifest.json").stat().st_mtime_ns == written
