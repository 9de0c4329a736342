"""One JSON array of objects, read element by element, so that no process holds the whole file.

The array is cut into elements by its brackets and strings alone, and each element is parsed by itself: one that is not
JSON is a malformed row with its line, and the others are read. An object that holds the array (`{"data": [...]}`) is
entered, and an object of objects (`{"7": {...}}`) is read as rows with their keys as ids.
"""

import re
from collections.abc import Iterator
from typing import IO

from vlgenrm_ray.curation.sources.container import Container
from vlgenrm_ray.curation.sources.containers.json_lines import WRAPPED_ARRAY, parse_line
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.curation.sources.values import MalformedRowError

_BOM = b"\xef\xbb\xbf"
_OBJECT_OF_OBJECTS = re.compile(rb'\{\s*"(?:[^"\\]|\\.){1,200}"\s*:\s*\{\s*"')
_CHUNK_BYTES = 256 * 1024
_MAX_ELEMENT = 256 * 1024 * 1024
_TOKENS = re.compile(rb'(?:[^\[\]{}",]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
"""Everything up to the next bracket or comma, strings whole."""
_TOKENS_NESTED = re.compile(rb'(?:[^\[\]{}"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
"""Everything up to the next bracket, strings whole."""


class JsonArray(Container):
    """One JSON array. Rows are numbered by their place in it; malformed ones also name their line."""

    title = "JSON array"
    suffixes = (".json",)

    def recognise(self, file: DataFile, head: bytes) -> str:
        """See `Container.recognise`."""
        text = head.removeprefix(_BOM).lstrip()
        if text.startswith(b"[") and text[1:].lstrip()[:1] in (b"{", b"]", b""):
            return "one JSON array of objects"
        if text.startswith(b"{") and WRAPPED_ARRAY.match(text):
            return "a JSON object that holds an array of objects"
        if _OBJECT_OF_OBJECTS.match(text):
            return "one JSON object of objects"
        if text.startswith(b"[") and file.suffix == ".json":
            return "one JSON array"
        return ""

    def rows(self, file: DataFile) -> Iterator[object]:
        """See `Container.rows`."""
        with file.reader() as reader:
            for line, element in iterate_elements(reader):
                value = element if isinstance(element, MalformedRowError) else _parse(element)
                if isinstance(value, MalformedRowError):
                    value = MalformedRowError(f"line {line}: {value}")
                yield value


def iterate_elements(reader: IO[bytes]) -> Iterator[tuple[int, bytes | MalformedRowError]]:
    """Yield the elements of the array in a file with the line, from 1, in which each begins.

    The last one may be an error: the file ends within the array, or something follows it.
    """
    buffer = reader.read(_CHUNK_BYTES)
    chunk_bytes = _CHUNK_BYTES
    buffer = buffer.removeprefix(_BOM)
    wrapped = WRAPPED_ARRAY.match(buffer.lstrip())
    start = len(buffer) - len(buffer.lstrip()) + (wrapped.end() if wrapped else 0)
    line = 1 + buffer.count(b"\n", 0, start)
    if buffer[start : start + 1] not in (b"[", b"{"):
        yield line, MalformedRowError("not one JSON array")
        return
    begin = place = start + 1
    depth = 0
    while True:
        end = (_TOKENS if depth == 0 else _TOKENS_NESTED).match(buffer, place).end()  # type: ignore[union-attr]
        sign = buffer[end : end + 1]
        if sign in (b"", b'"'):
            # The end of the buffer, or a string that goes beyond it: read on from the beginning of the element.
            more = reader.read(chunk_bytes)
            if not more:
                rest = buffer[begin:].strip()
                line += _leading_lines(buffer, begin)
                if rest and depth == 0 and sign == b"":
                    yield line, rest
                yield line, MalformedRowError("the file ends within the array, after this row or in it")
                return
            place = end - begin
            buffer = buffer[begin:] + more
            begin = 0
            # A long element is searched again after each chunk; larger chunks keep that linear.
            chunk_bytes = max(_CHUNK_BYTES, len(buffer))
            if len(buffer) > _MAX_ELEMENT:
                yield line, MalformedRowError(f"an element of more than {_MAX_ELEMENT} bytes")
                return
            continue
        place = end + 1
        if sign in (b"[", b"{"):
            depth += 1
        elif sign in (b"]", b"}") and depth:
            depth -= 1
        elif depth == 0:
            element = buffer[begin:end]
            if element.strip() or sign == b",":
                yield line + _leading_lines(buffer, begin), element.strip()
            line += element.count(b"\n")
            begin = place
            if sign in (b"]", b"}"):
                if not wrapped and (buffer[place:].strip() or reader.read(chunk_bytes).strip()):
                    yield line, MalformedRowError("something follows the array; it is not read. Is it JSON Lines?")
                return


def _parse(element: bytes) -> object:
    """Return the row of an element; of a member of an object, its value with the key as `__key__`."""
    value = parse_line(element)
    if isinstance(value, MalformedRowError) and element.startswith(b'"'):
        member = parse_line(b"{" + element + b"}")
        if isinstance(member, dict) and len(member) == 1:
            ((key, row),) = member.items()
            return {"__key__": key} | row if isinstance(row, dict) else row
    return value


def _leading_lines(buffer: bytes, begin: int) -> int:
    """Return the number of line ends between a place and the first character that is no whitespace."""
    rest = buffer[begin : begin + 65536]
    return rest[: len(rest) - len(rest.lstrip())].count(b"\n")
