"""The only place that opens an image: size, format and bomb limits live here."""

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
from urllib.parse import urlparse

from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import ImageRef
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that are decoded; Pillow's other decoders stay shut."""

_MAGIC = ((b"\x89PNG\r\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"BM", "bmp"))
"""How the encoded bytes of each format begin; WebP's sign stands further in."""
_GREY = (128, 128, 128)


class ImageLimits(Settings):
    """What an image may cost before it is decoded."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 64 * 1024 * 1024
    min_side: int = 8
    """Smallest width or height, in pixels, a vision tower can use."""


class ImageError(ValueError):
    """An image that cannot be used, with the reason its row is dropped for."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def among(self, place: int, num_images: int) -> "ImageError":
        """The same, with a detail that says which of several images it is of; `place` counts from 0."""
        if num_images == 1:
            return self
        return ImageError(self.reason, f"{self.detail} (image {place + 1} of {num_images})")


def fetch(uri: str, limits: ImageLimits) -> bytes:
    """Encoded bytes of an image at a path, `file://`, any `scheme://` that pyarrow's file systems open, or in a `data:`
    address itself.

    Network addresses (`http`, `https`) are not fetched. Raises ImageError.
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
            path = Path(urlparse(uri).path if scheme else uri)
            size = path.stat().st_size
            if size > limits.max_bytes:
                raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{uri}: {size} bytes, limit {limits.max_bytes}")
            return path.read_bytes()
        return _fetch_remote(uri, limits)
    except OSError as error:
        raise ImageError(DropReason.IMAGE_MISSING, f"{uri}: {error.strerror or error}") from error


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
    """Encoded bytes -> a loaded RGB image, turned upright. Raises ImageError, never a decoder's own error."""
    from PIL import ImageOps

    with _opened(data, limits, name) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def size(data: bytes, limits: ImageLimits, name: str = "image") -> tuple[int, int]:
    """Width and height as the header of encoded bytes tells them; no pixel is decoded. Raises ImageError."""
    with _opened(data, limits, name) as image:
        return image.size


@contextmanager
def _opened(data: bytes, limits: ImageLimits, name: str) -> "Iterator[PIL.Image.Image]":
    """An image within limits, its pixels not decoded yet. Whatever goes wrong with it meanwhile is an ImageError."""
    from PIL import Image

    if len(data) > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{name}: {len(data)} bytes, limit {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning; the limit below is ours, and is checked before any pixel is decoded.
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
    # Decoders raise whatever their format inspires (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"{name}: {type(error).__name__}: {error}") from error


def probe(uri: str, limits: ImageLimits) -> ImageRef:
    """Check that the image exists, is within limits and decodes whole; keep its identity, not its pixels."""
    data = fetch(uri, limits)
    image = decode(data, limits, uri)
    return ImageRef(uri=uri, sha256=hashlib.sha256(data).hexdigest(), width=image.width, height=image.height)


def blank(size: tuple[int, int]) -> "PIL.Image.Image":
    """A grey image: nothing to see, and as many image tokens as any of that width and height."""
    from PIL import Image

    return Image.new("RGB", size, _GREY)


@lru_cache(maxsize=64)
def blank_ref(width: int, height: int) -> ImageRef:
    """Where a blank image of a size lies: in its own address, so that every node can open it."""
    out = io.BytesIO()
    blank((width, height)).save(out, "PNG")
    data = out.getvalue()
    return ImageRef(uri=data_url(data), sha256=hashlib.sha256(data).hexdigest(), width=width, height=height)


def suffix(data: bytes) -> str | None:
    """Customary file name suffix of encoded bytes ("png", "jpg", ...), None if they begin like no image we decode."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def data_url(data: bytes) -> str:
    """Encoded bytes as an RFC 2397 address, of PNG where they begin like no image we decode."""
    name = suffix(data) or "png"
    return f"data:image/{'jpeg' if name == 'jpg' else name};base64,{base64.b64encode(data).decode()}"


def keep(data: bytes, folder: Path, limits: ImageLimits) -> ImageRef:
    """Check encoded bytes and store them as `<folder>/<sha256>.<suffix>`, once however often they come.

    Safe to call from many processes at a time. Raises ImageError.
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
    """Encoded bytes of a probed image. Raises ImageError if it has vanished or changed since; decodes nothing."""
    data = fetch(ref.uri, limits)
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"{ref.uri}: changed since it was probed")
    return data


def read(ref: ImageRef, limits: ImageLimits) -> "PIL.Image.Image":
    """The pixels of a probed image, RGB. Raises ImageError if it has vanished or changed since."""
    return decode(verify(ref, limits), limits, ref.uri)
