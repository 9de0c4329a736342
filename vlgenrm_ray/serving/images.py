"""Images of requests: `ImageStore` keeps encoded bytes by content hash, `DecodedImages` pixels for running tasks.

A request names an image by `sha256:...`, a data URL, base64, or a path below a folder the operator allowed;
`ImageStore` resolves all of them to encoded bytes and never opens a network connection. Engines decode through
`DecodedImages`, which decodes each image once for all tasks that use it and bounds the pixels in memory.
"""

import asyncio
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cachetools import LRUCache

from vlgenrm_ray.data import addresses, images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import ConfigError, DropReason
from vlgenrm_ray.serving.limits import ByteRoom

if TYPE_CHECKING:
    import PIL.Image

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_NO_REFERENCE = "neither sha256:<64 hex digits>, a data URL, base64, nor an allowed path"
_MAX_SCHEME = 64
"""Characters at the start of a reference in which a scheme is sought."""
_MAX_PATH = 4096
"""Characters of a path; Linux opens none longer."""

_LARGE_REFERENCE = 1 << 18
"""Characters of a reference above which a thread decodes it, because that would block the event loop."""

_MAX_PIXELS = 32 * 1024 * 1024
"""Decoded pixels in memory, of 4 bytes each."""
_MAX_IDLE_PIXELS = 8 * 1024 * 1024
"""Decoded pixels that no task uses, kept because the responses to one image may come in several requests."""
_MIN_IMAGE_PIXELS = 64 * 64
"""Pixels that the smallest image counts as, because an image object takes memory beyond its pixels."""
_SMALL_PIXELS = 256 * 256
_SMALL_BYTES = 256 * 1024
"""Pixels and bytes up to which an image is decoded in the event loop, because starting a thread would take longer. Both
bounds are needed: a file of few pixels can be made slow to decode."""
_LARGE_PIXELS = 2 * 1024 * 1024
"""Pixels above which images are decoded one at a time in a process, because a decoder and the conversion to RGB take up
to three times the memory of the pixels."""
_DECODERS = ThreadPoolExecutor(4, "images")
_LARGE_DECODER = ThreadPoolExecutor(1, "large-images")


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An encoded image."""

    sha256: str
    """Hexadecimal hash of `data`."""
    data: bytes


@dataclass(slots=True)
class _ImageUsers:
    image: StoredImage
    count: int = 0
    """Items under way that use it."""


class ImageStore:
    """Encoded images in memory, least recently used ones evicted. Safe for several threads, but for `hold`."""

    def __init__(self, limits: ImageLimits, *, max_bytes: int, roots: Sequence[str] = ()) -> None:
        """Create an empty store.

        Args:
            limits: Bounds of a single image.
            max_bytes: Bound of all stored images together, and of all that `hold` returns.
            roots: Folders below which requests may name files.

        Raises:
            ConfigError: A root is not a folder.
        """
        self.limits = limits
        self._roots = [_resolve_root(root) for root in roots]
        self._images: LRUCache[str, bytes] = LRUCache(max_bytes, getsizeof=len)
        self._lock = threading.Lock()
        self._held = ByteRoom(max_bytes)
        self._in_use: dict[str, _ImageUsers] = {}

    @asynccontextmanager
    async def hold(self, references: Sequence[str], deadline: float) -> AsyncIterator[tuple[StoredImage, ...]]:
        """Resolve the images of an item and keep them while the context lasts.

        Items keep their images when the store evicts them, so those of all items are bounded as well; equal ones count
        once. Room is taken for all images of an item at once, and before they are decoded from base64 or read.

        Args:
            references: As for `resolve`.
            deadline: Event loop time until which it waits for room.

        Yields:
            The images, in order.

        Raises:
            ImageError: A reference names no image that may be used.
            TimeoutError: There was no room by the deadline.
        """
        reserved = sum(map(self._max_size, references))
        await self._held.take(reserved, deadline)
        try:
            images = tuple([await self._resolve_one(references, place) for place in range(len(references))])
        except BaseException:
            self._held.give_back(reserved)
            raise
        for image in images:
            users = self._in_use.setdefault(image.sha256, _ImageUsers(image))
            reserved -= len(image.data) if users.count == 0 else 0
            users.count += 1
        self._held.give_back(reserved)
        try:
            yield images
        finally:
            for image in images:
                users = self._in_use[image.sha256]
                users.count -= 1
                if users.count == 0:
                    del self._in_use[image.sha256]
                    self._held.give_back(len(image.data))

    def _max_size(self, reference: str) -> int:
        """Return the most bytes that an image takes in addition to those in use."""
        if match := _SHA256.fullmatch(reference):
            return 0 if match[1] in self._in_use else len(self._find(match[1]) or b"")
        is_path = bool(self._roots) and len(reference) <= _MAX_PATH
        return self.limits.max_bytes if is_path else min(len(reference) * 3 // 4 + 3, self.limits.max_bytes)

    def _find(self, sha256: str) -> bytes | None:
        if (users := self._in_use.get(sha256)) is not None:
            return users.image.data
        with self._lock:
            return self._images.get(sha256)

    async def _resolve_one(self, references: Sequence[str], place: int) -> StoredImage:
        """Resolve a reference, in a thread if that would block the event loop."""
        reference = references[place]
        try:
            if len(reference) < _LARGE_REFERENCE and (reference.startswith("sha256:") or not self._roots):
                return self.resolve(reference)
            return await asyncio.get_running_loop().run_in_executor(_DECODERS, self.resolve, reference)
        except ImageError as error:
            raise error.among(place, len(references)) from None

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored images."""
        return int(self._images.currsize)

    @property
    def max_bytes(self) -> int:
        """Bound of `num_bytes`."""
        return int(self._images.maxsize)

    def add(self, data: bytes) -> StoredImage:
        """Store an encoded image without decoding its pixels. Raise ImageError if it is too large or no image."""
        if len(data) > self.limits.max_bytes:
            raise ImageError(DropReason.IMAGE_TOO_LARGE, f"{len(data)} bytes, limit {self.limits.max_bytes}")
        if images.suffix(data) is None:
            raise ImageError(DropReason.IMAGE_UNREADABLE, f"not an image in one of {', '.join(images.FORMATS)}")
        sha256 = hashlib.sha256(data).hexdigest()
        # The same object for all who use it.
        data = self._find(sha256) or data
        # ValueError: larger than the whole store. The present request can use it all the same.
        with self._lock, suppress(ValueError):
            self._images[sha256] = data
        return StoredImage(sha256, data)

    def resolve(self, reference: str) -> StoredImage:
        """Return the image that a request names, and store it.

        Args:
            reference: `sha256:<64 hex digits>` of a stored image, a data URL, base64, or a file below a root.

        Raises:
            ImageError: The reference names no image that may be used.
        """
        if match := _SHA256.fullmatch(reference):
            if (data := self._find(match[1])) is None:
                raise ImageError(DropReason.IMAGE_MISSING, f"unknown image {match[1][:12]}...; send it once more")
            return StoredImage(match[1], data)
        if images.is_data_url(reference):
            return self.add(images.decode_data_url(reference, self.limits))
        if (path := _parse_path(reference)) is not None:
            return self.add(self._read(path))
        try:
            data = images.decode_base64(reference, self.limits)
        except ImageError as error:
            if error.reason is DropReason.IMAGE_TOO_LARGE:
                raise
            raise ImageError(error.reason, f"{_NO_REFERENCE} ({error.detail.removeprefix('image: ')})") from None
        return self.add(data)

    def _read(self, path: Path) -> bytes:
        outside = ImageError(DropReason.IMAGE_OUTSIDE_ROOT, "the file is not below a folder that the operator allowed")
        # Before the disk is touched: resolving a huge path takes time quadratic in its length.
        if not self._roots or len(str(path)) > _MAX_PATH or ".." in path.parts:
            raise outside
        try:
            real = Path(os.path.realpath(path, strict=True))
        # All failures read the same, so that a client cannot learn whether a file outside the roots exists.
        except (OSError, ValueError):
            raise outside from None
        if not any(real.is_relative_to(root) for root in self._roots):
            raise outside
        # The file may have been replaced by a link since.
        try:
            return images.read_file(real, self.limits, "image", follow_links=False)
        except ImageError as error:
            if error.reason is DropReason.IMAGE_TOO_LARGE:
                raise
            raise outside from None
        except OSError:
            raise outside from None


