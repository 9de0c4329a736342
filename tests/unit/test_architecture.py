"""Structure of the code base. The order of imports is checked by import-linter (see pyproject.toml)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlgenrm_ray.cluster import ray_compat

ROOT = Path(__file__).parents[2]
FILES = [
    path for folder in ("vlgenrm_ray", "jobs", "cluster", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "ultralytics", "open_clip", "peft")


def test_no_module_is_named_utils_or_helpers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [str(path.relative_to(ROOT)) for path in FILES if drawers & {path.stem, path.parent.name}]


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        if path.is_relative_to(ROOT / "vlgenrm_ray"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name.strip("_"), []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_test_files_do_not_import_each_other() -> None:
    """Shared code is a helper in tests/, imported by its bare name; Ray's workers know it by the same name."""
    wrong = re.compile(r"^\s*(?:from|import) (?:tests\b|.*\btest_\w+)", re.MULTILINE)
    tests = [path for path in FILES if path.is_relative_to(ROOT / "tests")]
    assert not [str(path.relative_to(ROOT)) for path in tests if wrong.search(path.read_text())]


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


PRIVATE_RAY = re.compile(
    r"ray\._private|ray\.serve\.(?:context|_private)|ray\.\w+(?:\.\w+)*\._internal|ray\._raylet"
    r"|\._actor_id\b|\._register_sigint_handler\b|\bRAY_[a-z]\w*|RAY_JOB_CONFIG_JSON_ENV_VAR"
)


def test_private_ray_api_is_used_in_one_module() -> None:
    package = [path for path in FILES if path.is_relative_to(ROOT / "vlgenrm_ray")]
    users = [str(path.relative_to(ROOT)) for path in package if PRIVATE_RAY.search(path.read_text())]
    assert users == ["vlgenrm_ray/cluster/ray_compat.py"]


def test_the_checked_version_of_ray_is_the_pinned_one() -> None:
    for name in ("cpu", "gpu"):
        pins = (ROOT / "cluster" / f"requirements-{name}.txt").read_text().splitlines()
        assert f"ray=={ray_compat.CHECKED_VERSION}" in pins
