"""`ImageStore`: accepted and refused references; nothing outside the roots can be read."""

import asyncio
import base64
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from serving_examples import png

from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import ConfigError, DropReason
from vlgenrm_ray.serving.images import ImageStore

LIMITS = ImageLimits(max_bytes=10_000)
DATA = png()


def store(*roots: Path, max_bytes: int = 1 << 20) -> ImageStore:
    return ImageStore(LIMITS, max_bytes=max_bytes, roots=[str(root) for root in roots])


def refusal(images: ImageStore, reference: str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        images.resolve(reference)
    return caught.value


def test_an_image_sent_in_any_form_can_be_named_by_hash() -> None:
    encoded = base64.b64encode(DATA).decode()
    images = store()
    first = images.resolve(f"data:image/png;base64,{encoded}")
    assert first.data == DATA
    assert images.resolve(encoded) == images.resolve(f"sha256:{first.sha256}") == images.add(DATA) == first
    assert images.num_bytes == len(DATA)


def test_base64_is_accepted_as_it_is_in_use() -> None:
    images = store()
    encoded = base64.b64encode(DATA).decode()
    forms = [
        encoded,
        base64.encodebytes(DATA).decode(),
        encoded.rstrip("="),
        f" {encoded}\n",
        "\r\n".join(encoded[i : i + 64] for i in range(0, len(encoded), 64)).rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    ]
    # One and two characters of padding as well.
    forms += [base64.b64encode(DATA + extra).decode().rstrip("=") for extra in (b"", b"1", b"12")]
    heads = ["", "data:image/png;base64,", "data:image;base64,", "DATA:IMAGE/PNG;charset=x;BASE64,", "data:;base64,"]
    for reference in (head + form for head in heads for form in forms):
        assert images.resolve(reference).data.startswith(DATA), reference
    assert images.resolve("data:image/png;base64," + quote(base64.encodebytes(DATA))).data == DATA


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("what is this?", "not base64: '?' at character 10"),
        ("data:image/png;base64,iVB*", "not base64: '*' at character 3"),
        ("iVBOR", "truncated base64: 5 characters"),
        ("data:image/png,plain", "a data URL that is not base64"),
        ("data:image/png;base64,", "not an image in one of PNG"),
        ("frame-12:30.png", "neither sha256:"),
    ],
)
def test_a_refused_reference_says_what_is_wrong(reference: str, says: str) -> None:
    assert says in refusal(store(), reference).detail


def test_base64_may_begin_like_a_path() -> None:
    jpeg = b"\xff\xd8\xff\xe0" + bytes(range(200))
    assert base64.b64encode(jpeg).startswith(b"/9j/")
    assert store().resolve(base64.b64encode(jpeg).decode()).data == jpeg


def test_the_least_recently_used_image_is_evicted() -> None:
    encoded = [png(shade) for shade in range(4)]
    images = store(max_bytes=sum(map(len, encoded[:3])))
    a, b, _ = (images.add(data) for data in encoded[:3])
    images.resolve(f"sha256:{a.sha256}")
    images.add(encoded[3])
    assert refusal(images, f"sha256:{b.sha256}").detail.startswith("unknown image")
    assert images.resolve(f"sha256:{a.sha256}").data == encoded[0]
    assert images.num_bytes <= images.max_bytes


def noise(seed: int, num_bytes: int = 4000) -> str:
    """An image of its own in base64; the bytes behind its end are ignored by decoders."""
    return base64.b64encode(DATA + bytes([seed]) * (num_bytes - len(DATA))).decode()


def test_images_of_items_under_way_are_bounded_and_others_wait() -> None:
    held: list[int] = []

    async def run() -> int:
        images, num_held = store(max_bytes=10_000), 0

        async def item(seed: int) -> None:
            nonlocal num_held
            async with images.hold([noise(seed)], asyncio.get_running_loop().time() + 10) as (image,):
                num_held += len(image.data)
                held.append(num_held)
                await asyncio.sleep(0.01)
                num_held -= len(image.data)

        await asyncio.gather(*map(item, range(8)))
        return images._held.num_bytes

    assert asyncio.run(run()) == 0, "room is free again"
    assert len(held) == 8
    assert max(held) <= 10_000


