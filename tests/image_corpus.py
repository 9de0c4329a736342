"""One image in every format and mode that the package decodes, with the pixels that each encoding shows.

The image is not symmetric, and its parts differ in colour and brightness: a wrong turn, depth, background or colour
space changes it visibly.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 48, 32
LOSSY = 6.0
"""Mean difference to the original, in levels, of pixels in JPEG."""
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class CorpusImage:
    """An encoded image and what it shows."""

    name: str
    data: bytes
    shows: Pixels
    """RGB pixels, shape (height, width, 3)."""
    tolerance: float = 0.0
    """Mean absolute difference of decoded pixels, in levels."""


def colours() -> Pixels:
    """The image: a gradient, a red and a green rectangle, a white and a black corner."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 2] = np.linspace(40, 200, WIDTH, dtype=np.uint8)
    pixels[..., 1] = np.linspace(60, 180, HEIGHT, dtype=np.uint8)[:, None]
    pixels[..., 0] = 90
    pixels[4:12, 4:20] = (220, 30, 40)
    pixels[18:28, 28:44] = (30, 200, 60)
    pixels[:4, -8:] = 255
    pixels[-4:, :8] = 0
    return pixels


def greys() -> Pixels:
    """The image in grey, shape (height, width)."""
    return np.asarray(Image.fromarray(colours()).convert("L"))


