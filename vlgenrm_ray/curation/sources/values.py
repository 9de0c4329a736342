"""Values of rows: what counts as missing, texts, references, ids and images in the forms of data sets."""

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlgenrm_ray.data import addresses, images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import DropReason

_NO_LIMITS = ImageLimits(max_bytes=sys.maxsize)
"""Limits of images are checked when they are opened, with the settings of the pool."""
_NETWORK = ("http", "https", "ftp")


class MalformedRowError(ValueError):
    """A row that is not a question; the message says why."""

    def __init__(self, message: str, reason: DropReason = DropReason.MALFORMED_ROW) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """An image of a row that has not been opened: its address or its encoded bytes."""

    uri: str | None = None
    data: bytes | None = None


def show(value: object) -> str:
    """Return the type and the beginning of a value, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def is_missing(value: object) -> bool:
    """Return True for None and for NaN, with which data frames fill empty cells."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def to_text(value: object, field: str) -> str:
    """Return a value as a text; numbers in digits, booleans as Yes and No, several values separated by "; ".

    Raises:
        MalformedRowError: It is an object or bytes.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, (int, float)):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, (list, tuple)) and value and not any(isinstance(v, (Mapping, list, bytes)) for v in value):
        return "; ".join(to_text(v, field) for v in value if not is_missing(v))
    raise MalformedRowError(f"{field} must be a text, not {show(value)}")


def to_id(value: object) -> str | None:
    """Return the value of an id column as a text, None if it is missing. Raises MalformedRowError for other types."""
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise MalformedRowError(f"id must be a string or an integer, not {show(value)}")
    return str(value)


def to_number(value: object) -> float | None:
    """Return a number, also one in a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_json_list(value: object) -> object:
    """Return the list that a text holds in JSON, as cells of tables do; any other value unchanged."""
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def list_images(value: object) -> list[Any]:
    """Return the images of a column: one, a list of them, or a list in JSON. Empty values are no images."""
    value = parse_json_list(value)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if not _is_empty_image(v)]


def _is_empty_image(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(is_missing(inner) or inner in ("", b"") for inner in value.values())
    return is_missing(value) or value in ("", b"")


def to_image(value: object) -> SourceImage:
    """Return an image as an address, as it is written, or as encoded bytes.

    Args:
        value: Path, URI, `data:` URL, base64, bytes, or `{bytes, path}` of Hugging Face, either of them null.

    Raises:
        MalformedRowError: The value has none of these forms.
    """
    if isinstance(value, Mapping):
        candidates = (value.get(key) for key in ("bytes", "path", "url"))
        image = next((v for v in candidates if not is_missing(v) and v not in ("", b"")), None)
        if image is None and not _is_empty_image(value):
            raise MalformedRowError(f"image must have bytes, path or url, not {', '.join(map(str, value))}")
        value = image
    if value is None or value == "":
        raise MalformedRowError("no image")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return SourceImage(data=bytes(value))
    if not isinstance(value, str):
        raise MalformedRowError(f"image must be a path, a URI, bytes or base64, not {show(value)}")
    try:
        if images.is_data_url(value):
            return SourceImage(data=images.decode_data_url(value, _NO_LIMITS))
        if images.is_base64_image(value):
            return SourceImage(data=images.decode_base64(value, _NO_LIMITS))
    except ImageError as error:
        raise MalformedRowError(error.detail) from error
    return SourceImage(uri=value)


def locate(image: SourceImage, folder: str, *, by_name: bool = False) -> SourceImage:
    """Return an image with its full address.

    Args:
        image: Image of `to_image`.
        folder: Folder or URI that relative paths refer to.
        by_name: Look for an image of a network address, which is not fetched, by its file name in `folder`.
    """
    if image.uri is None:
        return image
    path = image.uri
    if by_name and addresses.scheme(path) in _NETWORK:
        path = path.partition("?")[0].rstrip("/").rpartition("/")[2]
    is_absolute = addresses.scheme(path) or path.startswith("/")
    return SourceImage(uri=path if is_absolute else f"{folder}/{path.removeprefix('./')}")
