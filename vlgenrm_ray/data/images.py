"""Images: fetched, checked against limits, decoded, and stored by content. No other module opens an image.

    uri -> fetch -> bytes -> decode -> RGB image         `probe` does all of it once and returns an `ImageRef`

Policy, learner, judge and experts see the pixels of `pixels.to_rgb`, whatever the image's format and mode. Every
problem is an `ImageError` with the reason for which its row is dropped.
"""

import base64
import errno
import hashlib
import io
import os
import re
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pydantic import Field

from vlgenrm_ray.data import addresses
from vlgenrm_ray.data.files import writing
from vlgenrm_ray.data.filesystems import open_filesystem
from vlgenrm_ray.data.pixels import to_rgb
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
_SHORTEST_BASE64 = 64
"""Shorter texts are paths: no image of a usable size is so short in base64."""
_URL_SAFE = str.maketrans("-_", "+/")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_NO_FILE = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP", "EINVAL", "EILSEQ", "ENXIO", "ENODEV")
)
"""Errors of a path that names no image. Any other error of the system is a fault of the storage or the network."""
_NO_ACCESS = frozenset((errno.EACCES, errno.EPERM))
_NO_ACCESS_TEXT = re.compile(r"ACCESS_DENIED|Forbidden|Unauthori[sz]ed|\b40[13]\b|credentials", re.IGNORECASE)
_RETRY_WAITS_S = (0.5, 1.0, 2.0)
"""Seconds between the attempts to reach an image."""
_MAX_WAITING_IMAGES = 3
"""Unreachable images in a row after which a process no longer waits; a dead store would cost a wait per image."""


class ImageLimits(Settings):
    """Limits that an image must be within before it is decoded."""

    max_bytes: int = 32 * 1024 * 1024
    """Largest size of the encoded image, in bytes."""
    max_pixels: int = 64 * 1024 * 1024
    """Largest width times height, in pixels."""
    min_side: int = 8
    """Smallest width and height, in pixels."""
    max_aspect_ratio: float = Field(default=200.0, ge=1.0)
    """Largest ratio of the longer to the shorter side. The image processors of Qwen-VL refuse more than 200."""


class ImageError(ValueError):
    """An image that cannot be used, with the reason for which its row is dropped."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail

    def among(self, index: int, num_images: int) -> "ImageError":
        """Return the error with "(image <index + 1> of <num_images>)" added to its detail."""
        if num_images == 1:
            return self
        return ImageError(self.reason, f"{self.detail} (image {index + 1} of {num_images})")


# -- bytes ---------------------------------------------------------------------------------------------------------


def fetch(uri: str, limits: ImageLimits) -> bytes:
    """Return the encoded bytes of an image.

    Args:
        uri: A path, `file://`, any `scheme://` that `filesystems` opens (`s3://`, `gs://`, `az://`, ...), or a `data:`
            URL. Network addresses (`http`, `https`, `ftp`) are not fetched.
        limits: Limits of the image.

    A fault that may pass, such as a lost connection or a stale NFS handle, is retried for a few seconds.

    Raises:
        ImageError: The image is missing, too large, or not fetched; `image_unreachable` if the storage is at fault.
    """
    if is_data_url(uri):
        return decode_data_url(uri, limits)
    name = addresses.shorten(uri)
    if addresses.scheme(uri) in ("http", "https", "ftp"):
        raise ImageError(DropReason.IMAGE_MISSING, f"{name}: network addresses are not fetched; store the image first")
    waits = iter(_RETRY_WAITS_S if _reach.num_unreachable < _MAX_WAITING_IMAGES else ())
    while True:
        try:
            path = addresses.local_path(uri)
            data = read_file(path, limits, name) if path is not None else _fetch_remote(uri, limits)
        except ImageError:
            raise
        # Errors are of many types: addresses with a NUL or half a surrogate pair, an unknown scheme, each store's own.
        except Exception as error:
            reason, may_pass = _classify(error, is_remote=addresses.scheme(uri) not in ("", "file"))
            if may_pass and (wait := next(waits, None)) is not None:
                time.sleep(wait)
                continue
            _reach.num_unreachable += reason is DropReason.IMAGE_UNREACHABLE
            detail = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise ImageError(reason, f"{name}: {detail}") from error
        _reach.num_unreachable = 0
        return data


class _Reach:
    """State of the storage as this process sees it."""

    num_unreachable = 0
    """Images in a row that stayed unreachable."""


_reach = _Reach()


def _classify(error: Exception, *, is_remote: bool) -> tuple[DropReason, bool]:
    """Tell an image that does not exist from one that cannot be reached.

    Returns:
        The reason, and True if another attempt soon may succeed.
    """
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError) or error.errno in _NO_FILE:
            return DropReason.IMAGE_MISSING, False
        is_refused = error.errno in _NO_ACCESS or (is_remote and bool(_NO_ACCESS_TEXT.search(str(error))))
        return DropReason.IMAGE_UNREACHABLE, not is_refused
    if isinstance(error, ImportError):  # The package for the address' scheme is not installed on this node.
        return DropReason.IMAGE_UNREACHABLE, False
    # Clients of stores have errors of their own for a lost connection; a wrong address is a ValueError.
    if is_remote and not isinstance(error, (ValueError, NotImplementedError)):
        return DropReason.IMAGE_UNREACHABLE, not _NO_ACCESS_TEXT.search(str(error))
    return DropReason.IMAGE_MISSING, False


def read_file(path: str | Path, limits: ImageLimits, name: str, *, follow_links: bool = True) -> bytes:
    """Return the content of a regular file. A pipe or device is refused; it could block, or never end.

    Args:
        path: Local path.
        limits: Limits of the image.
        name: Name of the image in messages.
        follow_links: False to refuse a path that is a symbolic link.

    Raises:
        ImageError: The file is larger than `limits.max_bytes`, or not a regular one.
        OSError: The file cannot be read.
        ValueError: The text is not a valid path.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(DropReason.IMAGE_MISSING, f"{name}: not a regular file")
        # Files of /proc and growing ones have more bytes than their size says.
        data = b"" if status.st_size > limits.max_bytes else file.read(limits.max_bytes + 1)
    if (num_bytes := max(status.st_size, len(data))) > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{name}: {num_bytes} bytes, limit {limits.max_bytes}")
    return data