def opacity() -> Pixels:
    """A left third that is transparent, a middle that is half transparent, and an opaque rest."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, : WIDTH // 3] = 0
    alpha[:, WIDTH // 3 : WIDTH // 2] = 128
    return alpha


def as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=-1)


def on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255.0
    return np.round(pixels * share + 255.0 * (1.0 - share)).astype(np.uint8)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def png(samples: npt.NDArray[np.integer], depth: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of any bit depth, which Pillow does not write. `samples`: shape (height, width, channels)."""
    height, width, _ = samples.shape
    rows = []
    for row in samples.reshape(height, -1):
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        rows.append(b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big"))
    header = struct.pack(">LLBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data)) for kind, data in parts
    )


@cache
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@cache
def swapped_profile() -> bytes:
    """A profile in which red means green and green means red."""
    profile = srgb_profile().replace(b"rXYZ", b"____", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"____", b"gXYZ", 1)
    assert profile != srgb_profile()
    return profile


def exif(orientation: int, *, damaged: str = "") -> bytes:
    """EXIF data with an orientation.

    Args:
        orientation: 1 to 8.
        damaged: `before` or `after`: another tag, on that side of the orientation, whose value lies beyond the data.
            `type`: another tag with a type that does not exist. `value`: one with a value of the wrong type.
    """
    entry = struct.pack("<HHLHH", _ORIENTATION, 3, 1, orientation, 0)
    further = {
        "": [],
        "before": [struct.pack("<HHLL", 0x010F, 2, 4000, 0x00FFFFFF)],
        "after": [struct.pack("<HHLL", 0x0132, 2, 4000, 0x00FFFFFF)],
        "type": [struct.pack("<HHLL", 0x0131, 99, 1, 0)],
        "value": [struct.pack("<HHLL", 0x011A, 2, 4, 0x61626364), struct.pack("<HHLL", 0x8769, 2, 3, 0x616263)],
    }[damaged]
    tags = sorted([entry, *further], key=lambda tag: struct.unpack("<H", tag[:2]))
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(tags) + b"\0\0\0\0"


def lying(orientation: int) -> Image.Image:
    """The image as a camera stores it that names an orientation: the inverse of turning it upright."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    image = Image.fromarray(colours())
    image.info["exif"] = exif(inverse)
    return Image.fromarray(np.asarray(ImageOps.exif_transpose(image)))


@cache
def corpus_images() -> tuple[CorpusImage, ...]:
    """Return the corpus."""
    return (*_grey(), *_coloured(), *_transparent(), *_turned(), *_animated(), *_profiled())


def _grey() -> list[CorpusImage]:
    grey = greys()
    image = Image.fromarray(grey)
    bilevel = image.point(lambda value: 255 * (value > 127)).convert("1")
    two, four = grey // 85, grey // 17
    deep = grey.astype(np.uint16) * 257
    return [
        CorpusImage("png-1", encode(bilevel, "PNG"), np.asarray(bilevel.convert("RGB"))),
        CorpusImage("png-grey-2-bit", png(two[..., None], 2, 0), as_rgb(two * 85)),
        CorpusImage("png-grey-4-bit", png(four[..., None], 4, 0), as_rgb(four * 17)),
        CorpusImage("png-grey", encode(image, "PNG"), as_rgb(grey)),
        CorpusImage("png-grey-16-bit", encode(Image.fromarray(deep), "PNG"), as_rgb(grey)),
        CorpusImage("png-grey-16-bit-low-byte", png((deep & 0xFF00)[..., None], 16, 0), as_rgb(grey)),
        CorpusImage("jpeg-grey", encode(image, "JPEG", quality=95), as_rgb(grey), LOSSY),
        CorpusImage("webp-grey", encode(image, "WEBP", lossless=True), as_rgb(grey)),
        CorpusImage("gif-grey", encode(image, "GIF"), as_rgb(grey)),
        CorpusImage("bmp-1", encode(bilevel, "BMP"), np.asarray(bilevel.convert("RGB"))),
        CorpusImage("bmp-grey", encode(image, "BMP"), as_rgb(grey)),
    ]


def _coloured() -> list[CorpusImage]:
    pixels = colours()
    image = Image.fromarray(pixels)
    palette = image.quantize(64)
    few = image.quantize(16, dither=Image.Dither.NONE)
    shown, shown_few = np.asarray(palette.convert("RGB")), np.asarray(few.convert("RGB"))
    return [
        CorpusImage("png", encode(image, "PNG"), pixels),
        CorpusImage("png-16-bit", png(pixels.astype(np.uint16) * 257, 16, 2), pixels),
        CorpusImage("png-palette", encode(palette, "PNG"), shown),
        CorpusImage("png-palette-4-bit", encode(few, "PNG", bits=4), shown_few),
        CorpusImage("jpeg", encode(image, "JPEG", quality=95), pixels, LOSSY),
        CorpusImage("jpeg-progressive", encode(image, "JPEG", quality=95, progressive=True), pixels, LOSSY),
        CorpusImage("jpeg-cmyk", encode(image.convert("CMYK"), "JPEG", quality=95), pixels, LOSSY),
        CorpusImage("webp", encode(image, "WEBP", lossless=True), pixels),
        CorpusImage("webp-lossy", encode(image, "WEBP", quality=95), pixels, 2 * LOSSY),
        CorpusImage("gif", encode(palette, "GIF"), shown),
        CorpusImage("bmp", encode(image, "BMP"), pixels),
        CorpusImage("bmp-palette", encode(palette, "BMP"), shown),
    ]


def _transparent() -> list[CorpusImage]:
    pixels, grey, alpha = colours(), greys(), opacity()
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    deep = np.dstack([pixels, alpha]).astype(np.uint16) * 257
    deep_grey = np.dstack([grey, alpha]).astype(np.uint16) * 257
    red = (220, 30, 40)
    is_red = (pixels == red).all(axis=-1)
    without_red = np.where(is_red[..., None], 255, pixels).astype(np.uint8)
    palette = Image.fromarray(pixels).quantize(16, dither=Image.Dither.NONE)
    indices = np.asarray(palette)
    without_first = np.where((indices == indices[8, 8])[..., None], 255, np.asarray(palette.convert("RGB")))
    faint = [128 if i == indices[8, 8] else 255 for i in range(16)]
    half = on_white(np.asarray(palette.convert("RGB")), np.asarray(faint, np.uint8)[indices])
    four = grey // 17
    key = int(four[8, 8])
    sixteen = grey.astype(np.uint16) * 257
    without_key = np.where(grey == grey[8, 8], 255, grey).astype(np.uint8)
    # Blending rounds; it may differ by one level from the formula above.
    return [
        CorpusImage("png-rgba", encode(rgba, "PNG"), on_white(pixels, alpha), 1.0),
        CorpusImage("png-rgba-16-bit", png(deep, 16, 6), on_white(pixels, alpha), 1.0),
        CorpusImage("png-la", encode(la, "PNG"), on_white(as_rgb(grey), alpha), 1.0),
        CorpusImage("png-la-16-bit", png(deep_grey, 16, 4), on_white(as_rgb(grey), alpha), 1.0),
        CorpusImage("png-colour-key", encode(Image.fromarray(pixels), "PNG", transparency=red), without_red),
        CorpusImage(
            "png-16-bit-colour-key",
            png(pixels.astype(np.uint16) * 257, 16, 2, (b"tRNS", struct.pack(">HHH", *(c * 257 for c in red)))),
            without_red,
        ),
        CorpusImage(
            "png-grey-4-bit-key",
            png(four[..., None], 4, 0, (b"tRNS", struct.pack(">H", key))),
            as_rgb(np.where(four == key, 255, four * 17).astype(np.uint8)),
        ),
        CorpusImage(
            "png-grey-16-bit-key",
            png(sixteen[..., None], 16, 0, (b"tRNS", struct.pack(">H", int(sixteen[8, 8])))),
            as_rgb(without_key),
        ),
        CorpusImage(
            "png-palette-key", encode(palette, "PNG", transparency=int(indices[8, 8])), without_first.astype(np.uint8)
        ),
        CorpusImage("png-palette-alpha", encode(palette, "PNG", transparency=bytes(faint)), half, 1.0),
        CorpusImage("webp-rgba", encode(rgba, "WEBP", lossless=True, exact=True), on_white(pixels, alpha), 1.0),
        CorpusImage("gif-key", encode(palette, "GIF", transparency=int(indices[8, 8])), without_first.astype(np.uint8)),
    ]


def _turned() -> list[CorpusImage]:
    turned = [
        CorpusImage(f"jpeg-orientation-{n}", encode(lying(n), "JPEG", quality=95, exif=exif(n)), colours(), LOSSY)
        for n in range(1, 9)
    ]
    damaged = [
        CorpusImage(
            f"jpeg-damaged-exif-{kind}",
            encode(lying(6), "JPEG", quality=95, exif=exif(6, damaged=kind)),
            colours(),
            LOSSY,
        )
        for kind in ("before", "after", "type", "value")
    ]
    upright = encode(Image.fromarray(colours()), "JPEG", quality=95, exif=b"Exif\0\0what is this")
    return [
        *turned,
        *damaged,
        CorpusImage("jpeg-exif-of-nothing", upright, colours(), LOSSY),
        CorpusImage("png-orientation-6", encode(lying(6), "PNG", exif=exif(6)), colours()),
        CorpusImage("png-damaged-exif", encode(lying(6), "PNG", exif=exif(6, damaged="before")), colours()),
        CorpusImage("webp-orientation-8", encode(lying(8), "WEBP", lossless=True, exif=exif(8)), colours()),
    ]


def _animated() -> list[CorpusImage]:
    first, second = Image.fromarray(colours()), Image.fromarray(colours()[::-1].copy())
    palette = first.quantize(64)
    frames = {"save_all": True, "append_images": [second], "duration": 50}
    return [
        CorpusImage("png-animated", encode(first, "PNG", **frames), colours()),
        CorpusImage("webp-animated", encode(first, "WEBP", lossless=True, **frames), colours()),
        CorpusImage(
            "gif-animated",
            encode(palette, "GIF", **frames | {"append_images": [second.quantize(64)]}),
            np.asarray(palette.convert("RGB")),
        ),
        CorpusImage("jpeg-several", encode(first, "MPO", quality=95, **frames), colours(), LOSSY),
    ]


def _profiled() -> list[CorpusImage]:
    pixels, alpha = colours(), opacity()
    image = Image.fromarray(pixels)
    swapped = image.copy().point(lambda value: value)
    red, green, blue = swapped.split()
    stored = Image.merge("RGB", [green, red, blue])
    rgba = Image.fromarray(np.dstack([np.asarray(stored), alpha]))
    return [
        CorpusImage("png-srgb-profile", encode(image, "PNG", icc_profile=srgb_profile()), pixels),
        CorpusImage("png-profile", encode(stored, "PNG", icc_profile=swapped_profile()), pixels, 2.0),
        CorpusImage(
            "png-profile-rgba", encode(rgba, "PNG", icc_profile=swapped_profile()), on_white(pixels, alpha), 2.0
        ),
        CorpusImage("png-damaged-profile", encode(image, "PNG", icc_profile=b"no profile"), pixels),
        CorpusImage(
            "png-grey-profile-of-colours",
            encode(image.convert("L"), "PNG", icc_profile=srgb_profile()),
            as_rgb(greys()),
        ),
        CorpusImage(
            "jpeg-profile", encode(stored, "JPEG", quality=95, icc_profile=swapped_profile()), pixels, 2 * LOSSY
        ),
        CorpusImage("webp-profile", encode(stored, "WEBP", lossless=True, icc_profile=swapped_profile()), pixels, 2.0),
    ]
