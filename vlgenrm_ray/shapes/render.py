"""Rendering of scenes: antialiased images of 240 x 240 pixels, and the true boxes of their objects."""

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

from vlgenrm_ray.records import Box
from vlgenrm_ray.shapes.scenes import Scene, SceneObject

SIDE = 240
"""Width and height of an image in pixels."""
_CELL = SIDE // 3
_SUPERSAMPLING = 4
"""Shapes are drawn this many times larger and then reduced, which smooths their edges."""
_RIM_BRIGHTNESS = 0.82
"""Brightness of a shape's rim relative to its interior."""

_RGB = {
    "red": (220, 40, 45),
    "green": (50, 160, 70),
    "blue": (45, 95, 215),
    "yellow": (245, 210, 45),
    "purple": (135, 60, 175),
    "orange": (245, 130, 30),
}


def render(scene: Scene) -> Image.Image:
    """Render a scene as an RGB image of `SIDE` x `SIDE` pixels."""
    image = _background(scene)
    for item in scene.objects:
        corner = (item.column * _CELL, item.row * _CELL)
        rim = _colour(item, _RIM_BRIGHTNESS)
        image.paste(rim, (*corner, corner[0] + _CELL, corner[1] + _CELL), _mask(item, 1.0))
        inside = _colour(item, 1.0)
        image.paste(inside, (*corner, corner[0] + _CELL, corner[1] + _CELL), _mask(item, 0.9))
    return image


def boxes(scene: Scene) -> tuple[Box, ...]:
    """Return the true box of each object in the scene's order, labelled with its shape."""
    true_boxes = []
    for item in scene.objects:
        points = [(x + item.column * _CELL, y + item.row * _CELL) for x, y in _outline(item, 1.0)]
        xs, ys = zip(*points, strict=True)
        true_boxes.append(Box(label=item.shape, score=1.0, x0=min(xs), y0=min(ys), x1=max(xs), y1=max(ys)))
    return tuple(true_boxes)


def _background(scene: Scene) -> Image.Image:
    hue, lightness, direction, strength = scene.background
    base = np.array(colorsys.hls_to_rgb(hue, lightness, 0.45))
    ramp = np.linspace(-1.0, 1.0, SIDE)
    angle = math.radians(direction)
    slope = math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None]
    pixels = np.clip(base + strength * slope[:, :, None], 0.0, 1.0)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def _colour(item: SceneObject, brightness: float) -> tuple[int, int, int]:
    red, green, blue = (round(v * item.brightness * brightness) for v in _RGB[item.colour])
    return red, green, blue


def _mask(item: SceneObject, scale: float) -> Image.Image:
    mask = Image.new("L", (_CELL * _SUPERSAMPLING, _CELL * _SUPERSAMPLING))
    points = [(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in _outline(item, scale)]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.reduce(_SUPERSAMPLING)


def _outline(item: SceneObject, scale: float) -> list[tuple[float, float]]:
    """Return the corners of the shape, in pixels relative to its cell."""
    centre_x, centre_y = _CELL * (0.5 + item.dx), _CELL * (0.5 + item.dy)
    points = []
    for degrees, reach in _CORNERS[item.shape]:
        angle = math.radians(degrees + (item.rotation if item.shape != "circle" else 0.0))
        radius = _CELL * item.size * reach * scale
        points.append((centre_x + radius * math.cos(angle), centre_y + radius * math.sin(angle)))
    return points


# Corners of each shape as (direction in degrees, share of the outer radius); 0 is right, 90 is down.
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "circle": [(a, 0.95) for a in range(0, 360, 6)],
    "square": [(a, 1.1) for a in range(45, 360, 90)],
    "triangle": [(a, 1.12) for a in range(-90, 270, 120)],
    "star": [(-90 + 36 * i, 1.12 if i % 2 == 0 else 0.5) for i in range(10)],
}
