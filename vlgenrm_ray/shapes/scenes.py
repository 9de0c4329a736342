"""Scenes: one to five coloured shapes on a 3 x 3 grid, drawn from a seed, in three disjoint splits."""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
CELLS = (
    *("top left", "top centre", "top right"),
    *("middle left", "centre", "middle right"),
    *("bottom left", "bottom centre", "bottom right"),
)
MAX_OBJECTS = 5

Split = Literal["train", "heldout", "test"]
SPLITS: tuple[Split, ...] = ("train", "heldout", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One coloured shape. `shape`, `colour` and `cell` are its content; the other fields are its appearance."""

    shape: str
    colour: str
    cell: int
    """Index into `CELLS`, row-major."""
    dx: float
    dy: float
    """Offset of its centre from the centre of the cell, in cell widths."""
    size: float
    """Outer radius in cell widths."""
    rotation: float
    """Rotation in degrees."""
    brightness: float
    """Factor on the RGB values of its colour."""

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3

    @property
    def name(self) -> str:
        """Colour and shape: "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Objects in row-major order, at most one per cell, on a background with a soft gradient."""

    objects: tuple[SceneObject, ...]
    background: tuple[float, float, float, float]
    """Hue in [0, 1], lightness in [0, 1], direction of the gradient in degrees, strength of the gradient."""

    def at(self, cell: int) -> SceneObject | None:
        """Return the object in a cell, or None."""
        return next((o for o in self.objects if o.cell == cell), None)

    def matching(self, noun: str) -> tuple[SceneObject, ...]:
        """Return the objects that a singular noun phrase names: "circle", "red circle", "red shape" or "shape"."""
        *colour, shape = noun.split()
        return tuple(o for o in self.objects if shape in (o.shape, "shape") and colour in ([], [o.colour]))


def draw_scene(rng: random.Random) -> Scene:
    """Draw a random scene. Few distinct shapes or colours are as likely as many, so counts above one are common."""
    shapes = rng.sample(SHAPES, rng.randint(1, len(SHAPES)))
    colours = rng.sample(COLOURS, rng.randint(1, len(COLOURS)))
    cells = sorted(rng.sample(range(len(CELLS)), rng.randint(1, MAX_OBJECTS)))
    return Scene(
        objects=tuple(_draw_object(rng, rng.choice(shapes), rng.choice(colours), cell) for cell in cells),
        background=(rng.random(), rng.uniform(0.86, 0.97), rng.uniform(0, 360), rng.uniform(0.02, 0.08)),
    )


def _draw_object(rng: random.Random, shape: str, colour: str, cell: int) -> SceneObject:
    size = rng.uniform(0.32, 0.38)
    margin = 0.05
    return SceneObject(
        shape=shape,
        colour=colour,
        cell=cell,
        dx=rng.uniform(-margin, margin),
        dy=rng.uniform(-margin, margin),
        size=size,
        rotation=rng.uniform(-8, 8),
        brightness=rng.uniform(0.88, 1.0),
    )


def split_of(scene: Scene) -> Split:
    """Return the split of a scene by a hash of its content (not its appearance): 70 / 15 / 15 per cent."""
    content = ";".join(f"{o.name} {o.cell}" for o in scene.objects)
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) % 100
    return "train" if bucket < 70 else "heldout" if bucket < 85 else "test"


def draw_scene_of(split: Split, rng: random.Random) -> Scene:
    """Draw a random scene of one split."""
    while split_of(scene := draw_scene(rng)) != split:
        pass
    return scene
