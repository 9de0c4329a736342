"""Several services on one Ray cluster: starting, replacing and stopping one does not affect the others."""

from collections.abc import Iterator

import httpx
import pytest
from fake_engine import EnginelessIngress
from ports import free_port
from running_service import CONFIG

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.serving import ingress, launch

LIGHT = CONFIG.model_copy(update={"experts": None, "num_cpus": 0.3})


@pytest.fixture
def one(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    # No request is judged: no engine needs to start.
    monkeypatch.setattr(ingress, "Ingress", EnginelessIngress)
    yield launch.start(LIGHT, host="127.0.0.1", port=free_port(), name="one")
    launch.stop("one")


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=30.0).status_code == 200
    except httpx.TransportError:
        return False


def test_services_on_one_cluster_are_independent(one: str) -> None:
    with pytest.raises(ConfigError, match="'one' already"):
        launch.start(LIGHT, host="127.0.0.1", port=free_port(), name="one")
    port = free_port()
    other = launch.start(LIGHT, host="127.0.0.1", port=port, name="other", replace=True)
    # As after an attempt of the same run that was killed: its service still has the port.
    assert launch.start(LIGHT, host="127.0.0.1", port=port, name="other", replace=True) == other
    assert answers(one)
    assert answers(other)
    launch.stop("other")
    assert answers(one)
    assert not answers(other)
