"""Golden values: numbers computed on a CPU, in `tests/golden/`, that a refactoring must not change.

Regenerate them only for an intended change, and explain it in the commit:

    VLGENRM_REGENERATE_GOLDEN=1 bash tests/run.sh tests/integration -k golden
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vlgenrm_ray.engines.environment import has_gpu

GOLDEN = Path(__file__).parent / "golden"
REGENERATE = "VLGENRM_REGENERATE_GOLDEN"
cpu_only = pytest.mark.skipif(has_gpu(), reason="the golden values are those of a CPU")


def compare(name: str, metrics: Mapping[str, Any], tolerance: float) -> None:
    """Compare numbers with the golden file `name`, or rewrite that file if `VLGENRM_REGENERATE_GOLDEN` is 1."""
    path = GOLDEN / f"{name}.json"
    if os.environ.get(REGENERATE) == "1":
        path.write_text(json.dumps(metrics, indent=1) + "\n")
        pytest.skip(f"{path.name} was regenerated")
    golden = json.loads(path.read_text())
    assert metrics == {part: pytest.approx(numbers, rel=0.0, abs=tolerance) for part, numbers in golden.items()}


def by_metric(lines: Sequence[Mapping[str, Any]], *names: str) -> dict[str, list[float]]:
    """Collect each metric over the steps."""
    return {name: [line[name] for line in lines] for name in names}
