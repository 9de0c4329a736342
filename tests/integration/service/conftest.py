"""The running service of these tests."""

from collections.abc import Iterator

import httpx
import pytest


@pytest.fixture(scope="package")
def http(ray_local: None) -> Iterator[httpx.Client]:
    """Yield a client of the service with the user's token."""
    from running_service import service

    with service() as client:
        yield client
