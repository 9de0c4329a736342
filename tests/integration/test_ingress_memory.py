"""Memory of the ingress, whatever its clients send at a time; the judge is scripted."""

import asyncio
import base64
import io
import json
from collections import Counter

import numpy as np
import pytest
from ingress_process import running_ingress
from PIL import Image

NUM_CLIENTS = 32
_MIB = 1 << 20
BODIES_MIB, IMAGES_MIB = 8, 4
BOUND_MIB = 120.0
"""Twice the bodies and images, decoded ones of 15 million pixels at most, and what Python's allocator keeps."""


async def send(port: int, path: bytes, body: bytes, *, missing: int = 0) -> str:
    """Send a request, but for its last `missing` bytes. Return the line of its status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = b"POST %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
        writer.write(head % path + b"content-length: %d\r\n\r\n" % len(body))
        writer.write(memoryview(body)[: len(body) - missing])
        return (await reader.readline()).decode().strip()
    except ConnectionError:
        return "closed"
    finally:
        writer.close()


def jpeg(seed: int, side: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "JPEG", quality=90)
    return target.getvalue()


def score_request(*images: bytes) -> bytes:
    items = [{"image": base64.b64encode(image).decode(), "question": "Red?", "response": "Yes."} for image in images]
    return json.dumps({"items": items}).encode()


def attack(path: bytes, bodies: list[bytes], missing: int = 0) -> tuple[float, Counter[str]]:
    """Send all bodies at once. Return the rise of its memory at its peak, in MiB, and the statuses."""

    async def clients(port: int) -> list[str]:
        return await asyncio.gather(*(send(port, path, body, missing=missing) for body in bodies))

    with running_ingress(bodies_mib=BODIES_MIB, images_mib=IMAGES_MIB, max_body_mib=6, deadline_s=120) as ingress:
        before = ingress.resident_mib()
        statuses = Counter(asyncio.run(clients(ingress.port)))
        return max(ingress.sizes_mib) - before, statuses


def test_large_bodies_of_photographs_are_all_judged_within_the_bound() -> None:
    photos = [jpeg(seed, 1200) for seed in range(3)]
    # Bytes behind the end of an image make each one another image.
    bodies = [score_request(*(photo + b"%d" % client for photo in photos)) for client in range(NUM_CLIENTS)]
    assert len(bodies[0]) > 2 * _MIB
    rise, statuses = attack(b"/v1/score", bodies)
    assert statuses == {"HTTP/1.1 200 OK": NUM_CLIENTS}
    assert rise < BOUND_MIB


def test_small_bodies_that_never_end_stay_within_the_bound() -> None:
    rise, statuses = attack(b"/v1/score", [b"a" * (_MIB - 1)] * NUM_CLIENTS * 4, missing=1)
    assert set(statuses) <= {"HTTP/1.1 408 Request Timeout", "HTTP/1.1 503 Service Unavailable", "closed"}
    assert rise < 60.0


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_images_of_many_pixels_in_few_bytes_stay_within_the_bound(mode: str) -> None:
    target = io.BytesIO()
    Image.new(mode, (3800, 3800)).save(target, "PNG")
    # Three pictures at a time would exceed it.
    rise, statuses = attack(b"/v1/images", [target.getvalue() + b"%d" % client for client in range(NUM_CLIENTS)])
    # A slow machine does not decode all of them by their deadline.
    assert set(statuses) <= {"HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable"}
    assert statuses["HTTP/1.1 200 OK"] > 0
    assert rise < 350.0
