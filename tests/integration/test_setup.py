"""The installer's failures. That it succeeds, every run of the tests shows."""

import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository, at a path with a space, whose pinned torch no registry has."""
    root = tmp_path / "my clone"
    shutil.copytree(ROOT / "cluster", root / "cluster")
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "cluster" / "requirements-cpu.txt").write_text("torch==0.0.0+none\nsetuptools==77.0.3\n")
    return root


def setup(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("VLGENRM_VENV", "PYTHON")}
    # No index: nothing is asked of the network, and nothing found.
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""} | variables
    command = ["bash", str(root / "cluster" / "setup.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_failed_setup_names_the_step_and_leaves_no_partial_environment(clone: Path, tmp_path: Path) -> None:
    # As from an environment that is active: it is not what the new one is made with.
    active = tmp_path / "active"
    venv.create(active, symlinks=True)
    done = setup(clone, "cpu", PATH=f"{active / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1
    assert "making" in done.stdout
    assert str(active) not in done.stdout
    assert "this failed: install_torch" in done.stderr
    assert "torch==0.0.0+none" in done.stderr
    assert "remedy: the registry lacks this version" in done.stderr
    assert not (clone / ".venv").exists()
    assert (clone / ".setup" / "setup.log").exists()


def test_an_environment_of_the_users_own_is_not_touched(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "precious").touch()
    done = setup(clone, "cpu")
    assert done.returncode == 1
    assert "not made by this script" in done.stderr
    assert (clone / ".venv" / "precious").exists()


def test_an_unknown_kind_is_refused(clone: Path) -> None:
    done = setup(clone, "tpu")
    assert done.returncode == 1
    assert "setup.sh [cpu|gpu]" in done.stderr


def test_a_missing_python_is_an_error_that_names_the_remedy(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir", "flock", "grep", "cat"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = setup(clone, "cpu", PATH=str(tools))
    assert done.returncode == 1
    assert "3.11 or 3.12" in done.stderr
    assert "apt-get install" in done.stderr
