"""Pixels that models see: from an image of any mode to 8-bit RGB. No other module converts an image.

The judge, the policy, its learner and the experts all see the pixels of `to_rgb`, so a reward is about the picture that
the policy saw. `images.decode` applies it to encoded bytes.
"""

import io
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import PIL.Image

_ORIENTATION = 0x0112
"""Tag of the orientation in EXIF."""
_ORIENTATION_TYPES = {1: "B", 3: "H", 4: "L"}
"""EXIF type of the orientation tag -> format of its value for `struct`."""
_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Orientation -> name of Pillow's transposition that turns the image upright."""
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Mode -> colour space of the ICC profiles that apply to it."""
_SRGB_TOLERANCE = 2
"""Levels by which rounding changes colours when a profile of sRGB is converted to sRGB."""


def to_rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Convert an image of any mode to the pixels that every model sees: 8-bit RGB, opaque, sRGB, upright.

    Depths above 8 bits are scaled. Transparent pixels are laid on white, as vLLM and qwen-vl-utils do. An ICC profile
    is converted to sRGB, and the image is turned as its EXIF orientation says. A profile or EXIF data that cannot be
    read are ignored.

    Args:
        image: The image, loaded or not. The frame that it holds is converted.

    Returns:
        An image without metadata; `image` itself if it is that already.

    Raises:
        Exception: Any error of Pillow, for an image whose pixels cannot be loaded or converted.
    """
    from PIL import Image

    _scale_transparency(image)
    image.load()
    if image.mode == "RGB" and not image.info and type(image) is Image.Image:
        return image
    colours, alpha = _split_alpha(image)
    pixels = _convert_to_srgb(colours, image.info.get("icc_profile"))
    if alpha is not None:
        background = Image.new("RGB", image.size, "white")
        background.paste(pixels, mask=alpha)
        pixels = background
    if transposition := _TRANSPOSITIONS.get(_orientation(image)):
        pixels = pixels.transpose(Image.Transpose[transposition])
    elif pixels is image:
        pixels = pixels.copy()
    pixels.info = {}
    return pixels


def _split_alpha(image: "PIL.Image.Image") -> "tuple[PIL.Image.Image, PIL.Image.Image | None]":
    """Return the colours of an image in 8 bits per channel, and its opacity (mode L), None if all is opaque."""
    from PIL import Image

    transparency = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_depth(image, transparency)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode == "PA" or (transparency is not None and image.mode in ("1", "L", "P", "RGB")):
        # A transparent colour that the mode cannot have is ignored.
        with suppress(TypeError, ValueError):
            image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        *colours, alpha = image.split()
        return Image.merge(image.mode[:-1], colours), alpha
    return image, None


def _scale_depth(image: "PIL.Image.Image", transparency: object) -> "tuple[PIL.Image.Image, PIL.Image.Image | None]":
    """Scale a grey image of 16 bits, 32 bits or floats to 8 bits. Also returns the opacity, None if all is opaque."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        # The high byte, as Pillow itself reads images with 16 bits per colour.
        scaled = values >> 8
    else:
        values = np.nan_to_num(values.astype(np.float64))
        # Neither mode has a fixed range: these are the ranges in use.
        peak = float(values.max())
        white = next((w for w in (1.0 if image.mode == "F" else 255.0, 255.0, 65535.0) if peak <= w), peak)
        scaled = np.round(values.clip(0.0) * (255.0 / white))
    alpha = None
    if isinstance(transparency, int):
        alpha = Image.fromarray(np.where(values == transparency, 0, 255).astype(np.uint8))
    return Image.fromarray(scaled.astype(np.uint8)), alpha


def _scale_transparency(image: "PIL.Image.Image") -> None:
    """Scale the transparent colour of a PNG like its pixels, which Pillow leaves undone. No effect after loading."""
    transparency = image.info.get("transparency")
    raw_mode = next((tile[3] for tile in getattr(image, "tile", ())), None)
    if isinstance(transparency, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = transparency * (85 if raw_mode == "L;2" else 17)
    elif isinstance(transparency, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparency)


def _convert_to_srgb(image: "PIL.Image.Image", profile: object) -> "PIL.Image.Image":
    """Convert colours to RGB by an ICC profile. One that cannot be read, or of another colour space, is ignored."""
    if isinstance(profile, bytes) and image.mode in _PROFILE_SPACES:
        with suppress(Exception):
            if (converted := _apply_profile(image, profile)) is not None:
                return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def _apply_profile(image: "PIL.Image.Image", profile: bytes) -> "PIL.Image.Image | None":
    """Convert an image from its ICC profile to sRGB; None if its colours are those of sRGB already."""
    import numpy as np
    from PIL import Image, ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != _PROFILE_SPACES[image.mode]:
        return None
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
    if image.mode != "CMYK":
        # Most profiles are those of sRGB itself, under many names. Rounding would change colours that are right.
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
        samples = Image.fromarray(colours).convert(image.mode)
        converted = ImageCms.applyTransform(samples, transform)
        change = np.abs(np.asarray(converted, dtype=int) - np.asarray(samples.convert("RGB"), dtype=int)).max()
        if change <= _SRGB_TOLERANCE:
            return None
    return ImageCms.applyTransform(image, transform)


def _orientation(image: "PIL.Image.Image") -> int:
    """Return the EXIF orientation of an image, 1 (upright) if it has none."""
    with suppress(Exception):
        if (value := image.getexif().get(_ORIENTATION)) is not None:
            return int(value)
    exif = image.info.get("exif")
    with suppress(struct.error, KeyError):
        return _scan_orientation(exif) if isinstance(exif, bytes) else 1
    return 1


def _scan_orientation(exif: bytes) -> int:
    """Find the orientation in EXIF data. Pillow reads no further than a tag whose value is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (start,) = struct.unpack_from(order + "L", tiff, 4)
    (num_tags,) = struct.unpack_from(order + "H", tiff, start)
    for place in range(start + 2, start + 2 + 12 * num_tags, 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, place)
        if tag == _ORIENTATION:
            return int(struct.unpack_from(order + _ORIENTATION_TYPES[kind], tiff, place + 8)[0])
    return 1
