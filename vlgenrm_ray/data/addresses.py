"""Addresses of files: local paths, `file://` URLs, and URIs that pyarrow's file systems open."""

import os
import re
from urllib.parse import unquote_to_bytes

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FILE_URL = re.compile(r"file:(?://(?:localhost)?(?=/)|(?=/(?!/)))", re.IGNORECASE)
_MAX_SHOWN = 160


def scheme(address: str) -> str:
    """Return the scheme of a URI in lower case, or "" for a local path.

    Only `scheme://` and `file:/` make a URI: `frame-12:30.png` and `C:\\data\\a.png` are paths.
    """
    if _FILE_URL.match(address):
        return "file"
    match = _SCHEME.match(address)
    return match[1].lower() if match else ""


def local_path(address: str) -> str | None:
    """Return the path of a local address, or None for any other URI.

    Characters such as blanks may be quoted (`%20`) in a `file://` URL, but many writers leave them as they are: a file
    of the literal name comes first.

    Raises:
        ValueError: A `file://` URL has characters that no encoding can represent.
    """
    if match := _FILE_URL.match(address):
        literal = address[match.end() :]
        return literal if os.path.exists(literal) else os.fsdecode(unquote_to_bytes(literal))
    return None if _SCHEME.match(address) else address


def shorten(address: str) -> str:
    """Return an address for a message, without the middle of a long one."""
    return address if len(address) <= _MAX_SHOWN else f"{address[: _MAX_SHOWN - 20]}...{address[-16:]}"