def _fetch_remote(uri: str, limits: ImageLimits) -> bytes:
    import pyarrow.fs

    name = addresses.shorten(uri)
    files, path = open_filesystem(uri)
    info = files.get_file_info(path)
    if info.type != pyarrow.fs.FileType.File:
        raise ImageError(DropReason.IMAGE_MISSING, f"{name}: no such file")
    if info.size > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{name}: {info.size} bytes, limit {limits.max_bytes}")
    with files.open_input_stream(path) as stream:
        return bytes(stream.read())


def is_data_url(text: str) -> bool:
    """Return True if a text is a `data:` URL (RFC 2397)."""
    return text[:5].lower() == "data:"


def decode_data_url(url: str, limits: ImageLimits) -> bytes:
    """Return the bytes of a base64 `data:` URL, whatever media type it names. Raises ImageError."""
    head, _, payload = url.partition(",")
    if not head.lower().endswith(";base64"):
        raise ImageError(DropReason.IMAGE_UNREADABLE, "image: a data URL that is not base64")
    return decode_base64(unquote(payload) if "%" in payload else payload, limits)


def decode_base64(text: str, limits: ImageLimits) -> bytes:
    """Return the bytes of base64 (RFC 4648) in the usual or the URL-safe alphabet.

    Line breaks and blanks are ignored, and the padding may be missing.

    Raises:
        ImageError: The text is not base64, or too long for `limits.max_bytes`.
    """
    # Longer than the bytes in base64 with line breaks, so that no memory is spent on decoding it.
    if len(text) > limits.max_bytes * 1.5 + 64:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"image: base64 of more than {limits.max_bytes} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = _decode_loose_base64(text)
    if len(data) > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"image: {len(data)} bytes, limit {limits.max_bytes}")
    return data


def _decode_loose_base64(text: str) -> bytes:
    compact = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    if stray := _NOT_BASE64.search(compact):
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"image: not base64: {stray[0]!r} at character {stray.start()}")
    if len(compact) % 4 == 1:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"image: truncated base64: {len(compact)} characters")
    return base64.b64decode(compact + "=" * (-len(compact) % 4))


def is_base64_image(text: str) -> bool:
    """Return True if a text begins like an image in base64. A long path may be valid base64, but not of an image."""
    head = "".join(text[:64].split())[:32]
    try:
        return len(text) >= _SHORTEST_BASE64 and suffix(_decode_loose_base64(head)) is not None
    except ImageError:
        return False


# -- pixels --------------------------------------------------------------------------------------------------------


def decode(data: bytes, limits: ImageLimits, name: str = "image", *, reduce: bool = False) -> "PIL.Image.Image":
    """Decode the first frame of an image with `to_rgb`. Raises ImageError, never a decoder's own error.

    Args:
        data: Encoded bytes.
        limits: Limits of the image.
        name: Name of the image in messages.
        reduce: Decode a JPEG of too many pixels at a half, a quarter or an eighth of its size, whichever is the largest
            within the limit; its decoder then never makes the other pixels. Not for progressive ones, whose decoder
            holds all coefficients.
    """
    with _opened(data, limits, name, reduce=reduce) as image:
        return to_rgb(image)


