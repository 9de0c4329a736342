"""Base class of every configuration section: frozen, and strict about unknown keys."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """A configuration section. Unknown keys are refused, and a value never changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old name -> present name of settings that were renamed. The old name is read for one version, with a warning."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not (old := [name for name in cls.renamed if name in values]):
            return values
        read = dict(values)
        for name in old:
            present = cls.renamed[name]
            if present in read:
                raise ValueError(f"'{name}' is the old name of '{present}', and both are set; keep '{present}'")
            warnings.warn(
                f"setting '{name}' is now '{present}'; the old name goes with the next version", FutureWarning, 2
            )
            read[present] = read.pop(name)
        return read

    def fingerprint(self) -> str:
        """Hash of the resolved values, for manifests: equal settings have equal fingerprints."""
        return digest(self.model_dump(mode="json"))


def digest(value: object) -> str:
    """SHA-256 of any JSON-able value, shortened to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
