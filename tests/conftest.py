"""Fixtures shared by all tests. Ray and torch are imported only by the fixtures that need them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Ray workers and subprocesses import the helpers of this folder by the same names as the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

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
