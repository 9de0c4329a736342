"""Who may ask: the API token, and the operator's. Only their hashes travel; the tokens stay in the environment."""

import base64
import hashlib
import hmac
import os
from enum import IntEnum

from vlgenrm_ray.settings import Settings

API_TOKEN = "VLGENRM_API_TOKEN"
OPERATOR_TOKEN = "VLGENRM_OPERATOR_TOKEN"


class Caller(IntEnum):
    """What a caller may do; each may do what those before it may."""

    STRANGER = 0
    USER = 1
    OPERATOR = 2


class Tokens(Settings):
    """SHA-256 of the tokens; "" where there is none. Without an API token everybody is a user, and without an operator
    token nobody is an operator."""

    api: str = ""
    operator: str = ""

    @classmethod
    def from_environment(cls) -> "Tokens":
        """The tokens in VLGENRM_API_TOKEN and VLGENRM_OPERATOR_TOKEN."""
        return cls.of(api=os.environ.get(API_TOKEN, ""), operator=os.environ.get(OPERATOR_TOKEN, ""))

    @classmethod
    def of(cls, *, api: str = "", operator: str = "") -> "Tokens":
        """Of these tokens."""
        return cls(api=_hash(api), operator=_hash(operator))

    def caller(self, authorization: str) -> Caller:
        """Who sent an `Authorization: Bearer TOKEN` header ("" for none).

        Or `Basic`, with the token as the password: trainers that know no tokens still take `http://any:TOKEN@host`.
        """
        found = _hash(_token(authorization))
        # Both are compared, each in constant time, so that the time taken tells neither which nor how much.
        operator, user = (hmac.compare_digest(found, token) and bool(found) for token in (self.operator, self.api))
        if operator:
            return Caller.OPERATOR
        return Caller.USER if user or not self.api else Caller.STRANGER


def _token(authorization: str) -> str:
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
