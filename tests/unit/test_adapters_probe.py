"""A wrong address or token is reported when an adapter is created, and a token is never printed."""

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_service import FakeService, listening

from vlgenrm_ray.adapters import clients, easyr1, ms_swift, nemo_rl, skyrl, trl, verl
from vlgenrm_ray.errors import ConfigError, RemoteError, RemoteRefusalError
from vlgenrm_ray.judge import remote
from vlgenrm_ray.judge.remote import AsyncRemoteJudge, RemoteJudge

CREATE: dict[str, Callable[[], Any]] = {
    "ms-swift": ms_swift.JudgeReward,
    "NeMo-RL": nemo_rl.Environment,
    "SkyRL": skyrl.JudgeEnv,
    "verl": lambda: verl.JudgeRewardManager(None, None),
    "TRL": lambda: trl.vlgenrm_reward(["q"], ["1"]),
    "EasyR1": lambda: easyr1.compute_score([{"response": "1", "ground_truth": '{"question": "q"}'}]),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PROBE_S", 0.0)
    monkeypatch.setattr(clients, "_checked", set())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("create", CREATE.values(), ids=CREATE)
def test_a_wrong_address_is_reported_at_once(create: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(clients.URL_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="VLGENRM_URL"):
        create()
    monkeypatch.setenv(clients.URL_VARIABLE, f"http://127.0.0.1:{free_port()}")
    begin = time.monotonic()
    with pytest.raises(RemoteError, match="is the service up, and the address right"):
        create()
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((401, '{"detail": "needs a token"}'), RemoteRefusalError, "VLGENRM_TOKEN"),
        ((404, "Not Found"), RemoteError, "address and port"),
        ((200, "<html>dashboard</html>"), RemoteError, "address and port"),
        ((200, "[]"), RemoteError, "address and port"),
    ],
)
def test_another_server_or_a_refused_token_is_named(
    answer: tuple[int, str], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    service.model_answer = answer
    with listening(service) as url:
        monkeypatch.setenv(clients.URL_VARIABLE, url)
        with pytest.raises(error, match=message):
            ms_swift.JudgeReward()
        monkeypatch.setenv(clients.PROBE_VARIABLE, "0")
        ms_swift.JudgeReward()


@pytest.mark.parametrize("starting", [(503, "starting"), (405, "only POST passes this proxy")])
def test_a_service_is_asked_once_and_may_still_be_starting(
    starting: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    service.model_answer = starting
    with listening(service) as url:
        monkeypatch.setenv(clients.URL_VARIABLE, url)
        skyrl.JudgeEnv()
        service.model_answer = (404, "")
        skyrl.JudgeEnv()
        assert asyncio.run(trl.vlgenrm_reward_async(["q"], ["1"])) == [1.0]


def test_a_connection_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(remote, "_CHECK_PAUSE_S", 0.05)
    port, ready = free_port(), threading.Event()

    def serve() -> None:
        time.sleep(0.3)
        with listening(FakeService(), port):
            ready.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with caplog.at_level(logging.WARNING), RemoteJudge(f"http://127.0.0.1:{port}") as judge:
            assert judge.check(patience_s=10) == "scripted"
    finally:
        ready.set()
        thread.join()
    assert caplog.text.count("trying for 10 s") == 1


@pytest.mark.parametrize("user", ["any:s3cret", "s3cret"])
def test_a_token_in_the_url_is_sent_and_never_printed(user: str, caplog: pytest.LogCaptureFixture) -> None:
    remote._warn_of_token_in_url.cache_clear()
    service = FakeService()
    with caplog.at_level(logging.DEBUG), listening(service) as url:
        address = url.replace("http://", f"http://{user}@")
        with RemoteJudge(address) as judge:
            judge.score([remote.ScoreInput(question="q", response="1")])
        asyncio.run(AsyncRemoteJudge(address).score([remote.ScoreInput(question="q", response="1")]))
    assert [request.headers["authorization"] for request in service.requests] == ["Bearer s3cret"] * 2
    with RemoteJudge(f"http://{user}@127.0.0.1:{free_port()}") as judge, pytest.raises(RemoteError) as error:
        judge.check()
    with pytest.raises(ConfigError) as scheme:
        RemoteJudge(f"{user}@host:8000")
    assert "s3cret" not in caplog.text + str(error.value) + str(scheme.value)
    assert caplog.text.count("VLGENRM_TOKEN") == 1


def test_openrlhf_scores_what_its_executor_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a fake of OpenRLHF 0.11.2's `SingleTurnAgentExecutor`, with its arguments and record."""

    class SingleTurnAgentExecutor:
        def __init__(self, remote_rm_url: Any = None) -> None:
            self.reward_endpoints = remote_rm_url or []

        async def execute(self, prompt: str, label: Any, *_: Any, images: Any = None) -> dict[str, Any]:
            record = {"prompt": prompt, "label": label, "images": images, "observation_tokens": [1, 2, 3, 4]}
            return record | {"action_ranges": [(2, 4)], "reward": None, "scores": None, "extra_logs": {}}

    modules = {name: ModuleType(name) for name in ("openrlhf", "openrlhf.utils", "openrlhf.utils.agent")}
    modules["openrlhf"].__spec__ = SimpleNamespace()
    modules["openrlhf.utils.agent"].SingleTurnAgentExecutor = SingleTurnAgentExecutor
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "vlgenrm_ray.adapters.openrlhf", raising=False)
    from vlgenrm_ray.adapters import openrlhf

    monkeypatch.delitem(sys.modules, "vlgenrm_ray.adapters.openrlhf")
    decoded: list[Any] = []

    def decode(ids: Any, skip_special_tokens: bool) -> str:
        decoded.append(ids)
        return texts.pop() + "<|im_end|>"

    prompt = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    image = "data:image/png;base64,iVBORw0KGgo="
    service, texts = FakeService(), ["fails:timeout", "0.5"]
    with listening(service) as url:
        monkeypatch.setenv(clients.URL_VARIABLE, url)
        executor = openrlhf.AgentExecutor()
        arguments = (prompt, "a star", None, 64, SimpleNamespace(decode=decode), None)
        record = asyncio.run(executor.execute(*arguments, images=[image]))
        with pytest.raises(RemoteError, match="timeout"):
            asyncio.run(executor.execute(*arguments, images=image))
    assert (record["reward"], record["scores"]) == (0.5, 0.5)
    assert record["extra_logs"] == {"verdict_mass": 0.9, "scored": 1.0}
    assert decoded == [[3, 4]] * 2
    first, second = service.items
    assert (first.question, first.reference, first.response, len(first.images)) == ("What?", "a star", "0.5", 1)
    assert second.images == first.images
