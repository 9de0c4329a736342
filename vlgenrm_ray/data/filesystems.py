"""File systems by address: pyarrow's own (local, `s3://`, `gs://`, `hdfs://`, ...) and those of fsspec.

Only file and object stores are opened. Network addresses (`http`, `ftp`, `ssh`, ...) never are: an address may come
from a row of a data set, which must not make this machine contact a host of its choice.
"""

from typing import TYPE_CHECKING

from vlgenrm_ray.data import addresses

if TYPE_CHECKING:
    import pyarrow.fs

FSSPEC_SCHEMES = frozenset(
    ("abfs", "abfss", "adl", "az", "cos", "dbfs", "gcs", "hf", "memory", "obs", "oci", "oss", "r2", "swift", "tos")
)
"""Schemes that fsspec opens where pyarrow does not; each but `memory` needs its package (`adlfs`, `ossfs`, ...)."""
_NETWORK = frozenset(
    ("ftp", "ftps", "github", "git", "http", "https", "scp", "sftp", "smb", "ssh", "webdav", "webhdfs")
)


def open_filesystem(uri: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    """Return the file system of an address and the path within it.

    Args:
        uri: An absolute local path, or a URI.

    Raises:
        ValueError: The scheme is unknown or a network address.
        OSError: The store cannot be reached.
        ImportError: The package for the scheme is not installed.
    """
    import pyarrow as pa
    import pyarrow.fs

    scheme = addresses.scheme(uri)
    if scheme in _NETWORK:
        raise ValueError(f"{scheme}: network addresses are not opened; store the file first")
    if scheme in FSSPEC_SCHEMES and scheme not in ("gcs", "abfs", "abfss"):
        return _open_fsspec(scheme, uri)
    try:
        files, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, NotImplementedError):
        if scheme not in FSSPEC_SCHEMES:
            raise
        return _open_fsspec(scheme, uri)
    return files, path


def _open_fsspec(scheme: str, uri: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    import fsspec
    import pyarrow.fs

    # fsspec follows chained addresses, such as memory://a::http://host/b.
    if "::" in uri:
        raise ValueError(f"{scheme}: chained addresses are not opened; a path must not hold '::'")
    files, path = fsspec.core.url_to_fs(uri)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files)), path
