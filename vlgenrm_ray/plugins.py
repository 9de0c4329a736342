"""Extension points: implementations that a recipe names, from a table or by an import path.

A setting such as `detector.kind` takes a short name of a table in this package (`ultralytics`) or an import path
`package.module:Name` of the user's own. Every table maps short names to import paths, so that nothing heavy is imported
before it is used.
"""

import importlib
import re
from collections.abc import Mapping
from typing import Any

from vlgenrm_ray.errors import ConfigError

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def check_name(name: str, table: Mapping[str, str]) -> str:
    """Return `name` if it is in `table` or has the form of an import path. Raises ValueError for validators."""
    if name not in table and not _IMPORT_PATH.fullmatch(name):
        known = ", ".join(sorted(table))
        raise ValueError(f"'{name}' is unknown; choose from {known}, or give an import path package.module:Name")
    return name


def load(name: str, table: Mapping[str, str], setting: str) -> Any:
    """Import the object that a setting names.

    Args:
        name: Short name in `table`, or an import path `package.module:Name`.
        table: Short names with their import paths.
        setting: Name of the setting, for messages.

    Raises:
        ConfigError: The module cannot be imported or has no such object.
    """
    path = table.get(name, name)
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{setting}: '{name}' cannot be imported ({error}); install the package on every node, or put its folder "
            "on PYTHONPATH, and name an object of its module"
        ) from error
