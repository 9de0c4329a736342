"""Pictures of tasks: decoded once, held within bounds, and let go of whatever becomes of the task."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_examples import png

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.serving.images import Stored
from vlgenrm_ray.serving.pictures import LateError, Pictures

SIDE = 64
ONE = SIDE * SIDE
"""Pixels of a picture of these tests; the fewest that count."""
LARGE = 300
"""A side from which a thread decodes."""


def stored(shade: int, side: int = SIDE) -> Stored:
    data = png(shade, side)
    return Stored(hashlib.sha256(data).hexdigest(), data)


BROKEN = Stored("b" * 64, png(7)[:40])


def pictures(room: int = 4 * ONE, kept: int = 4 * ONE) -> Pictures:
    return Pictures(ImageLimits(), room=room, kept=kept)


def later(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def look(held: Pictures, *several: Stored, hold_s: float = 0.0) -> list[tuple[int, ...]]:
    """The first pixel of each picture of a task that takes so long."""
    async with held.shown(several, later()) as shown:
        await asyncio.sleep(hold_s)
        return [picture.getpixel((0, 0)) for picture in shown]  # type: ignore[misc]


class Decoding:
    """What is decoded, and when it may go on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._decode = images.decode

    def __call__(self, data: bytes, limits: ImageLimits, name: str = "image") -> PIL.Image.Image:
        self.names.append(hashlib.sha256(data).hexdigest())
        assert self.go_on.wait(10.0)
        return self._decode(data, limits, name)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoding]:
    found = Decoding()
    monkeypatch.setattr("vlgenrm_ray.data.images.decode", found)
    yield found
    found.go_on.set()


@pytest.mark.parametrize("side", [SIDE, LARGE])
def test_a_picture_is_decoded_once_however_many_tasks_show_it(side: int, decoding: Decoding) -> None:
    async def run() -> None:
        held, picture = pictures(room=10**6, kept=10**6), stored(9, side)
        seen = await asyncio.gather(*(look(held, picture, picture) for _ in range(20)))
        assert seen == [[(9, 0, 0)] * 2] * 20
        await look(held, picture)
        assert decoding.names == [picture.sha256]

    asyncio.run(run())


def test_pictures_keep_their_order() -> None:
    seen = asyncio.run(look(pictures(), stored(1), stored(2), stored(1), stored(3)))
    assert [shade for shade, *_ in seen] == [1, 2, 1, 3]


@given(tasks=st.lists(st.lists(st.integers(0, 7), max_size=3, unique=True), max_size=12), room=st.integers(3, 6))
@settings(max_examples=30, deadline=None)
def test_there_are_never_more_pixels_than_room(tasks: list[list[int]], room: int) -> None:
    several = [stored(shade) for shade in range(8)]
    most = 0

    async def run() -> None:
        held = pictures(room=room * ONE, kept=2 * ONE)

        async def task(shades: list[int]) -> list[int]:
            nonlocal most
            async with held.shown([several[shade] for shade in shades], later()) as shown:
                most = max(most, held.num_pixels)
                await asyncio.sleep(0)
                return [picture.getpixel((0, 0))[0] for picture in shown]  # type: ignore[index]

        assert await asyncio.gather(*(task(shades) for shades in tasks)) == tasks
        assert held.num_pixels <= 2 * ONE, "kept for tasks to come"

    asyncio.run(run())
    assert most <= room * ONE


def test_the_longest_unused_are_given_up_and_those_in_use_never(decoding: Decoding) -> None:
    async def run() -> None:
        held, (a, b, c, d) = pictures(room=3 * ONE), (stored(shade) for shade in range(4))
        async with held.shown([a], later()):
            for picture in (b, c, b, d, b, a, c):
                await look(held, picture)
        assert decoding.names == [picture.sha256 for picture in (a, b, c, d, c)]

    asyncio.run(run())


def test_a_task_larger_than_the_room_goes_alone() -> None:
    async def run() -> None:
        held, several = pictures(room=2 * ONE), [stored(shade) for shade in range(4)]
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(held.shown([several[0]], later()))
            alone = asyncio.ensure_future(look(held, *several[1:], hold_s=0.02))
            await asyncio.sleep(0.02)
            assert held.num_pixels == ONE, "it waits until nothing else is shown"
        after = asyncio.ensure_future(look(held, several[0]))
        assert len(await alone) == 3
        assert not after.done(), "and the next until it is over"
        await after
        assert held.num_pixels <= 2 * ONE

    asyncio.run(run())


