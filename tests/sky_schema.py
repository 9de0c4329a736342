"""SkyPilot's own schema of a task file, read from its package without starting its client.

The client imports a web server and a database, which are not installed; the schema needs none of them.
"""

import importlib.util
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

_LOADED = ("setup_files.dependencies", "skylet.constants", "utils.kubernetes_enums", "utils.schemas")
"""Modules that are executed, in this order; all others are replaced."""
_REPLACED = ("skylet.autostop_lib", "utils.volume", "data.storage", "server.plugins", "server.daemons", "serve")


def task_schema() -> dict[str, Any]:
    """Return the JSON schema of SkyPilot's task files."""
    package = distribution("skypilot")
    folder = Path(str(package.locate_file("sky")))
    parents = {f"sky.{name.split('.')[0]}" for name in (*_LOADED, *_REPLACED)}
    modules = {name: mock.MagicMock() for name in ("sky", *parents, *(f"sky.{name}" for name in _REPLACED))}
    modules["sky"].__version__ = package.version
    with mock.patch.dict(sys.modules, modules):
        for name in _LOADED:
            parent, _, child = name.partition(".")
            setattr(modules[f"sky.{parent}"], child, _load(f"sky.{name}", folder / f"{name.replace('.', '/')}.py"))
        schema: dict[str, Any] = sys.modules["sky.utils.schemas"].get_task_schema()  # type: ignore[attr-defined]
        resources = sys.modules["sky.utils.schemas"].get_resources_schema()  # type: ignore[attr-defined]
    # SkyPilot checks this section in a second step.
    return {**schema, "properties": {**schema["properties"], "resources": resources}}


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
