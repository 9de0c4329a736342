"""AReaL's own `AsyncRewardWrapper`: its file is taken from the published wheel, and nothing is installed."""

import asyncio
import importlib.util
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fake_service import FakeService, listening
from reward_pool import gather_rewards

from vlgenrm_ray.adapters import areal, clients
from vlgenrm_ray.errors import RemoteError

WHEEL = "areal==1.0.4"
NUM_REWARDS = 80


class FakeSlowService(FakeService):
    """Takes a while for each request."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        time.sleep(0.15)
        return super().__call__(request)


@pytest.fixture(scope="module")
def wrapper_class(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("areal")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"{WHEEL} cannot be downloaded from PyPI: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
        source = Path(wheel.extract("areal/api/reward_api.py", folder))
    # The only thing it imports of AReaL is a logger; AReaL's own needs colours, torch and more.
    parents = {name: ModuleType(name) for name in ("areal", "areal.utils")}
    parents["areal.utils"].logging = sys.modules["logging"]
    spec = importlib.util.spec_from_file_location("areal_reward_api", source)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, parent in parents.items():
            patch.setitem(sys.modules, name, parent)
        spec.loader.exec_module(module)
    return module.AsyncRewardWrapper


@pytest.mark.parametrize("max_workers", [1, 4])
def test_no_reward_becomes_zero_in_silence(
    wrapper_class: Any, max_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(FakeSlowService()) as url:
        monkeypatch.setenv(clients.URL_VARIABLE, url)
        monkeypatch.setenv(areal.DEADLINE_VARIABLE, "1.2")
        wrapper = wrapper_class(areal.vlgenrm_reward, timeout_seconds=1.5, max_workers=max_workers)
        results = asyncio.run(gather_rewards(wrapper, NUM_REWARDS))
        monkeypatch.delenv(areal.DEADLINE_VARIABLE)
        awaited = asyncio.run(gather_rewards(areal.vlgenrm_reward_async, NUM_REWARDS))
        wrapper_class._atexit_shutdown_all()
    assert {type(result) for result in results} <= {float, RemoteError}
    assert 0 not in results
    assert results.count(1.0) >= 5 * max_workers
    assert awaited == [1.0] * NUM_REWARDS, "a workflow that awaits the judge has no queue"
