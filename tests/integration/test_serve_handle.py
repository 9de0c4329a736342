"""A reward by Ray Serve handle: the real ingress over fake engines. As over HTTP, but without a socket."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import factories
import pytest
from fake_engine import SLOW_S, FakeEngine
from PIL import Image

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import RemoteError, RemoteRefusalError
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.composite import RetryConfig
from vlgenrm_ray.rewards.config import RewardConfig, build_reward
from vlgenrm_ray.rewards.reward import Reward, RewardOutput
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.config import ServingConfig, ServingLimits
from vlgenrm_ray.shapes import pack_path

CONFIG = ServingConfig(
    engine=VllmConfig(model=str(pack_path("vlm"))),
    limits=ServingLimits(max_body_mib=0.1),
    tokens=ApiTokens.from_secrets(api="secret"),
)


@pytest.fixture(autouse=True)
def token(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")


@contextmanager
def served() -> Iterator[None]:
    """The ingress as application `judge`."""
    from ray import serve

    from vlgenrm_ray.serving.ingress import Ingress

    serve.start(proxy_location="Disabled")
    options: dict[str, Any] = {"graceful_shutdown_timeout_s": 1.0, "graceful_shutdown_wait_loop_s": 0.2}
    engine = serve.deployment(name="engines", ray_actor_options={"num_cpus": 0.1}, **options)(FakeEngine)
    ingress = serve.deployment(name="ingress", ray_actor_options={"num_cpus": 0}, **options)(serve.ingress()(Ingress))
    serve.run(ingress.bind(CONFIG, None, engine.bind(), None), name="judge", route_prefix=None)
    yield
    # With its controller, as `vlgenrm serve` ends.
    serve.shutdown()


@pytest.fixture(scope="module")
def application(ray_local: None) -> Iterator[None]:
    with served():
        yield


def rollouts_of(*texts: str, image: images.ImageRef | None = None) -> list[Rollout]:
    question = factories.question(image=image or images.blank_ref(32, 32))
    return [factories.rollout(f"q0/s0/r{i}", text=text, question=question) for i, text in enumerate(texts)]


def judge(run_s: float = 0.0, start_s: float = 0.0, **config: object) -> Reward:
    reward_config = RewardConfig.model_validate({"token_variable": "TOKEN", "retries": 0, "handle": "judge"} | config)
    retry = RetryConfig(startup_timeout_s=start_s, outage_timeout_s=run_s)
    return build_reward([reward_config], retry, ImageLimits())


def scored(by: Reward, rollouts: list[Rollout]) -> list[RewardOutput]:
    async def score() -> list[RewardOutput]:
        try:
            return await by.score(rollouts)
        finally:
            await by.close()

    return asyncio.run(score())


@pytest.mark.parametrize("handle", ["judge", "judge:ingress"])
def test_a_rollout_is_judged_with_its_image_over_a_handle(application: None, handle: str) -> None:
    first, second = scored(judge(handle=handle), rollouts_of("0.25", "0.75"))
    assert [(one.reward, one.status) for one in (first, second)] == [(0.25, "ok"), (0.75, "ok")]
    size = len(images.fetch(images.blank_ref(32, 32).uri, ImageLimits()))
    assert first.critique == f"{size} bytes"


def test_limits_and_statuses_are_those_of_http(application: None, tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.effect_noise((600, 600), 90).convert("RGB").save(path)
    large = images.probe(str(path), ImageLimits())
    assert [one.status for one in scored(judge(), rollouts_of("0.5", image=large))] == ["too_large"]
    (missing,) = scored(judge(), rollouts_of("0.5", image=factories.image(uri=str(tmp_path / "none.png"))))
    assert (missing.reward, missing.status) == (None, "bad_image")
    (late,) = scored(judge(deadline_s=0.5), rollouts_of("slow"))
    assert (late.reward, late.status) == (None, "timeout")


def test_a_caller_without_token_is_refused(application: None) -> None:
    with pytest.raises(RemoteRefusalError, match="401"):
        scored(judge(token_variable=""), rollouts_of("0.5"))


@pytest.mark.parametrize("handle", ["nobody", "judge:nothing"])
def test_a_missing_application_is_awaited_and_then_named(application: None, handle: str) -> None:
    began = time.monotonic()
    with pytest.raises(RemoteError, match=rf"no reward for \d+ s \(limit 2 s\).*{handle}.*run the same"):
        asyncio.run(judge(handle=handle, start_s=2.0).check())  # type: ignore[arg-type]
    assert time.monotonic() - began > 0.5


def test_an_application_that_restarts_is_found_again() -> None:
    """Last of these: it ends the service."""
    answers: list[RewardOutput] = []
    with served():
        # One retry: the ingress that is started instead does not have its image.
        by = judge(run_s=120.0, retries=1)
        waiting = threading.Thread(target=lambda: answers.extend(scored(by, rollouts_of("slow"))))
        waiting.start()
        time.sleep(2.0)
    with pytest.raises(RemoteError, match="judge"):
        scored(judge(), rollouts_of("0.5"))
    assert not answers
    with served():
        assert [one.reward for one in scored(judge(run_s=60.0), rollouts_of("0.5"))] == [0.5]
        waiting.join(timeout=SLOW_S + 60.0)
    assert [one.reward for one in answers] == [0.5]
