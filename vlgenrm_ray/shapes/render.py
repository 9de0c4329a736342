"""Scenes as pictures, and where in them the things are. 240 x 240 pixels, antialiased."""

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

from vlgenrm_ray.records import Box
from vlgenrm_ray.shapes.scenes import Scene, Thing

SIDE = 240
"""Width and height of a picture, in pixels."""
_CELL = SIDE // 3
_FINE = 4
"""Shapes are drawn this many times too large and then shrunk, which smooths their edges."""
_EDGE = 0.82
"""Brightness of a shape's rim against its inside."""

_RGB = {
    "red": (220, 40, 45),
    "green": (50, 160, 70),
    "blue": (45, 95, 215),
    "yellow": (245, 210, 45),
    "purple": (135, 60, 175),
    "orange": (245, 130, 30),
}


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, `SIDE` x `SIDE`."""
    picture = _background(scene)
    for thing in scene.things:
        corner = (thing.column * _CELL, thing.row * _CELL)
        rim = _colour(thing, _EDGE)
        picture.paste(rim, (*corner, corner[0] + _CELL, corner[1] + _CELL), _mask(thing, 1.0))
        inside = _colour(thing, 1.0)
        picture.paste(inside, (*corner, corner[0] + _CELL, corner[1] + _CELL), _mask(thing, 0.9))
    return picture


def boxes(scene: Scene) -> tuple[Box, ...]:
    """The true box of each thing, in the scene's order, with its shape for a label."""
    found = []
    for thing in scene.things:
        points = [(x + thing.column * _CELL, y + thing.row * _CELL) for x, y in _outline(thing, 1.0)]
        xs, ys = zip(*points, strict=True)
        found.append(Box(label=thing.shape, score=1.0, x0=min(xs), y0=min(ys), x1=max(xs), y1=max(ys)))
    return tuple(found)


def _background(scene: Scene) -> Image.Image:
    hue, lightness, direction, strength = scene.background
    base = np.array(colorsys.hls_to_rgb(hue, lightness, 0.45))
    ramp = np.linspace(-1.0, 1.0, SIDE)
    angle = math.radians(direction)
    slope = math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None]
    pixels = np.clip(base + strength * slope[:, :, None], 0.0, 1.0)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def _colour(thing: Thing, brightness: float) -> tuple[int, int, int]:
    red, green, blue = (round(v * thing.shade * brightness) for v in _RGB[thing.colour])
    return red, green, blue


def _mask(thing: Thing, scale: float) -> Image.Image:
    fine = Image.new("L", (_CELL * _FINE, _CELL * _FINE))
    points = [(x * _FINE, y * _FINE) for x, y in _outline(thing, scale)]
    ImageDraw.Draw(fine).polygon(points, fill=255)
    return fine.reduce(_FINE)


def _outline(thing: Thing, scale: float) -> list[tuple[float, float]]:
    """Corners of the shape in pixels of its cell."""
    middle_x, middle_y = _CELL * (0.5 + thing.dx), _CELL * (0.5 + thing.dy)
    points = []
    for degrees, reach in _CORNERS[thing.shape]:
        angle = math.radians(degrees + (thing.turn if thing.shape != "circle" else 0.0))
        radius = _CELL * thing.size * reach * scale
        points.append((middle_x + radius * math.cos(angle), middle_y + radius * math.sin(angle)))
    return points


# Each shape's corners as (direction in degrees, share of the outer radius); 0 is right, 90 is down.
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "circle": [(a, 0.95) for a in range(0, 360, 6)],
    "square": [(a, 1.1) for a in range(45, 360, 90)],
    "triangle": [(a, 1.12) for a in range(-90, 270, 120)],
    "star": [(-90 + 36 * i, 1.12 if i % 2 == 0 else 0.5) for i in range(10)],
}