def size(data: bytes, limits: ImageLimits, name: str = "image", *, reduce: bool = False) -> tuple[int, int]:
    """Read width and height from the header, without decoding pixels. Arguments and errors as for `decode`."""
    with _opened(data, limits, name, reduce=reduce) as image:
        return image.size


def _reduce_jpeg(image: "PIL.Image.Image", max_pixels: int) -> None:
    """Have a JPEG of too many pixels decoded at a smaller scale, see `decode`. Other images stay as they are."""
    from PIL import JpegImagePlugin

    if not isinstance(image, JpegImagePlugin.JpegImageFile) or "progressive" in image.info:
        return
    scale = next((s for s in (1, 2, 4, 8) if -(-image.width // s) * -(-image.height // s) <= max_pixels), 8)
    if scale > 1:
        # Once: a second call would start from the smaller size.
        image.draft(None, (image.width // scale, image.height // scale))


@contextmanager
def _opened(data: bytes, limits: ImageLimits, name: str, *, reduce: bool = False) -> "Iterator[PIL.Image.Image]":
    """Open an image within limits, without decoding its pixels. Any error inside the context becomes an ImageError."""
    from PIL import Image, UnidentifiedImageError

    name = addresses.shorten(name)
    if len(data) > limits.max_bytes:
        raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{name}: {len(data)} bytes, limit {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            # Pillow warns of decompression bombs, which the limit below replaces; it is checked before pixels are
            # decoded. Other warnings are of damaged metadata, without which an image can be used.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if reduce:
                _reduce_jpeg(image, limits.max_pixels)
            pixels = image.width * image.height
            if pixels > limits.max_pixels:
                raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{name}: {pixels} pixels, limit {limits.max_pixels}")
            if min(image.size) < limits.min_side:
                raise ImageError(
                    DropReason.IMAGE_UNREADABLE,
                    f"{name}: {image.width}x{image.height}, smallest side {limits.min_side}",
                )
            if max(image.size) > limits.max_aspect_ratio * min(image.size):
                ratio = max(image.size) / min(image.size)
                detail = f"aspect ratio {ratio:.2f}, limit {limits.max_aspect_ratio:g}"
                raise ImageError(DropReason.IMAGE_UNREADABLE, f"{name}: {image.width}x{image.height}, {detail}")
            yield image
    except ImageError:
        raise
    # Its message shows the memory address of the bytes.
    except UnidentifiedImageError as error:
        detail = f"damaged, or not an image in one of {', '.join(FORMATS)}"
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"{name}: {detail}") from error
    # Decoders raise errors of many types (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"{name}: {type(error).__name__}: {error}") from error


def portable(data: bytes, limits: ImageLimits, name: str = "image") -> bytes:
    """Return encoded bytes in which other programs see the pixels of `decode`, for exports.

    Returns:
        `data` if a plain conversion to RGB gives the same pixels, else a PNG of them.

    Raises:
        ImageError: The image cannot be decoded or exceeds the limits.
    """
    pixels = decode(data, limits, name)
    with _opened(data, limits, name) as image:
        converted = image.convert("RGB")
    if converted.size == pixels.size and converted.tobytes() == pixels.tobytes():
        return data
    target = io.BytesIO()
    pixels.save(target, "PNG")
    return target.getvalue()


# -- references ----------------------------------------------------------------------------------------------------


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
    """Check encoded bytes and store them as `<folder>/<sha256>.<suffix>`, once per content.

    Several processes may store the same image at a time.

    Raises:
        ImageError: The image cannot be decoded or exceeds the limits.
        StorageFullError: The folder takes no more data.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    image = decode(data, limits, f"image {sha256[:12]}")
    path = folder / f"{sha256}.{suffix(data) or 'img'}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with writing(path, len(data), flush=False) as partial:
            partial.write_bytes(data)
    return ImageRef(uri=str(path), sha256=sha256, width=image.width, height=image.height)


def verify(ref: ImageRef, limits: ImageLimits) -> bytes:
    """Return the encoded bytes of a probed image, not decoded. Raises ImageError if it is missing or has changed."""
    data = fetch(ref.uri, limits)
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"{addresses.shorten(ref.uri)}: changed since it was probed")
    return data


def read(ref: ImageRef, limits: ImageLimits) -> "PIL.Image.Image":
    """Return the RGB pixels of a probed image. Raises ImageError if it is missing or has changed."""
    return decode(verify(ref, limits), limits, ref.uri)
