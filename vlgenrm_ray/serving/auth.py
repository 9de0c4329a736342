"""Authentication: the API token for users, the operator token for model swaps. Only their hashes are stored or sent."""

import base64
import hashlib
import hmac
import os
from enum import IntEnum
from typing import TYPE_CHECKING

from vlgenrm_ray.serving.limits import send_error
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

API_TOKEN = "VLGENRM_API_TOKEN"
"""Environment variable of the users' token."""
OPERATOR_TOKEN = "VLGENRM_OPERATOR_TOKEN"
"""Environment variable of the operator's token."""
PUBLIC_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
"""Paths that need no token: they reveal nothing that was judged, and probes, scrapers and browsers send none."""
OPERATOR_PATHS = frozenset({"/v1/model"})
"""Paths that need the operator's token for every method but GET."""


class Role(IntEnum):
    """Permission of a caller. Each role includes the lower ones."""

    ANONYMOUS = 0
    USER = 1
    OPERATOR = 2


class ApiTokens(Settings):
    """SHA-256 of the tokens, "" for none. Without an API token every caller is a user; without an operator token
    no caller is an operator."""

    api: str = ""
    """SHA-256 of the token for scoring; empty: no token is needed. Set from VLGENRM_API_TOKEN."""
    operator: str = ""
    """SHA-256 of the token for operators, who may swap the model. Set from VLGENRM_OPERATOR_TOKEN."""

    @classmethod
    def from_environment(cls) -> "ApiTokens":
        """Return the tokens of VLGENRM_API_TOKEN and VLGENRM_OPERATOR_TOKEN."""
        return cls.from_secrets(api=os.environ.get(API_TOKEN, ""), operator=os.environ.get(OPERATOR_TOKEN, ""))

    @classmethod
    def from_secrets(cls, *, api: str = "", operator: str = "") -> "ApiTokens":
        """Return the hashes of tokens in plain text."""
        return cls(api=_hash(api), operator=_hash(operator))

    def role(self, authorization: str) -> Role:
        """Return the role of a caller by its `Authorization` header, "" for none.

        The header is `Bearer TOKEN`, or `Basic` with the token as the password: trainers without a token setting still
        accept `http://any:TOKEN@host`.
        """
        token = _hash(_parse_token(authorization))
        # Both comparisons always run, each in constant time, so that the duration reveals nothing.
        operator, user = (hmac.compare_digest(token, known) and bool(token) for known in (self.operator, self.api))
        if operator:
            return Role.OPERATOR
        return Role.USER if user or not self.api else Role.ANONYMOUS


class AuthMiddleware:
    """ASGI middleware that answers 401 or 403 before anything of the body is read."""

    def __init__(self, app: "ASGIApp", *, tokens: ApiTokens) -> None:
        # Imported here: this module is loaded with the settings, also by clients that have no starlette.
        from starlette._utils import get_route_path

        self.app = app
        self.tokens = tokens
        self._route_path = get_route_path

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await send_error(scope, send, *refusal)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: "Scope") -> tuple[int, str] | None:
        """Return status and reason, or None if the caller is permitted."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        role = self.tokens.role(authorization)
        # The path as the router sees it: below a `route_prefix` of Ray Serve the scope's path is longer.
        path = self._route_path(scope)
        if path in OPERATOR_PATHS and scope["method"] != "GET":
            if not self.tokens.operator:
                return 403, "authorization: this service was started without an operator's token"
            return None if role is Role.OPERATOR else (401, "authorization: needs the operator's token")
        if path in PUBLIC_PATHS or role >= Role.USER:
            return None
        return 401, "authorization: needs `Bearer <the service's token>`"


def _parse_token(authorization: str) -> str:
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme.casefold() == "bearer":
        return rest.strip()
    if scheme.casefold() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest() if token else ""
