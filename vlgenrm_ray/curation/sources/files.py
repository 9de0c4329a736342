"""The files that `pool.path` names: one file, a folder of them or a pattern, on this machine or behind a URI."""

import fnmatch
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One data file."""

    uri: str
    name: str
    """As rows are named after it: the path below the folder that was given."""
    size: int

    @property
    def folder(self) -> str:
        """Where relative paths in the file begin."""
        return self.uri.rpartition("/")[0]

    def open(self) -> "pa.NativeFile":
        """The file, for random reading of bytes."""
        import pyarrow.fs

        files, path = pyarrow.fs.FileSystem.from_uri(self.uri)
        return files.open_input_file(path)

    def reader(self) -> io.BufferedReader:
        """The file, for reading line by line."""
        return io.BufferedReader(self.open())


def find(path: str, suffixes: tuple[str, ...]) -> list[DataFile]:
    """The files that `path` names, in name order. Raises InputError if there are none."""
    import pyarrow as pa
    import pyarrow.fs

    address = path if urlparse(path).scheme else os.path.abspath(os.path.expanduser(path))
    try:
        files, inner = pyarrow.fs.FileSystem.from_uri(address)
        folder, _, pattern = inner.rpartition("/")
        info = files.get_file_info(inner)
        if info.type == pyarrow.fs.FileType.File:
            found, base = [info], folder
        elif info.type == pyarrow.fs.FileType.Directory:
            selector = pyarrow.fs.FileSelector(inner, recursive=True)
            found, base = [i for i in files.get_file_info(selector) if i.path.endswith(suffixes)], inner
        else:
            selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
            found, base = [i for i in files.get_file_info(selector) if fnmatch.fnmatch(i.base_name, pattern)], folder
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"pool.path: {path!r} cannot be read ({error}); check the address and its credentials"
        ) from error
    found = sorted((i for i in found if i.type == pyarrow.fs.FileType.File), key=lambda i: str(i.path))
    if not found:
        raise InputError(
            f"pool.path: {path!r} names no file; give a {' or '.join(suffixes)} file, a folder with such files, "
            "or a pattern (relative paths begin in the working directory)"
        )
    root = address[: len(address) - len(inner)]
    return [DataFile(uri=root + i.path, name=i.path[len(base) :].lstrip("/"), size=i.size) for i in found]
