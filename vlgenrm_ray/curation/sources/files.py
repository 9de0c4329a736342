"""Data files: finding them, locally or in an object store, and opening them, also where they are compressed."""

import fnmatch
import io
import os
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, cast

from vlgenrm_ray.data import addresses
from vlgenrm_ray.data.filesystems import open_filesystem
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".lzma": "xz", ".zst": "zstd", ".zstd": "zstd"}
"""Suffix of a compressed file -> codec."""
_MAGIC = {b"\x1f\x8b\x08": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a compressed file -> codec."""
HEAD_BYTES = 64 * 1024
"""Bytes at the beginning of a file by which its format is recognised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One data file."""

    uri: str
    name: str
    """Path below the folder that was given; row ids begin with it."""
    size: int
    """Size in bytes, as stored."""
    codec: str = ""
    """`gzip`, `bz2`, `xz` or `zstd`; "" for a file that is not compressed."""

    @property
    def folder(self) -> str:
        """Folder that relative paths in the file refer to."""
        return self.uri.rpartition("/")[0]

    @property
    def suffix(self) -> str:
        """Suffix in lower case, without that of the compression: ".jsonl" for `a.JSONL.gz`."""
        stem, dot, last = self.name.rpartition("/")[2].lower().rpartition(".")
        if dot + last in COMPRESSIONS:
            _, dot, last = stem.rpartition(".")
        return dot + last if dot else ""

    def with_codec(self) -> "DataFile":
        """Return the file with the codec that its first bytes show, where its name shows none. Raises InputError."""
        if self.codec:
            return self
        head = self.head()
        return replace(self, codec=next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), ""))

    def open(self) -> "pa.NativeFile":
        """Open the stored bytes for random access."""
        files, path = open_filesystem(self.uri)
        return files.open_input_file(path)

    def reader(self) -> IO[bytes]:
        """Open the content, decompressed, for reading from beginning to end; random access if not compressed."""
        if not self.codec:
            return io.BufferedReader(self.open(), HEAD_BYTES)
        if self.codec == "xz":
            import lzma

            return cast("IO[bytes]", lzma.open(self.open()))
        import pyarrow as pa

        return io.BufferedReader(cast("Any", pa.CompressedInputStream(self.open(), self.codec)), HEAD_BYTES)

    def head(self) -> bytes:
        """Return the first bytes of the content.

        Raises:
            InputError: The file cannot be read, or is not compressed as its name says.
        """
        try:
            with self.reader() as reader:
                return reader.read(HEAD_BYTES)
        # Decompressors raise errors of their own types.
        except Exception as error:
            kind = f"not a readable {self.codec} file" if self.codec else "cannot be read"
            raise InputError(f"pool.path: {self.uri!r} is {kind} ({error}); write it again") from error


def find_files(path: str, suffixes: tuple[str, ...]) -> list[DataFile]:
    """Find the files that `pool.path` names, in name order.

    Args:
        path: A file, a folder, or a folder with a file name pattern; local or a URI.
        suffixes: Suffixes of the files to take from a folder, compressed or not.

    Raises:
        InputError: There are none, or the address cannot be read.
    """
    files = list_files(path, suffixes)
    if not is_folder(path):
        return files
    usable = [file for file in files if file.suffix in suffixes]
    if not usable:
        raise InputError(_no_file(path, suffixes))
    return usable


def is_folder(path: str) -> bool:
    """Return True if a path or URI names an existing folder."""
    import pyarrow.fs

    files, inner = open_filesystem(absolute_address(path))
    return bool(files.get_file_info(inner).type == pyarrow.fs.FileType.Directory)


def absolute_address(path: str) -> str:
    """Return a URI unchanged, and a local path as an absolute one."""
    return path if addresses.scheme(path) else os.path.abspath(os.path.expanduser(path))


def list_files(path: str, suffixes: tuple[str, ...] = ()) -> list[DataFile]:
    """List all files that a path names, in name order: one file, those of a folder, or those that match a pattern.

    Hidden files, and folders that begin with a dot, are left out.

    Args:
        path: A file, a folder, or a folder with a file name pattern; local or a URI.
        suffixes: Suffixes that the error names if there is no file.

    Raises:
        InputError: There are none, or the address cannot be read.
    """
    import pyarrow as pa
    import pyarrow.fs

    address = absolute_address(path)
    try:
        files, inner = open_filesystem(address)
        inner = inner.rstrip("/") or inner
        folder, _, pattern = inner.rpartition("/")
        info = files.get_file_info(inner)
        if info.type == pyarrow.fs.FileType.File:
            infos, base = [info], folder
        elif info.type == pyarrow.fs.FileType.Directory:
            infos, base = files.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True)), inner
        else:
            selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
            infos, base = [i for i in files.get_file_info(selector) if fnmatch.fnmatch(i.base_name, pattern)], folder
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise InputError(
            f"pool.path: {path!r} cannot be read ({error}); check the address and its credentials"
        ) from error
    infos = sorted((i for i in infos if i.type == pyarrow.fs.FileType.File), key=lambda i: str(i.path))
    root = _root(address, inner)
    data_files = []
    for info in infos:
        name = info.path[len(base) :].lstrip("/")
        if len(infos) == 1 or not any(part.startswith(".") for part in name.split("/")):
            codec = COMPRESSIONS.get("." + name.rpartition(".")[2].lower(), "")
            data_files.append(DataFile(uri=root + info.path, name=name, size=info.size or 0, codec=codec))
    if not data_files:
        raise InputError(_no_file(path, suffixes))
    return data_files


def _root(address: str, inner: str) -> str:
    """Return what precedes a file system's own paths in an address: `s3://`, `memory://`, or nothing for local ones."""
    scheme = addresses.scheme(address)
    return address[: len(address.rstrip("/")) - len(inner)] if address.rstrip("/").endswith(inner) else f"{scheme}://"


def _no_file(path: str, suffixes: tuple[str, ...]) -> str:
    kinds = " or ".join(suffixes) if suffixes else "data"
    return (
        f"pool.path: {path!r} names no file; give a {kinds} file, a folder with such files, "
        "or a pattern (relative paths refer to the working directory)"
    )


def __getattr__(name: str) -> object:
    """Return `Container` under its former name, for formats in users' packages."""
    if name == "FileFormat":
        from vlgenrm_ray.curation.sources.container import Container

        return Container
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
