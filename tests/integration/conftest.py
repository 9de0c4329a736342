"""The running service, started once for all tests that talk to it."""

from collections.abc import Iterator

import httpx
import pytest

_SERVED = ("test_serving_replicas.py", "test_trl.py", "test_playground.py", "test_serving.py")
"""In this order, after all other tests: engines of those find the machine free, and the kill test is the last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the running service at the end."""
    items.sort(key=lambda item: _SERVED.index(item.path.name) if item.path.name in _SERVED else -1)


@pytest.fixture(scope="session")
def http(ray_local: None) -> Iterator[httpx.Client]:
    """A client of the service, with the user's token."""
    from served import service

    with service() as client:
        yield client
