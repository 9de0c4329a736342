"""Rendering of the hard world: images of 240 x 240 pixels with backdrop, clutter, sign and overlapping objects."""

import colorsys
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vlgenrm_ray.records import Box
from vlgenrm_ray.shapes.hard.scenes import Backdrop, ClutteredScene, Distractor, Sign, TexturedObject

SIDE = 240
"""Width and height of an image in pixels."""
_CELL = SIDE // 3
_SUPERSAMPLING = 3
"""Shapes are drawn this many times larger and then reduced, which smooths their edges."""
_RIM_BRIGHTNESS = 0.75
_STRIPE, _DOT = 0.17, 0.3
"""Period of stripes and of dots in cell widths."""
_FONT_SIZE = 22

_RGB = {
    "red": (215, 35, 40),
    "orange": (245, 130, 25),
    "yellow": (245, 215, 45),
    "green": (45, 155, 65),
    "blue": (45, 95, 215),
    "purple": (125, 50, 170),
    "pink": (245, 140, 190),
    "brown": (125, 75, 40),
}


def render(scene: ClutteredScene) -> Image.Image:
    """Render a scene as an RGB image of `SIDE` x `SIDE` pixels."""
    image = _backdrop(scene.backdrop)
    draw = ImageDraw.Draw(image)
    for distractor in scene.distractors:
        _draw_distractor(draw, distractor)
    for item in sorted(scene.objects, key=lambda o: o.depth):
        _paste_object(image, item)
    if scene.sign:
        _draw_sign(draw, scene.sign)
    return image


def boxes(scene: ClutteredScene) -> tuple[Box, ...]:
    """Return the true box of each object in the scene's order, labelled with its shape and clipped to the image."""
    true_boxes = []
    for item in scene.objects:
        xs, ys = zip(*_outline(item, 1.0), strict=True)
        x0, y0, x1, y1 = (min(max(v, 0.0), float(SIDE)) for v in (min(xs), min(ys), max(xs), max(ys)))
        true_boxes.append(Box(label=item.shape, score=1.0, x0=x0, y0=y0, x1=x1, y1=y1))
    return tuple(true_boxes)


