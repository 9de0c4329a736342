"""The pinned packages of both environments fit together on every supported Python, and none is forgotten."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = "uv==0.13.9"
# PyTorch's CPU builds are on an index of their own, where a resolver also needs their dependencies. PyPI has the same
# version with CUDA: it stands in, and brings packages that the CPU environment has not.
OVERRIDES = {"cpu": "torch==2.13.0\ntorchvision==0.28.0\n", "gpu": ""}
LEFT_OUT = {
    "cpu": "torchaudio torchcodec opencv-python triton anthropic mcp mcp-types docstring-parser sse-starlette",
    "gpu": "torchaudio torchcodec opencv-python",
}
"""Packages that the heads of the files explain, with the dependencies of these."""
OF_CUDA = re.compile(r"nvidia-|cuda-")


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the command uv; it is installed for this test, as nothing else needs it."""
    if here := shutil.which("uv"):
        return here
    target = tmp_path_factory.mktemp("uv")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), UV]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"uv cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return str(target / "bin" / "uv")


def names(lines: list[str]) -> set[str]:
    """Return the normalised names of the packages in requirement lines."""
    packages = (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", package[0]).lower() for package in packages if package}


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_pinned_packages_have_a_solution_and_are_its_closure(
    uv: str, tmp_path: Path, kind: str, python: str
) -> None:
    pins = (ROOT / "cluster" / f"requirements-{kind}.txt").read_text().replace("+cpu", "")
    (tmp_path / "pins.txt").write_text(pins)
    (tmp_path / "overrides.txt").write_text(OVERRIDES[kind])
    command = [uv, "pip", "compile", "pins.txt", "--override", "overrides.txt", "--python-version", python]
    command += ["--python-platform", "x86_64-manylinux_2_28", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode and re.search(r"connect|dns|timed out|network", done.stderr, re.IGNORECASE):
        pytest.skip(f"PyPI cannot be reached: {done.stderr.strip().splitlines()[0]}")
    assert not done.returncode, done.stderr
    missing = names(done.stdout.splitlines()) - names(pins.splitlines()) - set(LEFT_OUT[kind].split())
    if kind == "cpu":
        missing = {name for name in missing if not OF_CUDA.match(name)}
    assert not missing, "packages that others need and that are not pinned"


def test_what_is_left_out_is_explained_at_the_head_of_the_file() -> None:
    for kind, left_out in LEFT_OUT.items():
        text = (ROOT / "cluster" / f"requirements-{kind}.txt").read_text()
        comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
        explained = [name for name in left_out.split() if name in comments]
        # The others are dependencies of the explained ones.
        assert set(left_out.split()) - set(explained) <= {"docstring-parser", "sse-starlette", "mcp-types"}
