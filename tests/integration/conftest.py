"""The running service that several test files share, and the grouping of tests into processes."""

from collections.abc import Iterator

import httpx
import pytest

_SERVICE_FILES = ("test_trl.py", "test_playground.py", "test_serving.py")
"""Files that use the shared service, in this order: the last tests kill it."""
_LONGEST_FIRST = (
    "test_policy_training.py",
    "test_training.py",
    *_SERVICE_FILES,
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
        name = item.path.name
        item.add_marker(pytest.mark.xdist_group("service" if name in _SERVICE_FILES else name))


@pytest.fixture(scope="session")
def http(ray_local: None) -> Iterator[httpx.Client]:
    """Yield a client of the shared service with the user's token."""
    from running_service import service

    with service() as client:
        yield client
