"""Base class of every configuration section: strict, frozen, with renamed and inherited settings.

A section is a pydantic model whose fields are documented by the string below each of them; `settings_reference` prints
those strings for users. Class variables let a recipe stay short, old recipes keep working, and runs continue elsewhere:

    renamed     old name -> present name, read for one version with a warning
    removed     old name -> the constant that it became, or the remedy for those who need another value
    inherits    path of a setting -> path of the setting whose value it takes where the recipe leaves it out
    operational names of settings that decide where and how fast a run works, but not its results
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

_UNSET = object()
_PACKAGE = f"{Path(__file__).parent}/"
ANY_VALUE = object()
"""`RemovedSetting.value` of a setting that changes nothing, whatever its value."""


class RemovedSetting(NamedTuple):
    """A setting of an earlier version that is a constant now, or that its section no longer has."""

    value: Any
    """Value that a recipe may still state for one version, with a warning, because it changes nothing. For a section:
    the values of all its settings, of which a recipe may state some."""
    remedy: str
    """Remedy for a recipe that states another value, which is refused: a clause such as "set x instead"."""

    def has_value(self, stated: Any) -> bool:
        """Return True if a stated value changes nothing."""
        if isinstance(self.value, Mapping) and isinstance(stated, Mapping):
            return all(name in self.value and self.value[name] == value for name, value in stated.items())
        return self.value is ANY_VALUE or bool(stated == self.value)


class Settings(BaseModel):
    """A configuration section. Unknown keys are refused, and a value never changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old name -> present name of settings that were renamed. The old name is read for one version, with a warning.

    A present name of two parts, `mapping.key`, is a key of a mapping in the same section.
    """
    removed: ClassVar[Mapping[str, RemovedSetting]] = {}
    """Old name -> value and remedy of settings that were removed."""
    inherits: ClassVar[Mapping[str, str]] = {}
    """Path of a setting -> path of the setting it inherits from, both below this section; applied in order.

    `*` stands for every entry of a list. A section inherits setting by setting, a plain setting as a whole. A section
    that is None by default is not created, nor is a required one of which only a part inherits.
    """

    operational: ClassVar[frozenset[str]] = frozenset()
    """Settings that may change while a run is interrupted: resources, batch sizes of actors, time limits, logging."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Translate old names, then complete sections by the defaults of their field and by inherited settings."""
        if not isinstance(values, Mapping):
            return values
        completed = cls._without_removed(cls.present_names(values))
        # Without this, stating one setting of a section would reset the others to the defaults of the section's class.
        for name, (section, defaults) in _defaults_of_place(cls).items():
            is_linked = name in cls.inherits or name in cls.inherits.values()
            stated = completed.get(name, {} if is_linked else None)
            if isinstance(stated, Mapping):
                completed[name] = _over(section, defaults, _plain(section, stated))
        for target, source in cls.inherits.items():
            inherited = _value_at(cls, completed, source.split("."))
            if inherited is not _UNSET:
                completed = _fill(cls, completed, target.split("."), inherited)
        return completed

    @classmethod
    def present_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `values` by present names, with a warning for each old one. Raises ValueError where both are set."""
        present = dict(values)
        for old, name in cls.all_renamed().items():
            if old not in present:
                continue
            field, _, key = name.partition(".")
            if (key in present.get(field, {})) if key else (name in present):
                raise ValueError(f"'{old}' is the old name of '{name}', and both are set; keep '{name}'")
            warnings.warn(
                f"setting '{old}' is now '{name}' ({cls.__name__}); the old name goes with the next version",
                FutureWarning,
                2,
            )
            value = present.pop(old)
            if not key:
                present[name] = value
            # None stood for the default of the library that the mapping is passed to.
            elif value is not None:
                present[field] = {**present.get(field, {}), key: value}
        return present

    @classmethod
    def all_renamed(cls) -> dict[str, str]:
        """Return `renamed` of the class and its bases: a subclass adds to the renamed settings of its base."""
        return {old: name for c in reversed(cls.__mro__) for old, name in c.__dict__.get("renamed", {}).items()}

    @classmethod
    def all_removed(cls) -> dict[str, RemovedSetting]:
        """Return `removed` of the class and its bases."""
        return {old: removed for c in reversed(cls.__mro__) for old, removed in c.__dict__.get("removed", {}).items()}

    @classmethod
    def _without_removed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `values` without removed settings, with a warning for each. Raises ValueError for another value."""
        rest = dict(values)
        for old, removed in cls.all_removed().items():
            if old not in rest or old in cls.model_fields:
                continue
            if not removed.has_value(value := rest.pop(old)):
                raise ValueError(f"'{old}: {value}' is no longer a setting; {removed.remedy}")
            warnings.warn(
                f"setting '{old}' ({cls.__name__}) is no longer one and changes nothing; remove it from the recipe: "
                "the next version refuses it",
                FutureWarning,
                2,
            )
        return rest

    def fingerprint(self) -> str:
        """Return a hash of `result_settings`, for manifests: settings with equal results have equal fingerprints."""
        return digest(self.result_settings())

    def result_settings(self) -> dict[str, Any]:
        """Return the resolved values, as JSON, that results depend on: without the operational ones.

        Paths in this package do not depend on where it is installed.
        """
        settings: dict[str, Any] = _without_operational(self, self.model_dump(mode="json"))
        return settings

    @classmethod
    def all_operational(cls) -> frozenset[str]:
        """Return `operational` of the class and its bases."""
        return frozenset().union(*(c.__dict__.get("operational", ()) for c in cls.__mro__))


