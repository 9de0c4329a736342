"""Images for a served judge: any form of image to encoded bytes under their content hash."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.pixels import to_rgb
from vlgenrm_ray.errors import DropReason

if TYPE_CHECKING:
    import PIL.Image

ImageInput = Union["PIL.Image.Image", bytes, str, Path, Mapping[str, Any]]
"""Pixels, encoded bytes, a path or URI, a `data:` URL, base64, a `sha256:` reference, or `{"bytes": ..., "path": ...}`,
the form in which Hugging Face data sets hold an image that is not decoded."""

_PREFIX = "sha256:"


class ImageUploads:
    """The images of one call. Each is read and encoded once, however many items show it."""

    def __init__(self, limits: ImageLimits | None = None) -> None:
        self.encoded: dict[str, bytes] = {}
        """Reference (`sha256:<hex>`) -> encoded bytes."""
        self._limits = limits or ImageLimits()
        # Keeps the objects alive: the id of a collected object may be given to another.
        self._references: dict[int, tuple[ImageInput, str]] = {}

    def reference(self, image: ImageInput) -> str:
        """Return the image's `sha256:` reference, and add its bytes to `encoded`.

        A reference is returned unchanged: its image must be on the server already.

        Raises:
            ImageError: The image cannot be read or exceeds the limits.
        """
        if isinstance(image, str) and image.startswith(_PREFIX):
            return image
        if (known := self._references.get(id(image))) is not None:
            return known[1]
        try:
            data = _encode(image, self._limits)
        except ImageError:
            raise
        # A trainer's image may be wrong in any way, such as a file that was closed or is cut off.
        except Exception as error:
            detail = f"image: {type(error).__name__}: {error}"
            raise ImageError(DropReason.IMAGE_UNREADABLE, detail) from error
        if len(data) > self._limits.max_bytes:
            raise ImageError(DropReason.IMAGE_TOO_LARGE, f"image: {len(data)} bytes, limit {self._limits.max_bytes}")
        reference = _PREFIX + hashlib.sha256(data).hexdigest()
        self.encoded[reference] = data
        self._references[id(image)] = (image, reference)
        return reference


def _encode(image: Any, limits: ImageLimits) -> bytes:
    if isinstance(image, Mapping):
        data, path = image.get("bytes"), image.get("path")
        if not data and not path:
            raise ImageError(DropReason.IMAGE_MISSING, "image: a mapping with neither `bytes` nor `path`")
        image = data or str(path)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str) and images.is_base64_image(image):
        return images.decode_base64(image, limits)
    if isinstance(image, str | Path):
        return images.fetch(str(image), limits)
    if not hasattr(image, "convert"):
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"image: cannot take a {type(image).__name__}")
    target = io.BytesIO()
    # The pixels that the service would decode, so that no mode is lost on the way. Fast rather than small: an image is
    # sent once.
    to_rgb(image).save(target, "PNG", compress_level=1)
    return target.getvalue()
