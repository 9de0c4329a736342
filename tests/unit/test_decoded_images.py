"""`DecodedImages`: decoded once, bounded in pixels, released however a task ends."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_examples import png

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.serving.images import DecodedImages, DecodeTimeoutError, StoredImage

SIDE = 64
ONE = SIDE * SIDE
"""Pixels of an image of these tests, the smallest that is counted."""
LARGE = 300
"""Side of an image that is decoded in a thread."""


def stored(shade: int, side: int = SIDE) -> StoredImage:
    data = png(shade, side)
    return StoredImage(hashlib.sha256(data).hexdigest(), data)


BROKEN = StoredImage("b" * 64, png(7)[:40])


def decoded_images(max_pixels: int = 4 * ONE, max_idle_pixels: int = 4 * ONE) -> DecodedImages:
    return DecodedImages(ImageLimits(), max_pixels=max_pixels, max_idle_pixels=max_idle_pixels)


def later(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def first_pixels(cache: DecodedImages, *stored_images: StoredImage, hold_s: float = 0.0) -> list[tuple[int, ...]]:
    """The first pixel of each image of a task that takes `hold_s` seconds."""
    async with cache.hold(stored_images, later()) as pixels:
        await asyncio.sleep(hold_s)
        return [image.getpixel((0, 0)) for image in pixels]  # type: ignore[misc]


class FakeDecode:
    """Records what is decoded, and waits for `go_on`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._decode = images.decode

    def __call__(self, data: bytes, limits: ImageLimits, *, reduce: bool) -> PIL.Image.Image:
        self.names.append(hashlib.sha256(data).hexdigest())
        assert self.go_on.wait(10.0)
        return self._decode(data, limits, reduce=reduce)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDecode]:
    fake = FakeDecode()
    monkeypatch.setattr("vlgenrm_ray.data.images.decode", fake)
    yield fake
    fake.go_on.set()


@pytest.mark.parametrize("side", [SIDE, LARGE])
def test_an_image_is_decoded_once_for_all_tasks(side: int, decoding: FakeDecode) -> None:
    async def run() -> None:
        cache, image = decoded_images(max_pixels=10**6, max_idle_pixels=10**6), stored(9, side)
        seen = await asyncio.gather(*(first_pixels(cache, image, image) for _ in range(20)))
        assert seen == [[(9, 0, 0)] * 2] * 20
        await first_pixels(cache, image)
        assert decoding.names == [image.sha256]

    asyncio.run(run())


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlgenrm_ray.serving.images._LARGE_PIXELS", LARGE * LARGE - 1)
    running, most, decode = 0, 0, images.decode

    def count(*arguments: Any, **options: Any) -> PIL.Image.Image:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return decode(*arguments, **options)

    monkeypatch.setattr("vlgenrm_ray.data.images.decode", count)

    async def run() -> None:
        cache = decoded_images(max_pixels=10**6, max_idle_pixels=0)
        await asyncio.gather(*(first_pixels(cache, stored(shade, LARGE)) for shade in range(8)))

    asyncio.run(run())
    assert most == 1


def test_images_keep_their_order() -> None:
    seen = asyncio.run(first_pixels(decoded_images(), stored(1), stored(2), stored(1), stored(3)))
    assert [shade for shade, *_ in seen] == [1, 2, 1, 3]


@given(tasks=st.lists(st.lists(st.integers(0, 7), max_size=3, unique=True), max_size=12), room=st.integers(3, 6))
@settings(max_examples=30, deadline=None)
def test_pixels_never_exceed_the_bound(tasks: list[list[int]], room: int) -> None:
    stored_images = [stored(shade) for shade in range(8)]
    most = 0

    async def run() -> None:
        cache = decoded_images(max_pixels=room * ONE, max_idle_pixels=2 * ONE)

        async def task(shades: list[int]) -> list[int]:
            nonlocal most
            async with cache.hold([stored_images[shade] for shade in shades], later()) as pixels:
                most = max(most, cache.num_pixels)
                await asyncio.sleep(0)
                return [image.getpixel((0, 0))[0] for image in pixels]  # type: ignore[index]

        assert await asyncio.gather(*(task(shades) for shades in tasks)) == tasks
        assert cache.num_pixels <= 2 * ONE, "idle images stay for later tasks"

    asyncio.run(run())
    assert most <= room * ONE


def test_least_recently_used_idle_images_are_evicted(decoding: FakeDecode) -> None:
    async def run() -> None:
        cache, (a, b, c, d) = decoded_images(max_pixels=3 * ONE), (stored(shade) for shade in range(4))
        async with cache.hold([a], later()):
            for image in (b, c, b, d, b, a, c):
                await first_pixels(cache, image)
        assert decoding.names == [image.sha256 for image in (a, b, c, d, c)]

    asyncio.run(run())


def test_a_task_larger_than_the_bound_runs_alone() -> None:
    async def run() -> None:
        cache, stored_images = decoded_images(max_pixels=2 * ONE), [stored(shade) for shade in range(4)]
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(cache.hold([stored_images[0]], later()))
            alone = asyncio.ensure_future(first_pixels(cache, *stored_images[1:], hold_s=0.02))
            await asyncio.sleep(0.02)
            assert cache.num_pixels == ONE, "it waits until no other image is in use"
        after = asyncio.ensure_future(first_pixels(cache, stored_images[0]))
        assert len(await alone) == 3
        assert not after.done(), "the next task waits for its end"
        await after
        assert cache.num_pixels <= 2 * ONE

    asyncio.run(run())


