"""Fixtures that several tests share. Nothing here imports Ray or torch before a test asks for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Ray workers and subprocesses import the doubles by the same names as the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

# A test that fails because the machine is busy tells nothing.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray for all integration tests of a session."""
    from vlgenrm_ray.cluster import connection

    with pytest.MonkeyPatch.context() as environment:
        # Ray's workers import the fakes of this folder by the same names as pytest does.
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        connection.connect("local")
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """An empty run folder."""
    return tmp_path / "run"
