"""What people hand over as an image -> encoded bytes under their content hash, as a served judge takes them."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import DropReason

if TYPE_CHECKING:
    import PIL.Image

Picture = Union["PIL.Image.Image", bytes, str, Path, Mapping[str, Any]]
"""Pixels, encoded bytes, a path or URI, a `data:` URL, a `sha256:` reference, or `{"bytes": ..., "path": ...}`
as Hugging Face data sets keep an image that is not decoded."""

_PREFIX = "sha256:"


class ImageUploads:
    """The images of one call, each read and encoded once, however many items show it."""

    def __init__(self, limits: ImageLimits | None = None) -> None:
        self.encoded: dict[str, bytes] = {}
        """Reference (`sha256:...`) -> encoded bytes."""
        self._limits = limits or ImageLimits()
        # The objects are kept beside their references: an id is only good while its object lives.
        self._seen: dict[int, tuple[Picture, str]] = {}

    def reference(self, picture: Picture) -> str:
        """The image's `sha256:` reference. Raises ImageError where it cannot be had or is over the limits.

        A reference is given back as it is: its image is taken to be with the server already.
        """
        if isinstance(picture, str) and picture.startswith(_PREFIX):
            return picture
        if (seen := self._seen.get(id(picture))) is not None:
            return seen[1]
        data = _encode(picture, self._limits)
        if len(data) > self._limits.max_bytes:
            raise ImageError(DropReason.IMAGE_TOO_LARGE, f"image: {len(data)} bytes, limit {self._limits.max_bytes}")
        name = _PREFIX + hashlib.sha256(data).hexdigest()
        self.encoded[name] = data
        self._seen[id(picture)] = (picture, name)
        return name


def _encode(picture: Picture, limits: ImageLimits) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Mapping):
        if picture.get("bytes"):
            return bytes(picture["bytes"])
        if picture.get("path"):
            return images.fetch(str(picture["path"]), limits)
        raise ImageError(DropReason.IMAGE_MISSING, "image: a mapping with neither `bytes` nor `path`")
    if isinstance(picture, str | Path):
        return images.fetch(str(picture), limits)
    return _png(picture)


def _png(image: "PIL.Image.Image") -> bytes:
    if not hasattr(image, "convert"):
        raise ImageError(DropReason.IMAGE_UNREADABLE, f"image: cannot take a {type(image).__name__}")
    target = io.BytesIO()
    # Lossless, and quick rather than small: it is sent once.
    (image if image.mode in ("RGB", "L") else image.convert("RGB")).save(target, "PNG", compress_level=1)
    return target.getvalue()
