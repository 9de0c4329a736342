"""The service on a real engine, shared by the tests of `tests/integration` and `tests/whole`."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from ports import free_port

from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.experts.expert import MatchingConfig
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.serving import launch
from vlgenrm_ray.serving.auth import API_TOKEN, OPERATOR_TOKEN, ApiTokens
from vlgenrm_ray.serving.canary import Canary
from vlgenrm_ray.serving.config import CanaryConfig, ServedExpertsConfig, ServingConfig, ServingLimits
from vlgenrm_ray.shapes import pack_path

CONFIG = ServingConfig(
    engine=VllmConfig(model=str(pack_path("vlm")), max_model_len=512, kv_cache_gib=0.25, threads=1, max_images=2),
    judge=JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=4, max_tokens=160),
    limits=ServingLimits(max_body_mib=1.0),
    # The base model judges poorly: it prefers the canary's better response, but hardly by the image.
    canary=CanaryConfig(min_change=0.0),
    experts=ServedExpertsConfig(
        vocabulary="shapes",
        detector=DetectorConfig(model=str(pack_path("detector")), image_size=96),
        matcher=MatcherConfig(model=str(pack_path("matcher")), template="{}"),
        matching=MatchingConfig(grids=(3,)),
    ),
    replicas=1,
    num_cpus=0.5,
)
CANARY = Canary(CanaryConfig(), CONFIG.images)
USER_SECRET, OPERATOR_SECRET = "user-secret", "operator-secret"
USER, OPERATOR = ({"Authorization": f"Bearer {token}"} for token in (USER_SECRET, OPERATOR_SECRET))
START_S = 300.0


@contextmanager
def service(config: ServingConfig = CONFIG) -> Iterator[httpx.Client]:
    """Start the service on a free port of the connected Ray, and yield a client."""
    os.environ |= {API_TOKEN: USER_SECRET, OPERATOR_TOKEN: OPERATOR_SECRET}
    config = config.model_copy(update={"tokens": ApiTokens.from_environment()})
    url = launch.start(config, host="127.0.0.1", port=free_port())
    with httpx.Client(base_url=url, headers=USER, timeout=START_S) as client:
        until_ready(client)
        yield client
    launch.stop()


def until_ready(http: httpx.Client, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until the service is ready. Fails if its process ends."""
    end = time.monotonic() + START_S
    while not _is_ready(http):
        assert process is None or process.poll() is None, "the service's process ended"
        assert time.monotonic() < end, "not ready in time"
        time.sleep(0.2)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx.TransportError:
        # The port is closed while the ingress starts.
        return False
