"""Reading a recipe: a YAML file, `--set a.b=c` on top, and errors that name the field, the value and the remedy."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.shapes import pack_path

S = TypeVar("S", bound=BaseModel)

PACK = "pack:"
"""A value `pack:<name>` in a recipe means that model of the embedded world's pack, wherever it is installed."""


def load(cls: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """A recipe file with `a.b=c` overrides -> configuration. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}; see jobs/recipes/ for recipes") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: a recipe is a mapping of sections, got {type(values).__name__}")
    for override in overrides:
        values = _override(values, override)
    return build(cls, values)


def build(cls: type[S], values: Mapping[str, Any]) -> S:
    """Plain values -> configuration. Raises ConfigError with one line per mistake."""
    try:
        return cls.model_validate(resolve(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, e) for e in error.errors())) from None


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML; reading it back gives an equal configuration."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def claim(config: BaseModel, folder: Path) -> None:
    """Write the configuration into a run's folder. Raises ConfigError if another one already stands there."""
    path, text = folder / "config.yaml", dump(config)
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{path} is of a run with other settings; choose another run folder with --run, "
            "or delete that folder to make it again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _override(values: dict[str, Any], text: str) -> dict[str, Any]:
    """A copy of `values` with `a.b=c` applied; c is read as YAML, a number in the path indexes a list."""
    path, equals, raw = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {text}: expected a.b=value")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML; quote it") from error
    placed: dict[str, Any] = _place(values, path.split("."), value, text)
    return placed


def _place(node: Any, keys: Sequence[str], value: Any, text: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"--set {text}: '{key}' is not an index into a list of {len(node)}")
        return [_place(item, rest, value, text) if i == int(key) else item for i, item in enumerate(node)]
    if node is not None and not isinstance(node, dict):
        raise ConfigError(f"--set {text}: '{key}' is below a plain value")
    node = node or {}
    return node | {key: _place(node.get(key), rest, value, text)}


def resolve(value: Any) -> Any:
    """The value with every `pack:<name>` in it replaced by that model's folder."""
    if isinstance(value, Mapping):
        return {k: resolve(v) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v) for v in value]
    if isinstance(value, str) and value.startswith(PACK):
        return str(pack_path(value.removeprefix(PACK)))
    return value


def _explain(cls: type[BaseModel], error: Any) -> str:
    """One pydantic error as field, value and remedy."""
    where = ".".join(str(part) for part in error["loc"]) or "(recipe)"
    if error["type"] == "extra_forbidden":
        known = _keys(cls, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known))}"
        return f"{where}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{where}: required, but not set"
    message = error["msg"].removeprefix("Value error, ")
    # A whole section is no value to show; what is wrong between its fields, the message names.
    got = "" if isinstance(error["input"], Mapping) else f"got {error['input']!r}; "
    return f"{where}: {got}{message[:1].lower()}{message[1:]}"


def _keys(cls: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the settings of the section at `location`; all candidates' names where a union leaves it open."""
    sections: list[type[BaseModel]] = [cls]
    for part in location:
        if isinstance(part, int):
            continue
        found = [s for c in sections if part in c.model_fields for s in _sections(c.model_fields[part].annotation)]
        # pydantic puts a union member's tag into the location; it names no field, so we stay where we are.
        sections = found or sections
    return [name for c in sections for name in c.model_fields]


def _sections(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    if get_origin(hint) in (Union, UnionType, tuple, list, dict) or get_origin(hint) is not None:
        return [s for a in get_args(hint) for s in _sections(a)]
    return []
