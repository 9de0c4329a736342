import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import DropReason

LIMITS = ImageLimits()


def png(width: int = 32, height: int = 24) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def reason(uri: str, limits: ImageLimits = LIMITS) -> DropReason:
    with pytest.raises(ImageError) as caught:
        images.probe(uri, limits)
    return caught.value.reason


def test_probe_keeps_identity_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    ref = images.probe(str(path), LIMITS)
    assert (ref.width, ref.height) == (32, 24)
    assert ref.sha256 == hashlib.sha256(png()).hexdigest()
    assert images.probe(path.as_uri(), LIMITS).sha256 == ref.sha256
    assert images.read(ref, LIMITS).size == (32, 24)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    assert reason(str(tmp_path / "none.png")) == DropReason.IMAGE_MISSING


@pytest.mark.parametrize("data", [b"", b"not an image", png()[:60]], ids=["empty", "text", "cut off"])
def test_a_broken_image_is_unreadable(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert reason(str(path)) == DropReason.IMAGE_UNREADABLE


def test_limits_hold_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(200, 200))
    assert reason(str(path), ImageLimits(max_pixels=100)) == DropReason.IMAGE_TOO_LARGE
    assert reason(str(path), ImageLimits(max_bytes=10)) == DropReason.IMAGE_TOO_LARGE
    assert reason(str(path), ImageLimits(min_side=201)) == DropReason.IMAGE_UNREADABLE


@pytest.mark.parametrize(("width", "height"), [(2010, 10), (10, 2010), (4000, 8)])
def test_an_aspect_ratio_that_no_processor_takes_is_refused(width: int, height: int) -> None:
    for open_image in (images.decode, images.size):
        with pytest.raises(ImageError, match=r"aspect ratio (201|500)\.00, limit 200") as caught:
            open_image(png(width, height), LIMITS)
        assert caught.value.reason is DropReason.IMAGE_UNREADABLE
    assert images.decode(png(2000, 10), LIMITS).size == (2000, 10)
    assert images.decode(png(width, height), ImageLimits(max_aspect_ratio=600)).size == (width, height)
    with pytest.raises(ImageError, match=r"limit 2$"):
        images.decode(png(50, 20), ImageLimits(max_aspect_ratio=2))


def test_a_size_is_read_within_limits_and_without_the_pixels() -> None:
    target = io.BytesIO()
    Image.effect_noise((64, 48), 50).save(target, "PNG")
    data = target.getvalue()
    assert images.size(data[:200], LIMITS) == (64, 48), "no pixel was needed"
    with pytest.raises(ImageError) as error:
        images.decode(data[:200], LIMITS)
    assert error.value.reason is DropReason.IMAGE_UNREADABLE
    for limits, reason in (
        (ImageLimits(max_pixels=64 * 48 - 1), DropReason.IMAGE_TOO_LARGE),
        (ImageLimits(max_bytes=10), DropReason.IMAGE_TOO_LARGE),
        (ImageLimits(min_side=49), DropReason.IMAGE_UNREADABLE),
    ):
        with pytest.raises(ImageError) as error:
            images.size(data, limits)
        assert error.value.reason is reason
    with pytest.raises(ImageError):
        images.size(b"no image", LIMITS)


def test_unlisted_image_formats_are_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.eps"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert reason(str(path)) == DropReason.IMAGE_UNREADABLE


@pytest.mark.parametrize("uri", ["http://127.0.0.1/a.png", "https://example.org/a.png", "http://[half"])
def test_network_addresses_are_not_fetched(uri: str) -> None:
    assert reason(uri) == DropReason.IMAGE_MISSING


@pytest.mark.parametrize("name", ["a b.png", "a#1.png", "a?b.png", "100%.png", "a%20b.png", "ä.png"])
def test_a_file_address_may_be_quoted_or_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(png())
    for uri in (path.as_uri(), f"file://{path}", f"file://localhost{path}", str(path)):
        assert images.fetch(uri, LIMITS) == png(), uri
    with pytest.raises(ImageError):
        images.fetch(f"file://{tmp_path}/other%20.png", LIMITS)


def test_an_image_that_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    ref = images.probe(str(path), LIMITS)
    path.write_bytes(png(40, 40))
    with pytest.raises(ImageError, match="changed since"):
        images.read(ref, LIMITS)


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert images.probe(str(path), LIMITS).height == 40


def test_a_blank_image_has_one_colour_and_can_be_opened_anywhere() -> None:
    shown = images.blank((30, 20))
    assert (shown.size, shown.getcolors()) == ((30, 20), [(600, (128, 128, 128))])
    ref = images.blank_ref(30, 20)
    assert images.read(ref, LIMITS).tobytes() == shown.tobytes()
    assert (ref.width, ref.height) == (30, 20)


def test_an_image_in_its_own_address_has_the_limits_of_any_other() -> None:
    url = images.data_url(png())
    assert images.fetch(url, LIMITS) == png()
    assert reason(url, ImageLimits(max_bytes=len(png()) - 3)) == DropReason.IMAGE_TOO_LARGE
    assert reason("data:image/png;base64,%") == DropReason.IMAGE_UNREADABLE
    assert reason("data:image/png,plain") == DropReason.IMAGE_UNREADABLE


@pytest.mark.parametrize(("max_pixels", "size"), [(10**6, (801, 603)), (10**5, (201, 151)), (10**4, (101, 76))])
def test_a_large_jpeg_is_decoded_at_a_smaller_scale_on_request(max_pixels: int, size: tuple[int, int]) -> None:
    target = io.BytesIO()
    Image.linear_gradient("L").resize((801, 603)).convert("RGB").save(target, "JPEG", quality=95)
    data, limits = target.getvalue(), ImageLimits(max_pixels=max_pixels)
    assert images.size(data, limits, reduce=True) == size
    small = images.decode(data, limits, reduce=True)
    assert small.size == size
    assert small.getpixel((size[0] // 2, size[1] // 4))[0] == pytest.approx(64, abs=4)
    if size != (801, 603):
        with pytest.raises(ImageError, match="pixels, limit"):
            images.decode(data, limits)


def test_images_that_cannot_be_decoded_at_a_smaller_scale_are_refused() -> None:
    for format, options in (("PNG", {}), ("WEBP", {}), ("JPEG", {"progressive": True})):
        target = io.BytesIO()
        Image.new("RGB", (300, 300)).save(target, format, **options)
        with pytest.raises(ImageError, match="90000 pixels, limit 80000"):
            images.size(target.getvalue(), ImageLimits(max_pixels=80_000), reduce=True)
    target = io.BytesIO()
    Image.new("RGB", (300, 300)).save(target, "JPEG")
    with pytest.raises(ImageError, match="pixels, limit 100"):
        images.size(target.getvalue(), ImageLimits(max_pixels=100), reduce=True)
