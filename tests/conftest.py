"""Fixtures that several tests share. Nothing here imports Ray or torch before a test asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray for all integration tests of a session."""
    from vlgenrm_ray import cluster

    cluster.connect("local")
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """An empty run folder."""
    return tmp_path / "run"
