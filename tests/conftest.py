"""Fixtures shared by all tests. Ray and torch are imported only by the fixtures that need them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from vlgenrm_ray.engines.environment import thread_variables

# Ray workers and subprocesses import the helpers of this folder by the same names as the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

# Processes of pytest-xdist share the cores. With the default, one thread per core that spins while it waits, they take
# the cores from each other: a training of 40 s took 110 s. To be set before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name, value in thread_variables(1).items():
        os.environ.setdefault(name, value)

# A deadline would fail tests on a busy machine.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Start one local Ray for all integration tests of a session."""
    from vlgenrm_ray.cluster import connection

    connection.connect("local")
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Return the path of a run folder that does not exist yet."""
    return tmp_path / "run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield headless Chromium, for tests of pages."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as here:
        # Its own protection of processes does not run as root, as tests in containers do. Only our pages are opened.
        browser = here.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
