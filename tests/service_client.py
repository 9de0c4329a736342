"""Requests to the whole application of a service, made in memory over the fake judge of `fake_service`."""

import asyncio
import json
from typing import Any

import fake_service
import httpx
from serving_examples import service

from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.gateways.scoring import Score
from vlgenrm_ray.serving.refusals import RefusalMiddleware

PROMPT = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"


async def swap_model(folder: str) -> CanaryResult:
    return CanaryResult(problem="", margin=0.5, change=0.25)


class ServiceClient:
    """Requests to one service, whose judge gives a response its own text as the reward (see `fake_service`)."""

    def __init__(
        self,
        *,
        tokens: ApiTokens | None = None,
        max_mib: float = 1.0,
        judge: Score = fake_service.score,
        **settings: Any,
    ) -> None:
        served = service(max_body_mib=max_mib)
        served.config = served.config.model_copy(update={"tokens": tokens or ApiTokens(), **settings})
        served.score = judge  # type: ignore[method-assign, assignment]
        self.metrics = served.metrics
        self._api = build_api(served, ready=lambda: False, swap_model=swap_model)

    @property
    def gateways(self) -> list[tuple[str, str]]:
        """Path of every route, with the name of its gateway."""
        (middleware,) = (m for m in self._api.user_middleware if m.cls is RefusalMiddleware)
        return [(route.path, gateway) for route, gateway in middleware.kwargs["routes"]]

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._api), base_url="http://judge") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def post(self, path: str, body: Any) -> httpx.Response:
        # Escaped, as JSON can spell half of a surrogate pair and UTF-8 cannot.
        return self.request("POST", path, content=json.dumps(body), headers={"content-type": "application/json"})

    def openrlhf(self, *responses: str, query: str = "") -> httpx.Response:
        texts = [f"{PROMPT}{response}" for response in responses]
        return self.post(f"/get_reward{query}", {"query": texts, "prompts": [PROMPT] * len(texts)})

    def counter(self, name: str, **labels: str) -> float:
        """The value of a counter, summed over the labels that are not given."""
        families = {family.name: family for family in self.metrics.registry.collect()}
        samples = (sample for sample in families[f"vlgenrm_{name}"].samples if sample.name.endswith("_total"))
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
