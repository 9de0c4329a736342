"""Containers: how the rows of a data set lie in files. The base class, the table, and the recognition of a file.

A container yields raw rows with their numbers, and may split a file into pieces that are read by different tasks. To
add one, write a subclass of `Container` in a file of `containers/` and add a line to `CONTAINERS`, or name it in a
recipe as `source: package.module:Name`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlgenrm_ray import plugins
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.curation.sources.values import MalformedRowError
from vlgenrm_ray.errors import InputError

_PACKAGE = "vlgenrm_ray.curation.sources.containers"
CONTAINERS = {
    "jsonl": f"{_PACKAGE}.json_lines:JsonLines",
    "json": f"{_PACKAGE}.json_array:JsonArray",
    "parquet": f"{_PACKAGE}.parquet:Parquet",
    "arrow": f"{_PACKAGE}.arrow_files:ArrowFiles",
    "csv": f"{_PACKAGE}.delimited_text:DelimitedText",
    "webdataset": f"{_PACKAGE}.webdataset:WebDataset",
}
"""Container -> import path of its class."""
_CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePiece:
    """A part of a file that one task reads. Containers that split files derive from it."""

    file: DataFile

    @property
    def is_whole_file(self) -> bool:
        """True if the piece is read from the beginning of its file to the end."""
        return True


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a file."""

    number: int
    """Place within the piece, from 0: lines in text files, rows elsewhere."""
    value: object
    """A mapping of column names to values. Anything else is malformed; an exception says why it could not be read."""


BLANK = object()
"""Value of a blank line, which is no row but is counted."""


class Container:
    """Base class of containers.

    The simplest one defines `suffixes` and `rows`; its files are read whole, one file per task. A container whose files
    can be split also overrides `split`, `read` and `digest`.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of its files, in lower case."""
    title: ClassVar[str] = ""
    """Name in reports; default: the name of the class."""
    unit: ClassVar[str] = "row"
    """Unit of `RawRow.number`: `row` or `line`."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        """Set the settings `pool.options`, for a container of your own."""
        self.options = dict(options or {})

    def recognise(self, file: DataFile, head: bytes) -> str:
        """Return why a file is of this container, or "" if it is not.

        Args:
            file: The file.
            head: First bytes of its content, decompressed.
        """
        return f"suffix {file.suffix}" if file.suffix in self.suffixes else ""

    def rows(self, file: DataFile) -> Iterator[object]:
        """Yield the rows of a file: mappings of column names to values. Anything else is a malformed row."""
        raise NotImplementedError(f"{type(self).__name__} must define rows, or split and read")

    def split(self, file: DataFile) -> Sequence[Any]:
        """Split a file into pieces (`FilePiece`), in its order. Runs in the driver. Raises InputError."""
        return [FilePiece(file=file)]

    def read(self, piece: Any) -> Iterator[RawRow]:
        """Read a piece of `split`."""
        rows = iter(self.rows(piece.file))
        number = 0
        while True:
            try:
                value = next(rows)
            except StopIteration:
                return
            # The rest of the file cannot be read, but the rows before it can be used.
            except Exception as error:
                yield RawRow(number, _unreadable(error))
                return
            yield RawRow(number, value)
            number += 1

    def first_number(self, piece: Any) -> int:
        """Return the number, from 1, of a piece's first line or row in its file."""
        return 1

    def digest(self, piece: Any) -> str:
        """Return a hash of a piece's content; by default that of the stored bytes of its file."""
        content = hashlib.sha256()
        with piece.file.open() as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                content.update(chunk)
        return content.hexdigest()

    def num_rows(self, piece: Any) -> int | None:
        """Return the number of rows of a piece if the file states it, else None."""
        return None


def _unreadable(error: Exception) -> MalformedRowError:
    if isinstance(error, MalformedRowError):
        return error
    return MalformedRowError(f"the file cannot be read from here on: {type(error).__name__}: {error}")


def load_container(name: str, options: Mapping[str, Any] | None = None) -> Container:
    """Return the container of a name in `CONTAINERS`. Raises ConfigError for an import path that cannot be imported."""
    container: Container = plugins.load(name, CONTAINERS, "pool.source")(options)
    return container


def known_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all containers."""
    return tuple(dict.fromkeys(suffix for name in CONTAINERS for suffix in load_container(name).suffixes))


_ZIP = b"PK\x03\x04"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""Byte order marks."""


def recognise(file: DataFile, preferred: str = "") -> tuple[str, str]:
    """Return the container of a file by its content and name, and the reason.

    Args:
        file: The file.
        preferred: Container that is taken if the file is of it, even if another one fits as well.

    Raises:
        InputError: The file cannot be read, or is of no known container.
    """
    head = file.head()
    if head.startswith(_LFS_POINTER):
        raise InputError(
            f"pool.path: {file.uri!r} is a pointer of Git LFS, not the data; fetch that with `git lfs pull`"
        )
    if head.startswith(_UTF16):
        raise InputError(f"pool.path: {file.uri!r} is a text in UTF-16; save it as UTF-8")
    names = [preferred, *CONTAINERS] if preferred else list(CONTAINERS)
    for name in names:
        if reason := load_container(name).recognise(file, head):
            return name, reason
    shown = head[:24]
    if head.startswith(_ZIP):
        raise InputError(f"pool.path: {file.uri!r} is a zip archive; unpack it, and give the folder or a file in it")
    raise InputError(
        f"pool.path: {file.uri!r} is of no known format (it begins with {shown!r}); give JSON Lines, a JSON array, "
        "Parquet, CSV or TSV, a Hugging Face data set, or a WebDataset tar, plain or compressed"
    )