def _parse_path(reference: str) -> Path | None:
    """Return the path that a reference names, or None if it is no path. Raise ImageError for other URLs."""
    scheme = addresses.scheme(reference[:_MAX_SCHEME])
    if scheme == "file":
        try:
            if (path := addresses.local_path(reference)) is not None:
                return Path(path)
        # Half a surrogate pair.
        except ValueError:
            pass
        raise ImageError(DropReason.IMAGE_UNREADABLE, "not the address of a file")
    if scheme:
        raise ImageError(
            DropReason.IMAGE_MISSING, "network addresses are not fetched; send the image itself, or a path"
        )
    # Base64 may begin with a slash too (JPEG does), but has no dot.
    return Path(reference) if reference.startswith("/") and "." in reference[:_MAX_PATH] else None


def _resolve_root(root: str) -> Path:
    real = Path(os.path.realpath(root))
    if not real.is_dir():
        raise ConfigError(f"image_roots: {root!r} is not a folder on this machine; create it, or correct the path")
    return real


class DecodeTimeoutError(Exception):
    """The images of a task were not decoded by its deadline."""


@dataclass(slots=True, eq=False)
class _DecodedImage:
    sha256: str
    num_pixels: int
    pixels: "asyncio.Task[PIL.Image.Image]"
    num_users: int = 1
    """Tasks that use it, plus 1 while it is decoded: the decoding thread runs on even if those tasks end."""


