"""Conversion of records to Arrow and back, with a schema derived from the annotations of the record type."""

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R")


def to_row(record: Any) -> dict[str, Any]:
    """Convert a record to nested dicts and lists, as Arrow takes them."""
    plan = _plan(type(record))
    row = {name: getattr(record, name) for name in plan.hints}
    for name, write in plan.writers.items():
        if row[name] is not None:
            row[name] = write(row[name])
    return row


def from_row(cls: type[R], row: dict[str, Any]) -> R:
    """Convert a plain row to a record.

    Names without a field are ignored, and a field that the row lacks has its default: rows of other versions can be
    read, as far as their fields allow.

    Raises:
        InputError: The row lacks a field that has no default.
    """
    plan = _plan(cls)
    values = {name: row[name] for name in plan.hints if name in row}
    if len(values) < len(plan.hints) and (missing := plan.required - values.keys()):
        raise InputError(
            f"a row of {cls.__name__} lacks {', '.join(sorted(missing))}: another version of vlgenrm-ray wrote it; "
            "read it with that version, or make it again"
        )
    for name, read in plan.readers.items():
        if values.get(name) is not None:
            values[name] = read(values[name])
    return cls(**values)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Converters of a record type, derived from its annotations."""

    hints: dict[str, Any]
    """Field -> type, without `None`."""
    readers: dict[str, Callable[[Any], Any]]
    """Field -> converter from its Arrow value, for the fields that need one."""
    writers: dict[str, Callable[[Any], Any]]
    """Field -> converter to its Arrow value, for the fields that need one."""
    required: frozenset[str]
    """Fields without a default."""


_PLANS: dict[type[Any], _Plan] = {}
"""Cache: deriving the converters for every value took most of a stage's time on records."""


def _plan(cls: type[Any]) -> _Plan:
    if cls not in _PLANS:
        resolved = typing.get_type_hints(cls)
        hints = {f.name: _without_none(resolved[f.name]) for f in fields(cls)}
        readers = {name: read for name, hint in hints.items() if (read := _reader(hint))}
        writers = {name: write for name, hint in hints.items() if (write := _writer(hint))}
        required = frozenset(f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING)
        _PLANS[cls] = _Plan(hints, readers, writers, required)
    return _PLANS[cls]


def _reader(hint: Any) -> Callable[[Any], Any] | None:
    if is_dataclass(hint):
        return partial(from_row, typing.cast("type[Any]", hint))
    if typing.get_origin(hint) is tuple:
        return _each(_reader(typing.get_args(hint)[0]), tuple)
    if typing.get_origin(hint) is dict:
        return dict
    return hint if isinstance(hint, type) and issubclass(hint, StrEnum) else None


def _writer(hint: Any) -> Callable[[Any], Any] | None:
    if is_dataclass(hint):
        return to_row
    if typing.get_origin(hint) is tuple:
        return _each(_writer(typing.get_args(hint)[0]), list)
    if typing.get_origin(hint) is dict:
        return _items
    return str if isinstance(hint, type) and issubclass(hint, StrEnum) else None


def _each(convert: Callable[[Any], Any] | None, collect: Callable[[Iterable[Any]], Any]) -> Callable[[Any], Any]:
    return collect if convert is None else lambda values: collect(map(convert, values))


def _items(values: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return list(values.items())


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    return hint


def arrow_schema(cls: type[Any]) -> "pa.Schema":
    """Return the Arrow schema of a record type; nested records are structs."""
    import pyarrow as pa

    return pa.schema([pa.field(name, arrow_type(hint)) for name, hint in _plan(cls).hints.items()])


def arrow_type(hint: Any) -> "pa.DataType":
    """Return the Arrow type of an annotation that records use."""
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
    """Convert records of one type to an Arrow table with the schema of that type, also if there are none."""
    import pyarrow as pa

    return pa.Table.from_pylist([to_row(r) for r in records], schema=arrow_schema(cls))


def from_table(cls: type[R], table: "pa.Table") -> list[R]:
    """Convert an Arrow table of `to_table` to records."""
    return [from_row(cls, row) for row in table.to_pylist()]


def map_uris(table: "pa.Table", convert: Callable[["pa.Array"], "pa.Array"]) -> "pa.Table":
    """Apply `convert` to every text column named `uri`, also inside structs and lists."""
    for index, column in enumerate(table.schema):
        if _has_uri(column):
            array = table.column(index).combine_chunks()
            table = table.set_column(index, column, _map_uris(column, array, convert))
    return table


def _has_uri(column: "pa.Field") -> bool:
    import pyarrow.types

    if pyarrow.types.is_list(column.type):
        return _has_uri(column.type.value_field)
    return column.name == "uri" or (pyarrow.types.is_struct(column.type) and any(map(_has_uri, column.type)))


def _map_uris(column: "pa.Field", array: "pa.Array", convert: Callable[["pa.Array"], "pa.Array"]) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type):
        values = _map_uris(column.type.value_field, array.flatten(), convert)
        lengths = array.value_lengths().fill_null(0).cast(pa.int32())
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
        return pa.ListArray.from_arrays(offsets, values, mask=array.is_null() if array.null_count else None)
    if column.name == "uri":
        return convert(array)
    children = [
        _map_uris(child, array.field(i), convert) if _has_uri(child) else array.field(i)
        for i, child in enumerate(column.type)
    ]
    return pa.StructArray.from_arrays(
        children, fields=list(column.type), mask=array.is_null() if array.null_count else None
    )