def test_two_tasks_of_several_pictures_never_wait_for_each_other() -> None:
    async def run() -> None:
        held, (a, b) = pictures(room=2 * ONE), (stored(1, LARGE), stored(2, LARGE))
        async with asyncio.timeout(10.0):
            await asyncio.gather(*(look(held, *order) for order in ((a, b), (b, a)) * 5))

    asyncio.run(run())


def test_waiting_for_room_ends_with_the_deadline() -> None:
    async def run() -> None:
        held = pictures(room=ONE)
        async with held.shown([stored(1)], later()):
            with pytest.raises(LateError, match="deadline"):
                async with held.shown([stored(2)], later(0.02)):
                    raise AssertionError("there is no room")
        assert await look(held, stored(2)) == [(2, 0, 0)]

    asyncio.run(run())


@pytest.mark.parametrize("side", [SIDE, LARGE])
def test_a_decode_that_fails_harms_its_takers_and_is_not_kept(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, decode = True, images.decode
    good, bad = stored(1, side), stored(2, side)

    def decoded(data: bytes, limits: ImageLimits) -> PIL.Image.Image:
        if failing and data == bad.data:
            raise ImageError(DropReason.IMAGE_UNREADABLE, "out of luck")
        return decode(data, limits)

    monkeypatch.setattr("vlgenrm_ray.data.images.decode", decoded)

    async def run() -> None:
        nonlocal failing
        held = pictures(room=10**6, kept=10**6)
        asked = [look(held, good), look(held, bad), look(held, good, bad), look(held, good)]
        first, alone, beside, last = await asyncio.gather(*asked, return_exceptions=True)
        assert first == last == [(1, 0, 0)]
        assert isinstance(alone, ImageError)
        assert isinstance(beside, ImageError)
        assert "(image 2 of 2)" in beside.detail
        assert held.num_pixels == side * side
        failing = False
        assert await look(held, bad) == [(2, 0, 0)]

    asyncio.run(run())


def test_what_is_no_picture_takes_no_room() -> None:
    async def run() -> None:
        held = pictures()
        with pytest.raises(ImageError):
            await look(held, stored(1), BROKEN)
        with pytest.raises(ImageError):
            await look(held, Stored("c" * 64, b"no image"))
        assert await look(held, *(stored(shade) for shade in range(4))) == [(shade, 0, 0) for shade in range(4)]

    asyncio.run(run())


def test_who_is_cancelled_lets_go_and_ends_nothing_for_the_others(decoding: Decoding) -> None:
    async def run() -> None:
        held, picture, other = pictures(room=LARGE * LARGE), stored(1, LARGE), stored(2, LARGE)
        decoding.go_on.clear()
        gone, stays = (asyncio.ensure_future(look(held, picture)) for _ in range(2))
        waiting = [asyncio.ensure_future(look(held, other)) for _ in range(2)]
        while not decoding.names:
            await asyncio.sleep(0.005)
        gone.cancel()
        waiting[0].cancel()
        await asyncio.sleep(0.02)
        assert held.num_pixels == LARGE * LARGE
        decoding.go_on.set()
        assert await stays == [(1, 0, 0)]
        assert await waiting[1] == [(2, 0, 0)]
        assert decoding.names == [picture.sha256, other.sha256]

    asyncio.run(run())


def test_a_thread_that_nobody_waits_for_any_more_still_takes_its_room(decoding: Decoding) -> None:
    async def run() -> None:
        held, picture = pictures(room=LARGE * LARGE), stored(1, LARGE)
        decoding.go_on.clear()
        gone = asyncio.ensure_future(look(held, picture))
        while not decoding.names:
            await asyncio.sleep(0.005)
        gone.cancel()
        next_one = asyncio.ensure_future(look(held, stored(2, LARGE)))
        await asyncio.sleep(0.02)
        assert (held.num_pixels, len(decoding.names)) == (LARGE * LARGE, 1)
        decoding.go_on.set()
        assert await next_one == [(2, 0, 0)]

    asyncio.run(run())


def test_a_picture_of_many_bytes_is_looked_at_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    decode = images.decode

    def decoded(data: bytes, limits: ImageLimits) -> PIL.Image.Image:
        threads.append(threading.current_thread())
        return decode(data, limits)

    monkeypatch.setattr("vlgenrm_ray.data.images.decode", decoded)
    heavy = png(1) + bytes(300_000)
    asyncio.run(look(pictures(), Stored("a" * 64, heavy)))
    asyncio.run(look(pictures(), stored(1)))
    assert [thread is threading.main_thread() for thread in threads] == [False, True]
