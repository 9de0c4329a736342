"""Account of refused requests: each one is counted with its route and reason, logged, and says its reason in a header.

Trainers often log the status line of a response alone. `x-vlgenrm-reason` and the service's own log state why, also for
requests that were refused before an item existed: malformed bodies, missing tokens, unknown templates.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.serving.auth import PUBLIC_PATHS
from vlgenrm_ray.serving.limits import OPENAI_PATHS, REASON_HEADER, send_error
from vlgenrm_ray.serving.metrics import ServiceMetrics

if TYPE_CHECKING:
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("vlgenrm.serving")
API = "api"
"""Gateway of the service's own routes, for counters."""
OTHER = "other"
"""Gateway and route of requests for unknown paths, which are counted together: each label is a time series."""
_REASONS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "refused_model",
    413: "too_large",
    422: "bad_request",
    500: "internal",
    503: "unavailable",
}
"""Status -> reason of refusals that state none themselves. Few values: each is a time series."""
_DESCRIPTIONS = {
    "401": "No token, or not the one that this operation needs.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, or has too many values.",
    "422": "The request is malformed; at gateways of trainers also: a reward is missing for good.",
    "503": "Not now: the queue is full, or a deadline or an engine was lost; ask again after `Retry-After` seconds.",
}
_REFUSAL_SCHEMAS: dict[str, Any] = {
    "Refusal": {
        "type": "object",
        "description": "Why a request was refused.",
        "required": ["detail"],
        "properties": {"detail": {"type": "string", "description": "Field, problem and remedy."}},
    },
    "OpenAIRefusal": {
        "type": "object",
        "description": "Why a request was refused, in OpenAI's form.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
}
_PROBES = ("/health", "/ready", "/metrics")
"""Paths that load balancers request all the time; their 503 is no refusal."""
_MAX_BODY = 1 << 16
"""Bytes of an error's body that are held back to read its detail."""
_MAX_DETAIL = 300


class RecurrenceLog:
    """Warnings about what recurs: of each kind the first, the tenth, the hundredth, ... is logged, with the count.

    A trainer that repeats itself must not fill the log.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()

    def warn(self, kind: tuple[str, ...], message: str) -> None:
        """Count an occurrence, and log its message if its number is a power of ten."""
        self._counts[kind] += 1
        count = self._counts[kind]
        if str(count).rstrip("0") == "1":
            _log.warning("%s (%d so far)", printable(message), count)


class RefusalMiddleware:
    """ASGI middleware that counts, logs and labels responses of status 400 and above.

    It is the outermost one, so that refusals of the other middlewares pass through it. An exception of the application
    is logged and becomes a 500 here, so that it is counted too.
    """

    def __init__(self, app: "ASGIApp", *, metrics: ServiceMetrics, routes: Sequence[tuple["Route", str]]) -> None:
        """Create the middleware.

        Args:
            app: Application to account for.
            metrics: Counts the refusals.
            routes: Routes of the application, each with the name of its gateway.
        """
        # Imported here: this module is loaded with the settings, also by clients that have no starlette.
        from starlette._utils import get_route_path

        self.app = app
        self.metrics = metrics
        self.routes = routes
        self.recurrence_log = RecurrenceLog()
        self._route_path = get_route_path

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or self._route_path(scope) in _PROBES:
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()
        started = False

        async def send_labelled(message: "Message") -> None:
            """Hold a refusal back until its body, which states the detail, is complete."""
            nonlocal start, started
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
                return
            if not start:
                started = True
                await send(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body", False) and len(body) < _MAX_BODY:
                return
            reason = self._record(scope, start, bytes(body))
            headers = [header for header in start["headers"] if header[0].lower() != REASON_HEADER.encode()]
            headers.append((REASON_HEADER.encode(), reason.encode()))
            held, start, started = start, {}, True
            await send({**held, "headers": headers})
            await send({**message, "body": bytes(body)})

        try:
            await self.app(scope, receive, send_labelled)
        except Exception:
            if started:
                raise
            _log.exception("a request failed")
            start = {}
            body.clear()
            await send_error(scope, send_labelled, 500, "the service failed on this request; its log states why")

    def _record(self, scope: "Scope", start: "Message", body: bytes) -> str:
        """Count and log a refusal; return its reason and detail for the header."""
        status = start["status"]
        stated = dict(start["headers"]).get(REASON_HEADER.encode(), b"").decode("latin-1")
        reason = stated or _REASONS.get(status, "refused" if status < 500 else "internal")
        route, gateway = self._match(scope)
        detail = _detail(body)
        self.metrics.record_refusal(gateway, route, reason)
        self.recurrence_log.warn((route, reason), f"refused {route} with {status}, {reason}: {detail or '-'}")
        text = f"{reason}: {detail}" if detail else reason
        # Headers are ASCII.
        return "".join(c if c.isascii() else "?" for c in printable(text))

    def _match(self, scope: "Scope") -> tuple[str, str]:
        """Return the path of the route that a request is for, and its gateway. Paths with parameters count as one."""
        from starlette.routing import Match

        for route, gateway in self.routes:
            if route.matches(scope)[0] is not Match.NONE:
                return route.path, gateway
        return OTHER, OTHER


def describe_refusals(description: dict[str, Any]) -> None:
    """Add the refusals of the middlewares and of the validation to every operation of an OpenAPI description."""
    description.setdefault("components", {}).setdefault("schemas", {}).update(_REFUSAL_SCHEMAS)
    for path, operations in description["paths"].items():
        schema = "OpenAIRefusal" if path.startswith(OPENAI_PATHS) else "Refusal"
        for method, operation in operations.items():
            statuses = [] if path in PUBLIC_PATHS else ["401"]
            if method == "post":
                statuses += ["408", "413", "422", "503"]
            elif "422" in operation["responses"]:
                statuses.append("422")
            for status in statuses:
                headers = {REASON_HEADER: {"schema": {"type": "string"}, "description": "Reason in one line."}}
                if status == "503":
                    headers["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
                operation["responses"][status] = {
                    "description": _DESCRIPTIONS[status],
                    "headers": headers,
                    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
                }
            operation["responses"] = dict(sorted(operation["responses"].items()))


def printable(text: str) -> str:
    """Return a text on one line and without control characters, which foreign field names could bring into a log."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _detail(body: bytes) -> str:
    """Return the explanation in an error's body, of the API's or of OpenAI's form, shortened; "" if there is none."""
    if len(body) > _MAX_BODY:
        return ""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    error = content.get("error")
    detail = error.get("message") if isinstance(error, dict) else content.get("detail")
    return " ".join(str(detail).split())[:_MAX_DETAIL] if detail else ""
