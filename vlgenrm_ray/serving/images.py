"""Images as requests name them -> encoded bytes, kept by content hash so that each need be sent only once."""

import base64
import binascii
import hashlib
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import ConfigError, DropReason

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_DATA_URL = re.compile(r"data:image/[\w.+-]+(;[\w=-]+){0,8};base64,", re.IGNORECASE)
_NETWORK = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LONGEST_PATH = 4096
"""Characters; Linux opens none longer."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An image as it was encoded."""

    sha256: str
    data: bytes


class ImageStore:
    """Encoded images in memory, the longest unused ones given up for new ones. Safe for several threads."""

    def __init__(self, limits: ImageLimits, *, max_bytes: int, roots: Sequence[str] = ()) -> None:
        """`max_bytes`: of all images together. `roots`: folders below which files may be named.

        Raises ConfigError for a root that is no folder.
        """
        self.limits = limits
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._roots = [_real_folder(root) for root in roots]
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes) -> Stored:
        """Keep an encoded image. Its pixels are looked at by whoever decodes it. Raises ImageError."""
        if len(data) > self.limits.max_bytes:
            raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{len(data)} bytes, limit {self.limits.max_bytes}")
        if images.suffix(data) is None:
            raise ImageError(DropReason.IMAGE_UNREADABLE, f"not an image in one of {', '.join(images.FORMATS)}")
        stored = Stored(hashlib.sha256(data).hexdigest(), data)
        with self._lock:
            if stored.sha256 not in self._images:
                self.num_bytes += len(data)
            self._images[stored.sha256] = data
            self._images.move_to_end(stored.sha256)
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= len(self._images.popitem(last=False)[1])
        return stored

    def resolve(self, reference: str) -> Stored:
        """The image that a request names: `sha256:...`, a data URL, a file below a root, or base64.

        Raises ImageError. Nothing is ever fetched from a network.
        """
        if match := _SHA256.fullmatch(reference):
            with self._lock:
                data = self._images.get(match[1])
                if data is None:
                    raise ImageError(DropReason.IMAGE_MISSING, f"unknown image {match[1][:12]}...; send it once more")
                self._images.move_to_end(match[1])
            return Stored(match[1], data)
        if match := _DATA_URL.match(reference):
            return self.add(_decode(reference[match.end() :]))
        if (path := self._file(reference)) is not None:
            return self.add(self._read(path))
        return self.add(_decode(reference))

    def _file(self, reference: str) -> Path | None:
        """The path that is named, None where the reference is no path. Raises ImageError where it is out of bounds."""
        if reference.startswith("file://"):
            try:
                return Path(unquote(urlparse(reference).path))
            # Half an IPv6 address, for instance, where a host may stand.
            except ValueError:
                raise ImageError(DropReason.IMAGE_UNREADABLE, "not the address of a file") from None
        if _NETWORK.match(reference[:64]):
            raise ImageError(
                DropReason.IMAGE_MISSING, "addresses are not fetched; send the image, or a path it lies at"
            )
        # Base64 may begin with a slash as well (JPEG does), but has no dot.
        return Path(reference) if reference.startswith("/") and "." in reference[:4096] else None

    def _read(self, path: Path) -> bytes:
        outside = ImageError(DropReason.IMAGE_OUTSIDE_ROOT, "the file is not below a folder that the operator allowed")
        # Before the disk is touched: following a huge path takes its length squared.
        if not self._roots or len(str(path)) > _LONGEST_PATH or ".." in path.parts:
            raise outside
        try:
            real = Path(os.path.realpath(path, strict=True))
        # Whether a file outside exists is nobody's business: every failure reads the same.
        except (OSError, ValueError):
            raise outside from None
        if not any(real.is_relative_to(root) for root in self._roots):
            raise outside
        # Not blocked by a pipe, nor led elsewhere by a link put there since.
        try:
            with open(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise outside
                if status.st_size > self.limits.max_bytes:
                    detail = f"{status.st_size} bytes, limit {self.limits.max_bytes}"
                    raise ImageError(DropReason.IMAGE_TOO_LARGE, detail)
                return file.read(self.limits.max_bytes + 1)
        except OSError:
            raise outside from None


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            DropReason.IMAGE_UNREADABLE, "neither sha256:<64 hex digits>, a data URL, base64, nor an allowed path"
        ) from None


def _real_folder(root: str) -> Path:
    real = Path(os.path.realpath(root))
    if not real.is_dir():
        raise ConfigError(f"image_roots: {root!r} is no folder here")
    return real
