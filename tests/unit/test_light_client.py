"""The client and the adapters run in the trainer's environment: light, and on every Python that trainers use."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ADAPTERS = "areal, easyr1, ms_swift, nemo_rl, openrlhf, roll, skyrl, slime, trl, verifiers, verl"
OLDEST = (3, 10)
"""Oldest Python of `requires-python`."""


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    """Modules that importing all adapters loads, with their files."""
    code = (
        f"import json, sys\nfrom vlgenrm_ray.adapters import {ADAPTERS}\n"
        "print(json.dumps({n: getattr(m, '__file__', None) or '' for n, m in sys.modules.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_adapters_import_neither_engines_nor_trainers(modules: dict[str, str]) -> None:
    heavy = {"torch", "ray", "vllm", "transformers", "deepspeed", "pyarrow", "fastapi", "trl", "verl", "areal"}
    assert heavy & {name.partition(".")[0] for name in modules} == set()


def test_they_use_only_what_the_oldest_python_has(modules: dict[str, str]) -> None:
    files = [file for name, file in modules.items() if name.partition(".")[0] == "vlgenrm_ray"]
    assert len(files) > 25
    for file in files:
        ast.parse(Path(file).read_text(), file, feature_version=OLDEST)
    vermin = shutil.which("vermin", path=str(Path(sys.executable).parent))
    if vermin is None:
        pytest.skip("vermin is not installed")
    target = f"--target={OLDEST[0]}.{OLDEST[1]}-"
    done = subprocess.run(
        [vermin, "--no-tips", "--no-parse-comments", "--violations", target, *files], capture_output=True, text=True
    )
    allowed = [line for line in done.stdout.splitlines() if "requires" in line and "enum.StrEnum" not in line]
    assert allowed == [], done.stdout


def test_the_declared_range_of_pythons_is_the_tested_one() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'requires-python = ">={OLDEST[0]}.{OLDEST[1]}"' in text
