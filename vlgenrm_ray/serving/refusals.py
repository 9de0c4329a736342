"""Account of refused requests: each one is counted with its route and reason, logged, and says its reason in a header.

Trainers often log the status line of a response alone. `x-vlgenrm-reason` and the service's own log state why, also for
requests that were refused before an item existed: malformed bodies, missing tokens, unknown templates.
"""

import json
import logging
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

from vlgenrm_ray.serving.limits import REASON_HEADER
from vlgenrm_ray.serving.metrics import ServiceMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("vlgenrm.serving")
_REASONS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "refused_model",
    413: "too_large",
    422: "bad_request",
    500: "internal",
    503: "unavailable",
}
"""Status -> reason of refusals that state none themselves. Few values: each is a time series."""
_PROBES = ("/health", "/ready", "/metrics")
"""Paths that load balancers request all the time; their 503 is no refusal."""
_MAX_BODY = 1 << 16
_MAX_DETAIL = 300


class RefusalMiddleware:
    """ASGI middleware that counts, logs and labels responses of status 400 and above.

    It is the outermost one, so that refusals of the other middlewares pass through it.
    """

    def __init__(self, app: "ASGIApp", *, metrics: ServiceMetrics, paths: Collection[str]) -> None:
        """Create the middleware.

        Args:
            app: Application to account for.
            metrics: Counts the refusals.
            paths: Paths of the application's routes. Requests for others are counted together.
        """
        # Imported here: this module is loaded with the settings, also by clients that have no starlette.
        from starlette._utils import get_route_path

        self.app = app
        self.metrics = metrics
        self.paths = paths
        self.counts: Counter[tuple[str, str]] = Counter()
        self._route_path = get_route_path

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or self._route_path(scope) in _PROBES:
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def send_labelled(message: "Message") -> None:
            """Hold a refusal back until its body, which states the detail, is complete."""
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
                return
            if not start:
                await send(message)
                return
            body.extend(message.get("body", b"")[: _MAX_BODY - len(body)])
            if message.get("more_body", False) and len(body) < _MAX_BODY:
                return
            reason = self._record(scope, start, bytes(body))
            headers = [header for header in start["headers"] if header[0].lower() != REASON_HEADER.encode()]
            headers.append((REASON_HEADER.encode(), reason.encode()))
            await send({**start, "headers": headers})
            start = {}
            await send({**message, "body": bytes(body)})

        await self.app(scope, receive, send_labelled)

    def _record(self, scope: "Scope", start: "Message", body: bytes) -> str:
        """Count and log a refusal; return its reason and detail for the header."""
        status = start["status"]
        stated = dict(start["headers"]).get(REASON_HEADER.encode(), b"").decode("latin-1")
        reason = stated or _REASONS.get(status, "refused" if status < 500 else "internal")
        path = self._route_path(scope)
        route = path if path in self.paths else "other"
        detail = _detail(body)
        self.metrics.record_refusal(route, reason)
        self.counts[route, reason] += 1
        count = self.counts[route, reason]
        # The first, the tenth, the hundredth, ...: a trainer that repeats itself must not fill the log.
        if str(count).rstrip("0") == "1":
            _log.warning("refused %s with %d, %s: %s (%d so far)", route, status, reason, detail or "-", count)
        text = f"{reason}: {detail}" if detail else reason
        # Headers are ASCII without control characters.
        return "".join(c if " " <= c <= "~" else "?" for c in text)


def _detail(body: bytes) -> str:
    """Return the explanation in an error's body, of the API's or of OpenAI's form, shortened; "" if there is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    error = content.get("error")
    detail = error.get("message") if isinstance(error, dict) else content.get("detail")
    return " ".join(str(detail).split())[:_MAX_DETAIL] if detail else ""
