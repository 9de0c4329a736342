"""The grouping of tests into processes, and the check that no file keeps CPUs from the next."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_cpus import all_cpus_are_free

_SERVICE = Path(__file__).with_name("service")
"""Tests that share one running service."""
_LONGEST_FIRST = (
    "test_policy_training.py",
    "test_training.py",
    # Of the service's tests the last ones kill it.
    "test_trl.py",
    "test_playground.py",
    "test_serving.py",
    "test_learner.py",
    "test_policy_learner.py",
    "test_orchestrator.py",
    "test_discriminative_judge.py",
    "test_golden_values.py",
    "test_pack.py",
    "test_vllm_async.py",
    "test_job_submit.py",
    "test_serve_handle.py",
)
"""The longest files, in the order in which they start, so that no process is left alone with one at the end."""


# Before xdist's own hook, which turns these marks into groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a file in one process, because they share fixtures, and all users of the service in one."""
    places = {name: place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        group = _SERVICE if item.path.parent == _SERVICE else item.path
        item.add_marker(pytest.mark.xdist_group(group.name))


@pytest.fixture(scope="module", autouse=True)
def free_cpus(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if a file's actors outlive it: stages of the next file would wait for their CPUs for ever."""
    yield
    # The service outlives its first files; its last one, and its end, are seen by the next file.
    if request.path.parent != _SERVICE and "ray" in sys.modules and sys.modules["ray"].is_initialized():
        assert all_cpus_are_free(), f"{request.path.name} left actors that hold CPUs"
