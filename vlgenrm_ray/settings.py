"""The base of every configuration section: frozen, and deaf to no key it does not know."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A configuration section. Unknown keys are refused; a value, once read, never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def fingerprint(self) -> str:
        """Hash of the resolved values, for manifests: equal settings have equal fingerprints."""
        return digest(self.model_dump(mode="json"))


def digest(value: object) -> str:
    """SHA-256 of any JSON-able value, shortened to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
