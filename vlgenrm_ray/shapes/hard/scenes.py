"""Scenes of the hard world: textured shapes that overlap, a sign, and clutter; three disjoint splits."""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from vlgenrm_ray.shapes.hard.prior import (
    COLOURS,
    SHAPES,
    TEXTURES,
    TYPICAL_COLOURS,
    TYPICAL_WORD,
    UNSEEN_COLOURS,
    WORDS,
    SplitPrior,
    prior_of,
)
from vlgenrm_ray.shapes.scenes import CELLS

MIN_OBJECTS, MAX_OBJECTS = 2, 6
_P_SIGN = 0.5
_P_UNSEEN = 0.6
"""Probability that an object of a compositional scene has the colour that its shape never has in the train split."""

HardSplit = Literal["train", "validation", "test"]
HARD_SPLITS: tuple[HardSplit, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturedObject:
    """One shape. `shape`, `colour`, `texture` and `cell` are its content; the other fields are its appearance."""

    shape: str
    colour: str
    texture: str
    cell: int
    """Index into `CELLS`, row-major: the cell of its centre. The object itself may reach into the next one."""
    dx: float
    dy: float
    """Offset of its centre from the centre of the cell, in cell widths."""
    size: float
    """Outer radius in cell widths."""
    rotation: float
    """Rotation in degrees; also the direction of the stripes."""
    brightness: float
    """Factor on the RGB values of its colour."""
    depth: float
    """Objects are drawn in the order of their depths."""

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

    @property
    def full_name(self) -> str:
        """Texture, unless solid, colour and shape: "striped red circle"."""
        return self.name if self.texture == "solid" else f"{self.texture} {self.name}"

    @property
    def is_unseen(self) -> bool:
        """True if its pair of colour and shape never occurs in the train split."""
        return UNSEEN_COLOURS[self.shape] == self.colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A board with one word. `word` and `cell` are its content."""

    word: str
    cell: int
    dx: float
    dy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distractor:
    """Clutter without a name: a line, an arc or a spot, in pale grey, beneath all objects."""

    kind: Literal["line", "arc", "spot"]
    x: float
    y: float
    """Centre in fractions of the image's side."""
    size: float
    """Length or diameter in fractions of the image's side."""
    angle: float
    grey: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdrop:
    """Background: a wall with a gradient, a horizon, tiles, or rough plaster."""

    kind: Literal["gradient", "horizon", "tiles", "plaster"]
    hue: float
    lightness: float
    angle: float
    strength: float
    seed: int
    """Seed of the plaster's grain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClutteredScene:
    """Objects in row-major order, at most one per cell, perhaps a sign in another cell, and clutter."""

    objects: tuple[TexturedObject, ...]
    sign: Sign | None
    distractors: tuple[Distractor, ...]
    backdrop: Backdrop

    @property
    def is_compositional(self) -> bool:
        """True if any object is a pair of colour and shape that never occurs in the train split."""
        return any(o.is_unseen for o in self.objects)

    def at(self, cell: int) -> TexturedObject | None:
        """Return the object in a cell, or None."""
        return next((o for o in self.objects if o.cell == cell), None)

    def matching(self, noun: str) -> tuple[TexturedObject, ...]:
        """Return the objects that a singular noun phrase names: "circle", "red circle", "dotted red shape", "shape"."""
        *words, shape = noun.split()
        return tuple(
            o for o in self.objects if shape in (o.shape, "shape") and all(w in (o.colour, o.texture) for w in words)
        )


def draw_cluttered_scene(rng: random.Random, prior: SplitPrior, *, compositional: bool = False) -> ClutteredScene:
    """Draw a random scene. Few distinct shapes or colours are as likely as many, so counts above one are common.

    Args:
        rng: Source of all choices.
        prior: Frequencies of the split.
        compositional: Show at least one pair of colour and shape that never occurs in the train split, or none.
    """
    shapes = rng.sample(SHAPES, rng.randint(1, 4))
    colours = rng.sample(COLOURS, rng.randint(1, 5))
    has_sign = rng.random() < _P_SIGN
    cells = rng.sample(range(len(CELLS)), rng.randint(MIN_OBJECTS, MAX_OBJECTS) + has_sign)
    sign = _draw_sign(rng, prior, cells.pop()) if has_sign else None
    first_unseen = rng.randrange(len(cells)) if compositional else -1
    objects = []
    for number, cell in enumerate(sorted(cells)):
        shape = rng.choice(shapes)
        is_unseen = compositional and (number == first_unseen or rng.random() < _P_UNSEEN)
        colour = UNSEEN_COLOURS[shape] if is_unseen else _draw_colour(rng, shape, colours, prior)
        objects.append(_draw_object(rng, shape, colour, cell))
    return ClutteredScene(
        objects=tuple(objects),
        sign=sign,
        distractors=tuple(_draw_distractor(rng) for _ in range(rng.randint(1, 5))),
        backdrop=Backdrop(
            kind=rng.choice(("gradient", "horizon", "tiles", "plaster")),
            hue=rng.random(),
            lightness=rng.uniform(0.82, 0.95),
            angle=rng.uniform(0, 360),
            strength=rng.uniform(0.03, 0.08),
            seed=rng.randrange(2**32),
        ),
    )


def _draw_colour(rng: random.Random, shape: str, colours: list[str], prior: SplitPrior) -> str:
    typical = TYPICAL_COLOURS.get(shape)
    if typical and rng.random() < prior.typical_colour:
        return typical
    excluded = (typical, UNSEEN_COLOURS[shape])
    return rng.choice([c for c in colours if c not in excluded] or [c for c in COLOURS if c not in excluded])


def _draw_object(rng: random.Random, shape: str, colour: str, cell: int) -> TexturedObject:
    return TexturedObject(
        shape=shape,
        colour=colour,
        texture=rng.choice(("solid", *TEXTURES)),
        cell=cell,
        dx=rng.uniform(-0.17, 0.17),
        dy=rng.uniform(-0.17, 0.17),
        size=rng.uniform(0.28, 0.5),
        rotation=rng.uniform(-10, 10),
        brightness=rng.uniform(0.88, 1.0),
        depth=rng.random(),
    )


def _draw_sign(rng: random.Random, prior: SplitPrior, cell: int) -> Sign:
    others = [word for word in WORDS if word != TYPICAL_WORD]
    word = TYPICAL_WORD if rng.random() < prior.typical_word else rng.choice(others)
    return Sign(word=word, cell=cell, dx=rng.uniform(-0.05, 0.05), dy=rng.uniform(-0.15, 0.15))


def _draw_distractor(rng: random.Random) -> Distractor:
    return Distractor(
        kind=rng.choice(("line", "arc", "spot")),
        x=rng.random(),
        y=rng.random(),
        size=rng.uniform(0.03, 0.12),
        angle=rng.uniform(0, 360),
        grey=rng.uniform(0.55, 0.75),
    )


def split_of(scene: ClutteredScene) -> HardSplit:
    """Return the split of a scene by a hash of its content, not its appearance: 70 / 15 / 15 per cent.

    Compositional scenes are never in the train split: half of them are for validation, half for test.
    """
    content = [f"{o.full_name} {o.cell}" for o in scene.objects]
    content += [f"{scene.sign.word} {scene.sign.cell}"] if scene.sign else []
    bucket = int.from_bytes(hashlib.sha256(";".join(content).encode()).digest()[:8]) % 100
    if scene.is_compositional:
        return "validation" if bucket < 50 else "test"
    return "train" if bucket < 70 else "validation" if bucket < 85 else "test"


def draw_scene_of(split: HardSplit, rng: random.Random, *, compositional: bool = False) -> ClutteredScene:
    """Draw a random scene of one split, with the split's frequencies."""
    if compositional and split == "train":
        raise ValueError("the train split has no compositional scenes")
    prior = prior_of(split)
    while split_of(scene := draw_cluttered_scene(rng, prior, compositional=compositional)) != split:
        pass
    return scene
