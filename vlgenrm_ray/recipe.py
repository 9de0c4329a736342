"""Recipes: YAML files with `--set a.b=c` overrides, read into a configuration.

Errors name the field, the value and the remedy. The resolved configuration is complete and is written into the run
folder (`claim`), where a second run with other settings is refused.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vlgenrm_ray.data.files import write_text
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.settings import Settings, sections_of
from vlgenrm_ray.shapes import pack_path

S = TypeVar("S", bound=BaseModel)

_MAX_DIFFERENCES = 10
PACK = "pack:"
"""Prefix of a model of the embedded world: `pack:<name>` becomes that model's folder in the installed package."""


def load(cls: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a recipe.

    Args:
        cls: Configuration class the recipe fills in.
        path: YAML file.
        overrides: Settings that replace the file's, as `a.b=value`; a number in the path indexes a list.

    Raises:
        ConfigError: The file cannot be read, or the settings are not valid; one line per mistake.
    """
    return build_with(cls, read(path), overrides)


def read(path: Path) -> dict[str, Any]:
    """Read the sections of a recipe without checking them. Raises ConfigError if the file is none."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}; see jobs/recipes/ for recipes") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: a recipe is a mapping of sections, got {type(values).__name__}")
    return values


def build_with(cls: type[S], values: Mapping[str, Any], overrides: Sequence[str]) -> S:
    """Build the configuration from plain values and overrides `a.b=value`. Raises ConfigError."""
    merged = dict(values)
    for override in overrides:
        merged = _override(cls, merged, override)
    return build(cls, merged)


def build(cls: type[S], values: Mapping[str, Any]) -> S:
    """Build the configuration from plain values. Raises ConfigError with one line per mistake."""
    try:
        return cls.model_validate(resolve(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, mistake) for mistake in _distinct(error.errors()))) from None


def dump(config: BaseModel) -> str:
    """Return the resolved configuration as YAML; reading it back, on any machine, gives an equal configuration."""
    text: str = yaml.safe_dump(_name_pack(config.model_dump(mode="json")), sort_keys=False)
    return text


def claim(config: Settings, folder: Path) -> None:
    """Write the configuration into a run's folder.

    The folder may hold a configuration that differs in operational settings only, such as resources or the number of
    rounds; it is replaced.

    Raises:
        ConfigError: The folder is of a run with other results; the message names the settings that differ.
    """
    path = folder / "config.yaml"
    if path.exists() and (differences := _differences(config, path)):
        raise ConfigError(
            f"{path} is of a run with other settings:\n"
            + "\n".join(differences)
            + "\nrestore them, choose another run folder with --run, or delete that folder to run it again"
        )
    write_text(path, dump(config))


def _differences(config: Settings, path: Path) -> list[str]:
    """List the settings, as lines, in which a stored configuration differs from the present one, at most ten."""
    try:
        with warnings.catch_warnings(action="ignore"):
            stored = build(type(config), yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ConfigError, yaml.YAMLError, TypeError) as error:
        return [f"  it cannot be read by this version: {error}"]
    before, now = (dict(_leaves(c.result_settings())) for c in (stored, config))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    lines = [f"  {name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in names]
    return lines if len(lines) <= _MAX_DIFFERENCES else [*lines[:_MAX_DIFFERENCES], f"  and {len(lines) - 10} more"]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of all plain values in nested mappings and lists."""
    below = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if not below:
        yield path, value
        return
    for key, item in below:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


def _name_pack(value: Any) -> Any:
    """Undo `resolve`: name the models of the embedded world independently of where the package is installed."""
    if isinstance(value, Mapping):
        return {k: _name_pack(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_name_pack(v) for v in value]
    if isinstance(value, str) and value.startswith(prefix := f"{pack_path('')}/"):
        return PACK + value.removeprefix(prefix)
    return value


def resolve(value: Any) -> Any:
    """Return the value with every `pack:<name>` in it replaced by that model's folder."""
    if isinstance(value, Mapping):
        return {k: resolve(v) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v) for v in value]
    if isinstance(value, str) and value.startswith(PACK):
        return str(pack_path(value.removeprefix(PACK)))
    return value


def _override(cls: type[BaseModel], values: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a copy of `values` with the override `a.b=c` applied; c is read as YAML."""
    path, equals, raw = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {text}: expected a.b=value")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML; quote it") from error
    changed: dict[str, Any] = _replace(cls, values, path.split("."), value, text)
    return changed


def _replace(cls: type[BaseModel] | None, node: Any, keys: Sequence[str], value: Any, text: str) -> Any:
    """Return `node`, a section of class `cls` or a plain value, with `value` at the end of the path `keys`."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"--set {text}: '{key}' is not an index into a list of {len(node)}")
        return [_replace(cls, item, rest, value, text) if i == int(key) else item for i, item in enumerate(node)]
    if node is not None and not isinstance(node, dict):
        raise ConfigError(f"--set {text}: '{key}' is below a plain value")
    node = node or {}
    if cls is not None and issubclass(cls, Settings):
        # File and override may name a renamed setting differently.
        node, (key,) = cls.present_names(node), cls.present_names({key: value})
    sections = sections_of(cls.model_fields[key].annotation) if cls is not None and key in cls.model_fields else []
    below = sections[0] if len(sections) == 1 else None
    return node | {key: _replace(below, node.get(key), rest, value, text)}


def _distinct(mistakes: Sequence[Any]) -> list[Any]:
    """Merge equal mistakes of sections that inherit from one setting: keep the mistake with the shortest path."""
    distinct: dict[tuple[str, str, str], Any] = {}
    for mistake in sorted(mistakes, key=lambda m: len(m["loc"])):
        last = str(mistake["loc"][-1]) if mistake["loc"] else ""
        # A mistake between fields shows its whole section, which is larger the more it inherits.
        value = "" if isinstance(mistake["input"], Mapping) else repr(mistake["input"])
        distinct.setdefault((last if value else str(mistake["loc"]), mistake["msg"], value), mistake)
    return [mistake for mistake in mistakes if any(mistake is one for one in distinct.values())]


def _explain(cls: type[BaseModel], mistake: Any) -> str:
    """Return one pydantic error as field, value and remedy."""
    where = ".".join(str(part) for part in mistake["loc"]) or "(recipe)"
    if mistake["type"] == "extra_forbidden":
        known = _keys(cls, mistake["loc"][:-1])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known))}"
        return f"{where}: unknown key; {hint}"
    if mistake["type"] == "missing":
        return f"{where}: required, but not set"
    message = mistake["msg"].removeprefix("Value error, ")
    # Showing a whole section as the wrong value would not help; the message names the fields that do not fit.
    got = "" if isinstance(mistake["input"], Mapping) else f"got {mistake['input']!r}; "
    return f"{where}: {got}{message[:1].lower()}{message[1:]}"


def _keys(cls: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the names of the settings of the section at `location`; of all candidates where a union leaves it open."""
    sections: list[type[BaseModel]] = [cls]
    for part in location:
        if isinstance(part, int):
            continue
        below = [s for c in sections if part in c.model_fields for s in sections_of(c.model_fields[part].annotation)]
        # pydantic puts a union member's tag into the location; it names no field, so the section stays the same.
        sections = below or sections
    return [name for c in sections for name in c.model_fields]
