"""Small benchmark files for tests, and the real ones where the machine has them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vlgenrm_ray.evaluation.benchmark_run import BenchmarkTask, score_answers


def write_lines(path: Path, rows: list[dict[str, Any]], *, ensure_ascii: bool = True) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows))
    return path


def score(name: str, data: Path, answers: Path) -> dict[str, Any]:
    """Score stored answers; return the result as JSON."""
    return score_answers(BenchmarkTask(name=name, data=data), answers).as_json()


def rules(result: dict[str, Any], metric: str) -> dict[str, float | None]:
    """Return the value of a metric or group by each program's rule."""
    return dict((result["metrics"] | result.get("groups", {}))[metric]["rules"])


def ours(result: dict[str, Any], metric: str) -> float:
    """Return our value of a metric, group or baseline."""
    rows = result["metrics"] | result.get("groups", {}) | result.get("baselines", {}) | result.get("orders", {})
    return float(rows[metric]["ours"]["value"])


def real_rows() -> Path:
    """Return the folder of real benchmark files; skip the test where there is none."""
    folder = os.environ.get("VLGENRM_REAL_DATA")
    if not folder:
        pytest.skip("VLGENRM_REAL_DATA is unset")
    return Path(folder) / "rows"
