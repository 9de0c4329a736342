"""Records to Arrow and back: the schema of any record type, read off its annotations."""

import types
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R")


def to_row(record: Any) -> dict[str, Any]:
    """Record -> plain nested dicts and lists, as Arrow takes them."""
    return {f.name: _plain(getattr(record, f.name)) for f in fields(record)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_row(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, StrEnum):
        return value.value
    return value


def from_row(cls: type[R], row: dict[str, Any]) -> R:
    """Plain row -> record of `cls`. Raises KeyError for a missing field, TypeError for a field of no such name."""
    return cls(**{name: _typed(hint, row[name]) for name, hint in _hints(cls).items()})


def _typed(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    hint = _without_none(hint)
    if is_dataclass(hint):
        return from_row(typing.cast("type[Any]", hint), value)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_typed(inner, v) for v in value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    return value


_HINTS: dict[type[Any], dict[str, Any]] = {}
"""Resolved annotations of each record type; resolving them anew for every row would dominate `from_row`."""


def _hints(cls: type[Any]) -> dict[str, Any]:
    if cls not in _HINTS:
        hints = typing.get_type_hints(cls)
        _HINTS[cls] = {f.name: hints[f.name] for f in fields(cls)}
    return _HINTS[cls]


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    return hint


def arrow_schema(cls: type[Any]) -> "pa.Schema":
    """The Arrow schema of a record type, nested records as structs."""
    import pyarrow as pa

    return pa.schema([pa.field(name, arrow_type(hint)) for name, hint in _hints(cls).items()])


def arrow_type(hint: Any) -> "pa.DataType":
    """The Arrow type of one annotation used by the records."""
    import pyarrow as pa

    hint = _without_none(hint)
    if is_dataclass(hint):
        return pa.struct(list(arrow_schema(typing.cast("type[Any]", hint))))
    if typing.get_origin(hint) is tuple:
        return pa.list_(arrow_type(typing.get_args(hint)[0]))
    if typing.get_origin(hint) is dict:
        return pa.map_(*[arrow_type(a) for a in typing.get_args(hint)])
    if isinstance(hint, type) and issubclass(hint, str):
        return pa.string()
    return {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}[hint]


def to_table(cls: type[R], records: Iterable[R]) -> "pa.Table":
    """Records of one type -> an Arrow table with that type's schema (right even when empty)."""
    import pyarrow as pa

    return pa.Table.from_pylist([to_row(r) for r in records], schema=arrow_schema(cls))


def from_table(cls: type[R], table: "pa.Table") -> list[R]:
    """An Arrow table written by `to_table` -> records."""
    return [from_row(cls, row) for row in table.to_pylist()]
