"""Scenes: one to five coloured shapes on a 3 x 3 grid, drawn from a seed, in three splits that share none."""

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
MAX_THINGS = 5

Split = Literal["train", "heldout", "test"]
SPLITS: tuple[Split, ...] = ("train", "heldout", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One coloured shape. What it is: `shape`, `colour`, `cell`. How it looks: the rest."""

    shape: str
    colour: str
    cell: int
    """Index into `CELLS`, row-major."""
    dx: float
    dy: float
    """Offset of its middle from the cell's middle, in cell widths."""
    size: float
    """Outer radius in cell widths."""
    turn: float
    """Rotation in degrees."""
    shade: float
    """Brightness factor of its colour."""

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3

    @property
    def name(self) -> str:
        """As in "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Things in row-major order, at most one per cell, on a soft background."""

    things: tuple[Thing, ...]
    background: tuple[float, float, float, float]
    """Hue in [0, 1], lightness in [0, 1], direction of the gradient in degrees, its strength."""

    def at(self, cell: int) -> Thing | None:
        """The thing in a cell, if any."""
        return next((t for t in self.things if t.cell == cell), None)

    def matching(self, noun: str) -> tuple[Thing, ...]:
        """Things that a singular noun phrase names: "circle", "red circle", "red shape" or "shape"."""
        *colour, shape = noun.split()
        return tuple(t for t in self.things if shape in (t.shape, "shape") and colour in ([], [t.colour]))


def draw(rng: random.Random) -> Scene:
    """A random scene. Few kinds of shape or colour are as likely as many, so that counts above one are common."""
    shapes = rng.sample(SHAPES, rng.randint(1, len(SHAPES)))
    colours = rng.sample(COLOURS, rng.randint(1, len(COLOURS)))
    cells = sorted(rng.sample(range(len(CELLS)), rng.randint(1, MAX_THINGS)))
    return Scene(
        things=tuple(_thing(rng, rng.choice(shapes), rng.choice(colours), cell) for cell in cells),
        background=(rng.random(), rng.uniform(0.86, 0.97), rng.uniform(0, 360), rng.uniform(0.02, 0.08)),
    )


def _thing(rng: random.Random, shape: str, colour: str, cell: int) -> Thing:
    size = rng.uniform(0.32, 0.38)
    room = 0.05
    return Thing(
        shape=shape,
        colour=colour,
        cell=cell,
        dx=rng.uniform(-room, room),
        dy=rng.uniform(-room, room),
        size=size,
        turn=rng.uniform(-8, 8),
        shade=rng.uniform(0.88, 1.0),
    )


def split_of(scene: Scene) -> Split:
    """The split a scene belongs to, by a hash of what it holds (not of how it looks): 70 / 15 / 15 per cent."""
    content = ";".join(f"{t.name} {t.cell}" for t in scene.things)
    part = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) % 100
    return "train" if part < 70 else "heldout" if part < 85 else "test"


def draw_in(split: Split, rng: random.Random) -> Scene:
    """A random scene of one split."""
    while split_of(scene := draw(rng)) != split:
        pass
    return scene