def test_an_image_of_several_items_takes_room_once_and_can_be_named_after_its_eviction() -> None:
    async def run() -> None:
        images, later = store(max_bytes=16_000), asyncio.get_running_loop().time() + 10
        async with images.hold([noise(1)], later) as (first,), images.hold([noise(1)] * 2, later) as (second, third):
            assert first.data is second.data is third.data
            assert images._held.num_bytes == len(first.data)
            for seed in range(2, 7):
                images.resolve(noise(seed))
            async with images.hold([f"sha256:{first.sha256}"], later) as (named,):
                assert named.data is first.data
        assert images._held.num_bytes == 0
        assert "unknown image" in refusal(images, f"sha256:{first.sha256}").detail

    asyncio.run(run())


def test_an_item_whose_images_find_no_room_by_its_deadline_ends() -> None:
    async def run() -> None:
        images, loop = store(max_bytes=5_000), asyncio.get_running_loop()
        async with images.hold([noise(1)], loop.time() + 10):
            with pytest.raises(TimeoutError):
                async with images.hold([noise(2)], loop.time() + 0.05):
                    pass
        with pytest.raises(ImageError):
            async with images.hold([noise(2), "what is this"], loop.time() + 10):
                pass
        assert images._held.num_bytes == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "what is this",
        "sha256:123",
        "sha256:" + "A" * 64,
        "data:text/html;base64,PGI+",
        "data:image/png,plain",
        base64.b64encode(b"no image").decode(),
        "data:image/png" + ";a=b" * 9 + ";base64,PGI+",
        "file://[x",
        "\x00",
        "\ud800",
    ],
)
def test_references_that_are_no_images_are_refused(reference: str) -> None:
    assert refusal(store(), reference).reason is DropReason.IMAGE_UNREADABLE


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "s3", "gs", "HTTP"])
def test_addresses_are_not_fetched(scheme: str) -> None:
    assert "not fetched" in refusal(store(), f"{scheme}://example.org/a.png").detail


def test_large_images_are_refused_as_too_large(tmp_path: Path) -> None:
    large = DATA + bytes(LIMITS.max_bytes)
    (tmp_path / "a.png").write_bytes(large)
    images = store(tmp_path)
    for reference in (base64.b64encode(large).decode(), str(tmp_path / "a.png")):
        assert refusal(images, reference).reason is DropReason.IMAGE_TOO_LARGE


def test_files_below_a_root_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.png").write_bytes(DATA)
    images = store(tmp_path / "in")
    assert images.resolve(str(tmp_path / "in" / "a b.png")).data == DATA
    assert images.resolve(f"file://{tmp_path}/in/a%20b.png").data == DATA


def test_files_outside_the_roots_are_refused_with_one_message(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (tmp_path / "out.png").write_bytes(DATA)
    (tmp_path / "inside.png").write_bytes(DATA)
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    images = store(root)
    named = ["out.png", "none.png", "inside.png", "in/../out.png", "in/link.png", "in/folder/out.png", "in/none.png"]
    references = [str(tmp_path / name) for name in [*named, "in/pipe.png", "in/a\x00.png"]]
    references += ["file:///etc/passwd", f"file://{tmp_path}/in/%2e%2e/out.png", "/proc/self/environ.png"]
    details = {refusal(images, reference).detail for reference in references}
    assert details == {"the file is not below a folder that the operator allowed"}
    assert "not below" in refusal(store(), str(tmp_path / "out.png")).detail, "without roots there are no files"


def test_impossible_paths_are_refused_without_touching_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, without = store(tmp_path), store()

    def fail(*_: object, **__: object) -> str:
        raise AssertionError("the disk")

    monkeypatch.setattr("vlgenrm_ray.serving.images.os.path.realpath", fail)
    message = "the file is not below a folder that the operator allowed"
    for reference in (f"{tmp_path}/a.b/{'a/' * 1_000_000}c.png", f"{tmp_path}/a/../b.png"):
        assert refusal(images, reference).detail == message
    assert refusal(without, f"{tmp_path}/a.png").detail == message


def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(DATA)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert store(tmp_path / "link").resolve(str(tmp_path / "link" / "a.png")).data == DATA


def test_a_root_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_roots"):
        store(tmp_path / "none")
