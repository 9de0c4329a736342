"""The running service, started once for all tests that talk to it; and which tests share a process."""

from collections.abc import Iterator

import httpx
import pytest

_SERVED = ("test_trl.py", "test_playground.py", "test_serving.py")
"""Talk to the one service, in this order: the last tests kill it."""


# Before xdist's own, which makes groups of the marks that it finds.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file's tests in one process, for what they start; those of the running service all in one."""
    items.sort(key=lambda item: _SERVED.index(item.path.name) if item.path.name in _SERVED else -1)
    for item in items:
        name = item.path.name
        item.add_marker(pytest.mark.xdist_group("served" if name in _SERVED else name))


@pytest.fixture(scope="session")
def http(ray_local: None) -> Iterator[httpx.Client]:
    """A client of the service, with the user's token."""
    from running_service import service

    with service() as client:
        yield client