def _without_operational(value: Any, dumped: Any) -> Any:
    """Walk through a setting and its dump together; return the dump without operational settings."""
    if isinstance(value, BaseModel):
        omitted = value.all_operational() if isinstance(value, Settings) else frozenset()
        return {
            name: _without_operational(getattr(value, name, None), below)
            for name, below in dumped.items()
            if name not in omitted
        }
    if isinstance(dumped, list) and isinstance(value, Sequence):
        return [_without_operational(*pair) for pair in zip(value, dumped, strict=True)]
    if isinstance(dumped, str) and dumped.startswith(_PACKAGE):
        return dumped.replace(_PACKAGE, "<package>/", 1)
    return dumped


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON-compatible value, shortened to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the section classes in a type annotation such as `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType) or get_origin(annotation) is not None:
        return [section for argument in get_args(annotation) for section in sections_of(argument)]
    return []


@cache
def _defaults_of_place(cls: type[BaseModel]) -> dict[str, tuple[type[BaseModel], dict[str, Any]]]:
    """Return the fields of `cls` that override defaults of their section's class, with section and overrides."""
    places = {}
    for name, field in cls.model_fields.items():
        section = type(field.default)
        if not issubclass(section, BaseModel) or any(f.is_required() for f in section.model_fields.values()):
            continue
        usual = section()
        values = field.default.model_dump()
        if differing := {n: v for n, v in values.items() if getattr(field.default, n) != getattr(usual, n)}:
            places[name] = (section, differing)
    return places


def _section_at(cls: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the section class of a field, None for a plain setting."""
    sections = sections_of(cls.model_fields[name].annotation)
    return sections[0] if sections else None


def _plain(cls: type[BaseModel] | None, value: Any) -> Any:
    """Return a section as a mapping by present names; anything else unchanged."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping) and cls is not None and issubclass(cls, Settings):
        return cls.present_names(value)
    return value


def _value_at(cls: type[BaseModel], values: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Return the stated value at a path, a plain setting's default where it is not stated, or `_UNSET`."""
    name, rest = path[0], path[1:]
    section = _section_at(cls, name)
    value = _plain(section, values.get(name, _UNSET))
    if rest:
        assert section is not None, f"{cls.__name__}.{name} is not a section"
        return _value_at(section, value if isinstance(value, Mapping) else {}, rest)
    if value is not _UNSET or section is not None or cls.model_fields[name].is_required():
        return value
    return cls.model_fields[name].get_default(call_default_factory=True, validated_data={})


def _fill(cls: type[BaseModel], values: Mapping[str, Any], path: Sequence[str], inherited: Any) -> dict[str, Any]:
    """Return `values` with the setting at a path completed from `inherited`."""
    name, rest = path[0], path[1:]
    section, field = _section_at(cls, name), cls.model_fields[name]
    stated = _plain(section, values.get(name, _UNSET))
    if section is None:
        return {name: inherited} | dict(values)
    if rest and rest[0] == "*":
        if not isinstance(stated, (list, tuple)):
            return dict(values)
        entries = [_plain(section, entry) for entry in stated]
        filled = [_fill(section, e, rest[1:], inherited) if isinstance(e, Mapping) else e for e in entries]
        return dict(values) | {name: filled}
    if stated is _UNSET:
        # A required section below which something inherits is still the user's to state.
        create = not rest if field.is_required() else field.get_default(call_default_factory=True) is not None
        stated = {} if create else None
    if not isinstance(stated, Mapping):
        return dict(values)
    return dict(values) | {name: _fill(section, stated, rest, inherited) if rest else _over(section, inherited, stated)}


def _over(cls: type[BaseModel], inherited: Any, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return `stated` completed by the settings of `inherited` that section `cls` has."""
    if not isinstance(inherited, Mapping):
        return dict(stated)
    merged = dict(stated)
    for name, value in inherited.items():
        if name not in cls.model_fields:
            continue
        section = _section_at(cls, name)
        own = _plain(section, merged.get(name, _UNSET))
        if own is _UNSET and section is not None and isinstance(value, Mapping):
            merged[name] = _over(section, section.present_names(value) if issubclass(section, Settings) else value, {})
        elif own is _UNSET:
            merged[name] = value
        elif section is not None and isinstance(own, Mapping):
            merged[name] = _over(section, _plain(section, value), own)
    return merged