def _backdrop(backdrop: Backdrop) -> Image.Image:
    base = np.array(colorsys.hls_to_rgb(backdrop.hue, backdrop.lightness, 0.35))
    ramp = np.linspace(-1.0, 1.0, SIDE)
    angle = math.radians(backdrop.angle)
    slope: npt.NDArray[np.float64]
    if backdrop.kind == "horizon":
        slope = np.where(ramp > math.sin(angle) * 0.5, -1.5, 0.3)[:, None] * np.ones((1, SIDE))
    elif backdrop.kind == "tiles":
        edge = (np.arange(SIDE) + int(backdrop.angle)) % 48 < 2
        slope = np.where(edge[:, None] | edge[None, :], -1.5, 0.0)
    else:
        slope = math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None]
        if backdrop.kind == "plaster":
            grain = np.random.default_rng(backdrop.seed).normal(0.0, 0.6, (SIDE // 4, SIDE // 4))
            slope = slope * 0.3 + np.kron(grain, np.ones((4, 4)))
    pixels = np.clip(base + backdrop.strength * slope[:, :, None], 0.0, 1.0)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def _draw_distractor(draw: ImageDraw.ImageDraw, distractor: Distractor) -> None:
    x, y, half = distractor.x * SIDE, distractor.y * SIDE, distractor.size * SIDE / 2
    value = round(255 * distractor.grey)
    grey = (value, value, value)
    angle = math.radians(distractor.angle)
    if distractor.kind == "line":
        dx, dy = half * math.cos(angle), half * math.sin(angle)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=grey, width=3)
    elif distractor.kind == "arc":
        draw.arc((x - half, y - half, x + half, y + half), distractor.angle, distractor.angle + 200, fill=grey, width=3)
    else:
        draw.ellipse((x - half / 2, y - half / 2, x + half / 2, y + half / 2), fill=grey)


def _draw_sign(draw: ImageDraw.ImageDraw, sign: Sign) -> None:
    x = _CELL * (sign.cell % 3 + 0.5 + sign.dx)
    y = _CELL * (sign.cell // 3 + 0.5 + sign.dy)
    draw.line((x, y, x, y + 30), fill=(110, 110, 110), width=5)
    draw.rectangle((x - 37, y - 17, x + 37, y + 17), fill=(250, 250, 250), outline=(40, 40, 40), width=2)
    font = ImageFont.load_default(_FONT_SIZE)
    draw.text((x, y), sign.word, fill=(20, 20, 20), font=font, anchor="mm")


def _paste_object(image: Image.Image, item: TexturedObject) -> None:
    """Paste an object: its rim, its face, and stripes or dots on the face."""
    reach = math.ceil(_CELL * item.size * 1.2)
    centre_x, centre_y = _centre(item)
    corner = (round(centre_x) - reach, round(centre_y) - reach)
    side = 2 * reach
    area = (*corner, corner[0] + side, corner[1] + side)
    image.paste(_colour(item, _RIM_BRIGHTNESS), area, _mask(item, 1.0, corner, side))
    face = _mask(item, 0.9, corner, side)
    image.paste(_colour(item, 1.0), area, face)
    if item.texture != "solid":
        pattern = Image.fromarray(_pattern(item, side)).resize((side, side), Image.Resampling.BOX)
        inside = Image.fromarray(np.minimum(np.asarray(pattern), np.asarray(face)))
        image.paste(tuple(round(0.25 * v + 0.75 * 255) for v in _colour(item, 1.0)), area, inside)


def _pattern(item: TexturedObject, side: int) -> npt.NDArray[np.uint8]:
    """Return where stripes or dots are, as a mask of twice the resolution."""
    axis = (np.arange(2 * side) / 2 - side / 2) / _CELL
    angle = math.radians(item.rotation * 3 + 45)
    along = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    if item.texture == "striped":
        pattern = np.abs((along / _STRIPE) % 1.0 - 0.5) < 0.24
    else:
        across = -math.sin(angle) * axis[None, :] + math.cos(angle) * axis[:, None]
        u, v = ((t / _DOT + 0.5) % 1.0 - 0.5 for t in (along, across))
        pattern = u**2 + v**2 < 0.29**2
    return np.where(pattern, 255, 0).astype(np.uint8)


def _colour(item: TexturedObject, brightness: float) -> tuple[int, int, int]:
    red, green, blue = (round(v * item.brightness * brightness) for v in _RGB[item.colour])
    return red, green, blue


def _mask(item: TexturedObject, scale: float, corner: tuple[int, int], side: int) -> Image.Image:
    mask = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    points = [((x - corner[0]) * _SUPERSAMPLING, (y - corner[1]) * _SUPERSAMPLING) for x, y in _outline(item, scale)]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.reduce(_SUPERSAMPLING)


def _centre(item: TexturedObject) -> tuple[float, float]:
    return _CELL * (item.column + 0.5 + item.dx), _CELL * (item.row + 0.5 + item.dy)


def _outline(item: TexturedObject, scale: float) -> list[tuple[float, float]]:
    """Return the corners of the shape, in pixels of the image."""
    centre_x, centre_y = _centre(item)
    points = []
    for degrees, reach in _CORNERS[item.shape]:
        angle = math.radians(degrees + (item.rotation if item.shape != "circle" else 0.0))
        radius = _CELL * item.size * reach * scale
        points.append((centre_x + radius * math.cos(angle), centre_y + radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    """Return the corners of a heart as (direction in degrees, share of the outer radius)."""
    points = []
    for step in range(0, 360, 10):
        t = math.radians(step)
        x = 16 * math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 2
        points.append((math.degrees(math.atan2(y, x)), math.hypot(x, y) / 16.5))
    return points


# Corners of each shape as (direction in degrees, share of the outer radius); 0 is right, 90 is down.
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "circle": [(a, 0.95) for a in range(0, 360, 6)],
    "square": [(a, 1.1) for a in range(45, 360, 90)],
    "triangle": [(a, 1.12) for a in range(-90, 270, 120)],
    "star": [(-90 + 36 * i, 1.15 if i % 2 == 0 else 0.5) for i in range(10)],
    "heart": _heart(),
    "diamond": [(0, 0.75), (90, 1.15), (180, 0.75), (270, 1.15)],
}