def test_two_tasks_of_several_images_never_deadlock() -> None:
    async def run() -> None:
        cache, (a, b) = decoded_images(max_pixels=2 * ONE), (stored(1, LARGE), stored(2, LARGE))
        async with asyncio.timeout(10.0):
            await asyncio.gather(*(first_pixels(cache, *order) for order in ((a, b), (b, a)) * 5))

    asyncio.run(run())


def test_waiting_for_room_ends_at_the_deadline() -> None:
    async def run() -> None:
        cache = decoded_images(max_pixels=ONE)
        async with cache.hold([stored(1)], later()):
            with pytest.raises(DecodeTimeoutError, match="deadline"):
                async with cache.hold([stored(2)], later(0.02)):
                    raise AssertionError("there is no room")
        assert await first_pixels(cache, stored(2)) == [(2, 0, 0)]

    asyncio.run(run())


@pytest.mark.parametrize("side", [SIDE, LARGE])
def test_a_failed_decode_affects_its_users_and_is_not_cached(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, decode = True, images.decode
    good, bad = stored(1, side), stored(2, side)

    def decoded(data: bytes, limits: ImageLimits, *, reduce: bool) -> PIL.Image.Image:
        if failing and data == bad.data:
            raise ImageError(DropReason.IMAGE_UNREADABLE, "out of luck")
        return decode(data, limits, reduce=reduce)

    monkeypatch.setattr("vlgenrm_ray.data.images.decode", decoded)

    async def run() -> None:
        nonlocal failing
        cache = decoded_images(max_pixels=10**6, max_idle_pixels=10**6)
        tasks = [
            first_pixels(cache, good),
            first_pixels(cache, bad),
            first_pixels(cache, good, bad),
            first_pixels(cache, good),
        ]
        first, alone, both, last = await asyncio.gather(*tasks, return_exceptions=True)
        assert first == last == [(1, 0, 0)]
        assert isinstance(alone, ImageError)
        assert isinstance(both, ImageError)
        assert "(image 2 of 2)" in both.detail
        assert cache.num_pixels == side * side
        failing = False
        assert await first_pixels(cache, bad) == [(2, 0, 0)]

    asyncio.run(run())


def test_failed_images_take_no_room() -> None:
    async def run() -> None:
        cache = decoded_images()
        with pytest.raises(ImageError):
            await first_pixels(cache, stored(1), BROKEN)
        with pytest.raises(ImageError):
            await first_pixels(cache, StoredImage("c" * 64, b"no image"))
        assert await first_pixels(cache, *(stored(shade) for shade in range(4))) == [
            (shade, 0, 0) for shade in range(4)
        ]

    asyncio.run(run())


def test_a_cancelled_task_releases_its_images_and_others_keep_theirs(decoding: FakeDecode) -> None:
    async def run() -> None:
        cache, image, other = decoded_images(max_pixels=LARGE * LARGE), stored(1, LARGE), stored(2, LARGE)
        decoding.go_on.clear()
        cancelled, stays = (asyncio.ensure_future(first_pixels(cache, image)) for _ in range(2))
        waiting = [asyncio.ensure_future(first_pixels(cache, other)) for _ in range(2)]
        while not decoding.names:
            await asyncio.sleep(0.005)
        cancelled.cancel()
        waiting[0].cancel()
        await asyncio.sleep(0.02)
        assert cache.num_pixels == LARGE * LARGE
        decoding.go_on.set()
        assert await stays == [(1, 0, 0)]
        assert await waiting[1] == [(2, 0, 0)]
        assert decoding.names == [image.sha256, other.sha256]

    asyncio.run(run())


def test_an_abandoned_decoding_thread_still_counts(decoding: FakeDecode) -> None:
    async def run() -> None:
        cache, image = decoded_images(max_pixels=LARGE * LARGE), stored(1, LARGE)
        decoding.go_on.clear()
        cancelled = asyncio.ensure_future(first_pixels(cache, image))
        while not decoding.names:
            await asyncio.sleep(0.005)
        cancelled.cancel()
        next_one = asyncio.ensure_future(first_pixels(cache, stored(2, LARGE)))
        await asyncio.sleep(0.02)
        assert (cache.num_pixels, len(decoding.names)) == (LARGE * LARGE, 1)
        decoding.go_on.set()
        assert await next_one == [(2, 0, 0)]

    asyncio.run(run())


def test_an_image_of_many_bytes_is_decoded_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    decode = images.decode

    def decoded(data: bytes, limits: ImageLimits, *, reduce: bool) -> PIL.Image.Image:
        threads.append(threading.current_thread())
        return decode(data, limits, reduce=reduce)

    monkeypatch.setattr("vlgenrm_ray.data.images.decode", decoded)
    heavy = png(1) + bytes(300_000)
    asyncio.run(first_pixels(decoded_images(), StoredImage("a" * 64, heavy)))
    asyncio.run(first_pixels(decoded_images(), stored(1)))
    assert [thread is threading.main_thread() for thread in threads] == [False, True]
