"""Virtual environments of other trainers, each with one trainer and what the code that calls its reward imports.

A script of `tests/trainers` names its packages in its header, as PEP 723 defines it. Its environment is created in a
cache folder at the first use: VLGENRM_TRAINERS_CACHE, by default below the user's cache folder. Packages that the
header does not name, such as torch, come from the environment of the tests.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest

CACHE_VARIABLE = "VLGENRM_TRAINERS_CACHE"
SCRIPTS = Path(__file__).parent / "trainers"
_REPOSITORY = Path(__file__).parents[1]
_INSTALL_S = 600.0
_RUN_S = 300.0
_HEADER = re.compile(r"^# /// script\n(?P<lines>(?:#.*\n)+?)# ///$", re.MULTILINE)

_UNREACHABLE_INDEX = re.compile(r"Retrying \(Retry\(|failed to prepare uv script: error: Request failed")
"""Output of pip, and of a harness of verifiers that installs its own program by uv at every start."""


def run_script(name: str, request: Any, folder: Path, environment: dict[str, str]) -> Any:
    """Run a script of `tests/trainers` in the environment of its trainer, and return what it writes.

    Args:
        name: Name of the script.
        request: JSON value that the script reads.
        folder: Folder for the files that are exchanged.
        environment: Environment variables, added to those of this process.
    """
    script = SCRIPTS / name
    python = _python(script)
    read, written = folder / f"{script.stem}_request.json", folder / f"{script.stem}_result.json"
    read.write_text(json.dumps(request))
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment
    variables["PYTHONPATH"] = str(_REPOSITORY)
    variables["PATH"] = os.pathsep.join([str(python.parent), variables["PATH"]])
    process = subprocess.run(
        [python, script, read, written], cwd=folder, env=variables, timeout=_RUN_S, capture_output=True, text=True
    )
    output = process.stdout + process.stderr
    _skip_without_index(process.returncode, output, name)
    assert process.returncode == 0, f"{name} ended with {process.returncode}:\n{output[-6000:]}"
    return json.loads(written.read_text())


def _python(script: Path) -> Path:
    """Return the interpreter of a script's environment; create the environment unless it is in the cache."""
    header = _read_header(script)
    site_packages = sysconfig.get_path("purelib")
    identity = json.dumps([header, sys.version, site_packages], sort_keys=True)
    folder = _cache() / f"{script.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    python, complete = folder / "bin/python", folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        # Another run of the tests may need the same environment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            _create(folder, python, header, site_packages)
            complete.touch()
    return python


def _create(folder: Path, python: Path, header: dict[str, Any], site_packages: str) -> None:
    """Create an environment with the packages of a script's header, over those of the tests unless it stands alone."""
    # What an interrupted installation has left.
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    settings = header.get("tool", {}).get("vlgenrm", {})
    alone = settings.get("alone", False)
    options = ([] if alone else ["--no-deps"]) + (["--ignore-requires-python"] if settings.get("any_python") else [])
    _install(python, header["dependencies"], options)
    if not alone:
        # After the installation: pip would count the packages of the tests as installed.
        path = next(folder.glob("lib/python3*/site-packages")) / "packages_of_the_tests.pth"
        path.write_text(f"import site; site.addsitedir({site_packages!r})\n")


def _install(python: Path, packages: list[str], options: list[str]) -> None:
    """Install packages. Skips the test if the package index cannot be reached."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--retries", "2"]
    process = subprocess.run([*command, *options, *packages], timeout=_INSTALL_S, capture_output=True, text=True)
    _skip_without_index(process.returncode, process.stderr, packages[0])
    assert process.returncode == 0, process.stderr


def _skip_without_index(status: int, output: str, subject: str) -> None:
    """Skip the test if a command failed because it could not reach the package index."""
    if status and _UNREACHABLE_INDEX.search(output):
        pytest.skip(f"{subject}: the package index (PyPI) cannot be reached; the cache of environments is {_cache()}")


def _read_header(script: Path) -> dict[str, Any]:
    match = _HEADER.search(script.read_text())
    assert match, f"{script}: no header with its packages"
    return tomllib.loads(re.sub(r"^# ?", "", match["lines"], flags=re.MULTILINE))


def _cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlgenrm-trainers"
    return Path(os.environ.get(CACHE_VARIABLE, default))
