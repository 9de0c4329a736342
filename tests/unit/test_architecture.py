"""What the code base promises of itself. The order of imports is held by import-linter (see pyproject.toml)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path for folder in ("vlgenrm_ray", "jobs", "cluster", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "ultralytics", "open_clip", "peft")


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [str(path.relative_to(ROOT)) for path in FILES if drawers & {path.stem, path.parent.name}]


def test_jobs_are_short() -> None:
    long = [path.name for path in (ROOT / "jobs").glob("*.py") if len(path.read_text().splitlines()) > 70]
    assert not long, "a job parses, connects, calls one function and exits"


@pytest.mark.parametrize("module", ["vlgenrm_ray.cli", "vlgenrm_ray.records", "vlgenrm_ray.cluster.doctor"])
def test_imports_are_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\nsys.argv = ['vlgenrm', '--help']\nfrom vlgenrm_ray.cli import main\n"
        f"try: main()\nfinally: print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "doctor" in done.stdout
