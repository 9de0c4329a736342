"""Base class of every configuration section: strict, frozen, with renamed and inherited settings.

A section is a pydantic model whose fields are documented by the string below each of them; `settings_reference` prints
those strings for users. Two class variables let a recipe stay short and old recipes keep working:

    renamed     old name -> present name, read for one version with a warning
    inherits    path of a setting -> path of the setting whose value it takes where the recipe leaves it out
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

_UNSET = object()


class Settings(BaseModel):
    """A configuration section. Unknown keys are refused, and a value never changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old name -> present name of settings that were renamed. The old name is read for one version, with a warning."""
    inherits: ClassVar[Mapping[str, str]] = {}
    """Path of a setting -> path of the setting it inherits from, both below this section; applied in order.

    `*` stands for every entry of a list. A section inherits setting by setting, a plain setting as a whole. A section
    that is None by default is not created, nor is a required one of which only a part inherits.
    """

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Translate old names, then complete sections by the defaults of their field and by inherited settings."""
        if not isinstance(values, Mapping):
            return values
        completed = cls.present_names(values)
        # Without this, stating one setting of a section would reset the others to the defaults of the section's class.
        for name, (section, defaults) in _defaults_of_place(cls).items():
            stated = completed.get(name, {} if name in cls.inherits else None)
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
        # A subclass adds to the renamed settings of its base.
        all_renamed = {old: name for c in cls.__mro__ for old, name in c.__dict__.get("renamed", {}).items()}
        for old, name in all_renamed.items():
            if old not in present:
                continue
            if name in present:
                raise ValueError(f"'{old}' is the old name of '{name}', and both are set; keep '{name}'")
            warnings.warn(
                f"setting '{old}' is now '{name}' ({cls.__name__}); the old name goes with the next version",
                FutureWarning,
                2,
            )
            present[name] = present.pop(old)
        return present

    def fingerprint(self) -> str:
        """Return a hash of the resolved values, for manifests: equal settings have equal fingerprints."""
        return digest(self.model_dump(mode="json"))


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
        if own is _UNSET:
            merged[name] = value
        elif section is not None and isinstance(own, Mapping):
            merged[name] = _over(section, _plain(section, value), own)
    return merged
