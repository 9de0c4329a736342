"""The playground: `GET /`, a single-file page to try the judge, and `GET /v1/example`, the example it loads."""

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, Response
from pydantic import BaseModel

from vlgenrm_ray.data.images import data_url
from vlgenrm_ray.serving.canary import Canary
from vlgenrm_ray.serving.config import ServingConfig

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class PlaygroundExample(BaseModel):
    """The canary as an example."""

    image: str
    """Data URL."""
    question: str
    better: str
    worse: str


def router(config: ServingConfig, canary: Canary, has_experts: bool) -> APIRouter:
    """Serve the page, which is public, and the example, which needs the user's token."""
    routes = APIRouter()
    page = (files("vlgenrm_ray.serving.playground") / "playground.html").read_text()
    headers = _security_headers(page)
    page = page.replace('data-experts=""', f'data-experts="{"yes" if has_experts else "no"}"')
    page = page.replace('data-critiques=""', f'data-critiques="{config.judge.num_critiques}"')
    page = page.replace('data-mode=""', f'data-mode="{config.judge.mode}"')
    canary_example = PlaygroundExample(
        image=data_url(canary.data),
        question=canary.question,
        better=canary.better[0],
        worse=canary.worse[0],
    )

    @routes.get("/", include_in_schema=False)
    async def playground() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    @routes.get("/v1/example")
    async def example() -> PlaygroundExample:
        """Return an image with a question, a better and a worse response."""
        return canary_example

    return routes


def _security_headers(page: str) -> dict[str, str]:
    """Return headers that let only the page's own script and style run, and only connections to this service."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    policy = [
        "default-src 'none'",
        *(f"{kind}-src {' '.join(values)}" for kind, values in hashes.items()),
        "img-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