class DecodedImages:
    """Decoded images of the tasks of one event loop, bounded in pixels."""

    def __init__(
        self, limits: ImageLimits, *, max_pixels: int = _MAX_PIXELS, max_idle_pixels: int = _MAX_IDLE_PIXELS
    ) -> None:
        """Create an empty cache.

        Args:
            limits: Bounds of a single image.
            max_pixels: Bound of all images, used ones included. A task that exceeds it runs alone.
            max_idle_pixels: Bound of the images that no task uses.
        """
        self.num_pixels = 0
        """Pixels in memory."""
        self._limits = limits
        self._max_pixels = max_pixels
        self._max_idle_pixels = max_idle_pixels
        self._images: dict[str, _DecodedImage] = {}
        # The images of `_images` that no task uses, least recently used first.
        self._idle: OrderedDict[str, _DecodedImage] = OrderedDict()
        self._num_idle_pixels = 0
        # Tasks wait for room in order, or a large task would starve behind small ones that overtake it.
        self._reserving = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(
        self, stored: Sequence[StoredImage], deadline: float
    ) -> "AsyncIterator[tuple[PIL.Image.Image, ...]]":
        """Decode the images of a task and keep them while the context lasts.

        Room is reserved for all of them at once, so that two tasks never wait for each other.

        Args:
            stored: Encoded images; equal ones are decoded once.
            deadline: Event loop time.

        Yields:
            The images, in order.

        Raises:
            ImageError: An image cannot be decoded.
            DecodeTimeoutError: The deadline came first.
        """
        reserved: dict[str, _DecodedImage] = {}
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    num_pixels = await self._count_pixels(stored)
                    reserved = await self._reserve({image.sha256: image for image in stored}, num_pixels)
                    decoded = [await self._wait(reserved, stored, place) for place in range(len(stored))]
            except TimeoutError:
                raise DecodeTimeoutError("no room for its images, or no time to decode them, by the deadline") from None
            yield tuple(decoded)
        finally:
            for image in reserved.values():
                self._release(image)

    async def _count_pixels(self, stored: Sequence[StoredImage]) -> dict[str, int]:
        """Return the pixels that each image counts as, by its hash."""
        num_pixels: dict[str, int] = {}
        for place, image in enumerate(stored):
            if (known := self._images.get(image.sha256)) is not None:
                num_pixels[image.sha256] = known.num_pixels
            elif image.sha256 not in num_pixels:
                try:
                    if len(image.data) <= _SMALL_BYTES:
                        width, height = images.size(image.data, self._limits, reduce=True)
                    else:
                        read_size = partial(images.size, image.data, self._limits, reduce=True)
                        width, height = await asyncio.get_running_loop().run_in_executor(_DECODERS, read_size)
                except ImageError as error:
                    raise error.among(place, len(stored)) from None
                num_pixels[image.sha256] = max(width * height, _MIN_IMAGE_PIXELS)
        return num_pixels

    async def _reserve(self, stored: dict[str, StoredImage], num_pixels: dict[str, int]) -> dict[str, _DecodedImage]:
        """Wait for room, then take all images and start to decode the missing ones, without an await in between."""
        async with self._reserving:
            while not self._make_room(num_pixels):
                self._freed.clear()
                await self._freed.wait()
            return {sha256: self._take(image, num_pixels[sha256]) for sha256, image in stored.items()}

    def _make_room(self, num_pixels: dict[str, int]) -> bool:
        """Evict idle images until the given ones fit. Return whether they do."""
        missing = sum(count for sha256, count in num_pixels.items() if sha256 not in self._images)
        for sha256 in num_pixels.keys() & self._idle.keys():
            self._idle.move_to_end(sha256)
        while self.num_pixels + missing > self._max_pixels and self._idle.keys() - num_pixels.keys():
            self._evict(next(iter(self._idle.values())))
        # The second condition lets a task that is larger than the bound run alone.
        return self.num_pixels + missing <= self._max_pixels or self._images.keys() <= num_pixels.keys()

    def _take(self, stored: StoredImage, num_pixels: int) -> _DecodedImage:
        image = self._images.get(stored.sha256)
        if image is None:
            decoding = asyncio.get_running_loop().create_task(self._decode(stored.data, num_pixels))
            image = self._images[stored.sha256] = _DecodedImage(stored.sha256, num_pixels, decoding)
            self.num_pixels += num_pixels
            decoding.add_done_callback(lambda _: self._finish(image))
        elif self._idle.pop(image.sha256, None) is not None:
            self._num_idle_pixels -= image.num_pixels
        image.num_users += 1
        return image

    async def _decode(self, data: bytes, num_pixels: int) -> "PIL.Image.Image":
        if num_pixels <= _SMALL_PIXELS and len(data) <= _SMALL_BYTES:
            return images.decode(data, self._limits, reduce=True)
        decode = partial(images.decode, data, self._limits, reduce=True)
        pool = _LARGE_DECODER if num_pixels > _LARGE_PIXELS else _DECODERS
        return await asyncio.get_running_loop().run_in_executor(pool, decode)

    async def _wait(
        self, reserved: dict[str, _DecodedImage], stored: Sequence[StoredImage], place: int
    ) -> "PIL.Image.Image":
        try:
            # A task that is cancelled must not cancel the decoding for the others.
            return await asyncio.shield(reserved[stored[place].sha256].pixels)
        except ImageError as error:
            raise error.among(place, len(stored)) from None

    def _finish(self, image: _DecodedImage) -> None:
        # A failed image takes no room and is decoded again by the next task. `exception()` is read even if no task
        # waits, or asyncio would log an exception that was never retrieved.
        if image.pixels.cancelled() or image.pixels.exception() is not None:
            self._evict(image)
        self._release(image)

    def _release(self, image: _DecodedImage) -> None:
        image.num_users -= 1
        if image.num_users or self._images.get(image.sha256) is not image:
            return
        self._idle[image.sha256] = image
        self._num_idle_pixels += image.num_pixels
        while self._num_idle_pixels > self._max_idle_pixels:
            self._evict(next(iter(self._idle.values())))
        self._freed.set()

    def _evict(self, image: _DecodedImage) -> None:
        if self._idle.pop(image.sha256, None) is not None:
            self._num_idle_pixels -= image.num_pixels
        del self._images[image.sha256]
        self.num_pixels -= image.num_pixels
        self._freed.set()
