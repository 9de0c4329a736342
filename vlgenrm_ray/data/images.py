"""Images: fetched, checked against limits, decoded, and stored by content. No other module opens an image.

    uri -> fetch -> bytes -> decode -> RGB image         `probe` does all of it once and returns an `ImageRef`

Every problem is an `ImageError` with the reason for which its row is dropped.
"""

import base64
import binascii
import hashlib
import io
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import ImageRef
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that are decoded; Pillow's other decoders are disabled."""

_MAGIC = ((b"\x89PNG\r\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"BM", "bmp"))
"""First bytes of each format and its file suffix. WebP is recognised by bytes 8 to 12."""
_GREY = (128, 128, 128)


class ImageLimits(Settings):
    """Limits that an image must be within before it is decoded."""

    max_bytes: int = 32 * 1024 * 1024
    """Largest size of the encoded image, in bytes."""
    max_pixels: int = 64 * 1024 * 1024
    """Largest width times height, in pixels."""
    min_side: int = 8
    """Smallest width and height, in pixels."""


class ImageError(ValueError):
    """An image that cannot be used, with the reason for which its row is dropped."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def among(self, index: int, num_images: int) -> "ImageError":
        """Return the error with "(image <index + 1> of <num_images>)" added to its detail."""
        if num_images == 1:
            return self
        return ImageError(self.reason, f"{self.detail} (image {index + 1} of {num_images})")


def fetch(uri: str, limits: ImageLimits) -> bytes:
    """Return the encoded bytes of an image.

    Args:
        uri: A path, `file://`, any `scheme://` that pyarrow's file systems open (`s3://`, `gs://`, ...), or a `data:`
            URL. Network addresses (`http`, `https`, `ftp`) are not fetched.
        limits: Limits of the image.

    Raises:
        ImageError: The image is missing, too large, or not fetched.
    """
    if uri.startswith("data:"):
        return _from_data_url(uri, limits)
    try:
        scheme = urlparse(uri).scheme
    except ValueError as error:
        raise ImageError(DropReason.IMAGE_MISSING, f"{uri}: {error}") from error
    if scheme in ("http", "https", "ftp"):
        raise ImageError(DropReason.IMAGE_MISSING, f"{uri}: network addresses are not fetched; store the image first")
    try:
        if scheme in ("", "file"):
            path = file_path(uri)
            size = path.stat().st_size
            if size > limits.max_bytes:
                raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{uri}: {size} bytes, limit {limits.max_bytes}")
            return path.read_bytes()
        return _fetch_remote(uri, limits)
    except OSError as error:
        raise ImageError(DropReason.IMAGE_MISSING, f"{uri}: {error.strerror or error}") from error


def file_path(uri: str) -> Path:
    """Return the path of a file on this machine, named by a path or a `file://` URI.

    Characters such as blanks may be quoted (`%20`) in a URI, but many writers leave them as they are: a file of the
    literal name comes first.
    """
    if not uri.startswith("file:"):
        return Path(uri)
    literal = Path(uri.removeprefix("file:").removeprefix("//").removeprefix("localhost"))
    return literal if literal.exists() else Path(unquote(urlparse(uri).path))


def _fetch_remote(uri: str, limits: ImageLimits) -> bytes:
    import pyarrow.fs

    files, path = pyarrow.fs.FileSystem.from_uri(uri)
    info = files.get_file_info(path)
    if info.type != pyarrow.fs.FileType.File:
        raise ImageError(DropReason.IMAGE_MISSING, f"{uri}: no such file")
    if info.size > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{uri}: {info.size} bytes, limit {limits.max_bytes}")
    with files.open_input_stream(path) as stream:
        return bytes(stream.read())


def _from_data_url(url: str, limits: ImageLimits) -> bytes:
    head, _, payload = url.partition(",")
    if not head.endswith(";base64"):
        raise ImageError(DropReason.IMAGE_UNREADABLE, "image: a data URL that is not base64")
    if len(payload) // 4 * 3 - 2 > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"image: a data URL of more than {limits.max_bytes} bytes")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"image: data URL: {error}") from error


def decode(data: bytes, limits: ImageLimits, name: str = "image") -> "PIL.Image.Image":
    """Decode bytes into an RGB image, rotated as its EXIF data says. Raises ImageError, never a decoder's own error."""
    from PIL import ImageOps

    with _opened(data, limits, name) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def size(data: bytes, limits: ImageLimits, name: str = "image") -> tuple[int, int]:
    """Read width and height from the header of encoded bytes, without decoding pixels. Raises ImageError."""
    with _opened(data, limits, name) as image:
        return image.size


@contextmanager
def _opened(data: bytes, limits: ImageLimits, name: str) -> "Iterator[PIL.Image.Image]":
    """Open an image within limits, without decoding its pixels. Any error inside the context becomes an ImageError."""
    from PIL import Image

    if len(data) > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{name}: {len(data)} bytes, limit {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            # The limit below replaces Pillow's warning of decompression bombs; it is checked before pixels are decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            pixels = image.width * image.height
            if pixels > limits.max_pixels:
                raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{name}: {pixels} pixels, limit {limits.max_pixels}")
            if min(image.size) < limits.min_side:
                raise ImageError(
                    DropReason.IMAGE_UNREADABLE,
                    f"{name}: {image.width}x{image.height}, smallest side {limits.min_side}",
                )
            yield image
    except ImageError:
        raise
    # Decoders raise errors of many types (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"{name}: {type(error).__name__}: {error}") from error


def probe(uri: str, limits: ImageLimits) -> ImageRef:
    """Check that an image exists, is within limits and decodes completely. Return its reference. Raises ImageError."""
    data = fetch(uri, limits)
    image = decode(data, limits, uri)
    return ImageRef(uri=uri, sha256=hashlib.sha256(data).hexdigest(), width=image.width, height=image.height)


def blank(size: tuple[int, int]) -> "PIL.Image.Image":
    """Return a grey image of a size (width, height); it takes as many image tokens as any image of that size."""
    from PIL import Image

    return Image.new("RGB", size, _GREY)


@lru_cache(maxsize=64)
def blank_ref(width: int, height: int) -> ImageRef:
    """Return the reference of a blank image. Its URI is a `data:` URL, which every node can open."""
    out = io.BytesIO()
    blank((width, height)).save(out, "PNG")
    data = out.getvalue()
    return ImageRef(uri=data_url(data), sha256=hashlib.sha256(data).hexdigest(), width=width, height=height)


def suffix(data: bytes) -> str | None:
    """Return the file suffix of encoded bytes ("png", "jpg", ...), None if they are of no supported format."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def data_url(data: bytes) -> str:
    """Return encoded bytes as a `data:` URL (RFC 2397); of type PNG if they are of no supported format."""
    name = suffix(data) or "png"
    return f"data:image/{'jpeg' if name == 'jpg' else name};base64,{base64.b64encode(data).decode()}"


def keep(data: bytes, folder: Path, limits: ImageLimits) -> ImageRef:
    """Check encoded bytes and store them as `<folder>/<sha256>.<suffix>`, once per content. Raises ImageError.

    Several processes may store the same image at a time.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    image = decode(data, limits, f"image {sha256[:12]}")
    path = folder / f"{sha256}.{suffix(data) or 'img'}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{sha256}.{uuid.uuid4().hex}")
        partial.write_bytes(data)
        os.replace(partial, path)
    return ImageRef(uri=str(path), sha256=sha256, width=image.width, height=image.height)


def verify(ref: ImageRef, limits: ImageLimits) -> bytes:
    """Return the encoded bytes of a probed image, not decoded. Raises ImageError if it is missing or has changed."""
    data = fetch(ref.uri, limits)
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"{ref.uri}: changed since it was probed")
    return data


def read(ref: ImageRef, limits: ImageLimits) -> "PIL.Image.Image":
    """Return the RGB pixels of a probed image. Raises ImageError if it is missing or has changed."""
    return decode(verify(ref, limits), limits, ref.uri)
