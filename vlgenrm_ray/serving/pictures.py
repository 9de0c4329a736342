"""Decoded images: each decoded once however many tasks show it, and no more pixels at a time than there is room for."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.serving.images import Stored

if TYPE_CHECKING:
    import PIL.Image

_ROOM = 256 * 1024 * 1024
"""Pixels held at a time, shown ones included: a gigabyte."""
_KEPT = 64 * 1024 * 1024
"""Pixels of pictures that nothing shows any more: a group of responses to one image may come in several calls."""
_LEAST = 64 * 64
"""Pixels that the smallest picture counts as: it is more than its pixels."""
_SMALL = 256 * 256
_SMALL_BYTES = 256 * 1024
"""A picture of fewer pixels and bytes is decoded at once: a thread takes longer to begin. Both count, as a file of few
pixels can be made to take long."""


class LateError(Exception):
    """The pictures were not there by the deadline."""


@dataclass(slots=True, eq=False)
class _Held:
    name: str
    pixels: int
    picture: "asyncio.Task[PIL.Image.Image]"
    users: int = 1
    """Tasks that show it, and the decoding itself: a thread goes on when those it works for are gone."""


class Pictures:
    """The pictures of the tasks of one event loop."""

    def __init__(self, limits: ImageLimits, *, room: int = _ROOM, kept: int = _KEPT) -> None:
        """`room`: pixels held at a time. `kept`: of them, pixels of pictures that no task shows any more."""
        self.num_pixels = 0
        """Held now."""
        self._limits = limits
        self._room = room
        self._kept = kept
        self._held: dict[str, _Held] = {}
        # Those of them that no task shows, the longest unused first.
        self._idle: OrderedDict[str, _Held] = OrderedDict()
        self._num_idle = 0
        # Room is waited for in order, or a large task would wait for ever behind small ones that overtake it.
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def shown(self, several: Sequence[Stored], deadline: float) -> "AsyncIterator[tuple[PIL.Image.Image, ...]]":
        """A task's pictures, in order, held as long as the context lasts.

        Room is taken for all of them at once, so that no two tasks wait for each other; a task that is larger than
        that room goes alone. Raises ImageError; LateError where `deadline` (on the event loop's clock) comes first.
        """
        taken: dict[str, _Held] = {}
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    pixels = await self._pixels(several)
                    taken = await self._take({stored.sha256: stored for stored in several}, pixels)
                    pictures = [await self._decoded(taken, several, place) for place in range(len(several))]
            except TimeoutError:
                raise LateError("no room for its pictures, or no time to decode them, by the deadline") from None
            yield tuple(pictures)
        finally:
            for held in taken.values():
                self._let_go(held)

    async def _pixels(self, several: Sequence[Stored]) -> dict[str, int]:
        """What each picture takes of the room, by its name."""
        found: dict[str, int] = {}
        for place, stored in enumerate(several):
            if (held := self._held.get(stored.sha256)) is not None:
                found[stored.sha256] = held.pixels
            elif stored.sha256 not in found:
                try:
                    if len(stored.data) <= _SMALL_BYTES:
                        width, height = images.size(stored.data, self._limits)
                    else:
                        width, height = await asyncio.to_thread(images.size, stored.data, self._limits)
                except ImageError as error:
                    raise error.among(place, len(several)) from None
                found[stored.sha256] = max(width * height, _LEAST)
        return found

    async def _take(self, several: dict[str, Stored], pixels: dict[str, int]) -> dict[str, _Held]:
        """Hold pictures, decoding what is not held yet. After it has waited nothing can come in between."""
        async with self._turn:
            while not self._make_room(pixels):
                self._freed.clear()
                await self._freed.wait()
            return {name: self._hold(stored, pixels[name]) for name, stored in several.items()}

    def _make_room(self, pixels: dict[str, int]) -> bool:
        """Whether pictures fit in, once what nobody shows is given up for them."""
        more = sum(count for name, count in pixels.items() if name not in self._held)
        for name in pixels.keys() & self._idle.keys():
            self._idle.move_to_end(name)
        while self.num_pixels + more > self._room and self._idle.keys() - pixels.keys():
            self._give_up(next(iter(self._idle.values())))
        return self.num_pixels + more <= self._room or self._held.keys() <= pixels.keys()

    def _hold(self, stored: Stored, pixels: int) -> _Held:
        held = self._held.get(stored.sha256)
        if held is None:
            decoding = asyncio.get_running_loop().create_task(self._decode(stored.data, pixels))
            held = self._held[stored.sha256] = _Held(stored.sha256, pixels, decoding)
            self.num_pixels += pixels
            decoding.add_done_callback(lambda done: self._finished(held))
        elif self._idle.pop(held.name, None) is not None:
            self._num_idle -= held.pixels
        held.users += 1
        return held

    async def _decode(self, data: bytes, pixels: int) -> "PIL.Image.Image":
        if pixels <= _SMALL and len(data) <= _SMALL_BYTES:
            return images.decode(data, self._limits)
        return await asyncio.to_thread(images.decode, data, self._limits)

    async def _decoded(self, taken: dict[str, _Held], several: Sequence[Stored], place: int) -> "PIL.Image.Image":
        try:
            # Who goes away must not end it for the others.
            return await asyncio.shield(taken[several[place].sha256].picture)
        except ImageError as error:
            raise error.among(place, len(several)) from None

    def _finished(self, held: _Held) -> None:
        # What failed takes no room, and is tried anew by whoever comes next. Asked for its error even where nobody
        # waits: asyncio would complain of it.
        if held.picture.cancelled() or held.picture.exception() is not None:
            self._give_up(held)
        self._let_go(held)

    def _let_go(self, held: _Held) -> None:
        held.users -= 1
        if held.users or self._held.get(held.name) is not held:
            return
        self._idle[held.name] = held
        self._num_idle += held.pixels
        while self._num_idle > self._kept:
            self._give_up(next(iter(self._idle.values())))
        self._freed.set()

    def _give_up(self, held: _Held) -> None:
        if self._idle.pop(held.name, None) is not None:
            self._num_idle -= held.pixels
        del self._held[held.name]
        self.num_pixels -= held.pixels
        self._freed.set()
