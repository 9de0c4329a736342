"""Questions of five kinds about a scene, each with its reference answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vlgenrm_ray.shapes.language import HORIZONTAL, VERTICAL, count_clause, object_phrase, sentence, with_article
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES, Scene

KINDS = ("describe", "existence", "count", "attribute", "spatial")
MAX_COUNT = 3
"""Largest number that answers a counting question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesQuestion:
    """A question with its reference answer and the noun phrases it names."""

    kind: str
    text: str
    reference: str
    subject: str = ""
    """Singular noun phrase of the question ("red circle", "star", "red shape"); "" for describe."""
    other: str = ""
    """Second noun phrase of a spatial question."""


def draw_question(scene: Scene, kind: str, rng: random.Random) -> ShapesQuestion | None:
    """Draw a question of `kind` about `scene`; return None if the drawn answer does not fit the scene.

    The answer (yes or no, the number, the side) is drawn before the scene is considered. A caller that tries scene
    after scene with an equally seeded `rng` gets evenly distributed answers, so the question alone reveals nothing.
    """
    return _DRAW[kind](scene, rng)


def _describe(scene: Scene, rng: random.Random) -> ShapesQuestion:
    return ShapesQuestion(
        kind="describe",
        text="Describe the image.",
        reference=describe([(o.name, o.cell) for o in scene.objects]),
    )


def describe(objects: list[tuple[str, int]]) -> str:
    """Describe (name, cell) pairs with one sentence each."""
    return " ".join(sentence(f"there is {object_phrase(name, cell)}") for name, cell in objects)


def _existence(scene: Scene, rng: random.Random) -> ShapesQuestion:
    present = rng.random() < 0.5
    names = {o.name for o in scene.objects}
    if present:
        name = rng.choice(sorted(names))
    else:
        absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
        # Half of the absent objects share a colour or shape with a present one: they are harder to reject.
        near = [n for n in absent if any(set(n.split()) & set(m.split()) for m in names)]
        name = rng.choice(near if near and rng.random() < 0.5 else absent)
    return ShapesQuestion(
        kind="existence",
        text=f"Is there {with_article(name)}?",
        reference=existence(name, present),
        subject=name,
    )


def existence(name: str, present: bool) -> str:
    """Return the answer to "Is there a ...?"."""
    return f"Yes, there is {with_article(name)}." if present else f"No, there is no {name}."


def _count(scene: Scene, rng: random.Random) -> ShapesQuestion | None:
    number = rng.randint(0, MAX_COUNT)
    nouns = list(SHAPES) if rng.random() < 0.5 else [f"{c} shape" for c in COLOURS]
    fitting = [n for n in nouns if len(scene.matching(n)) == number]
    if not fitting:
        return None
    noun = rng.choice(fitting)
    return ShapesQuestion(
        kind="count",
        text=f"How many {noun}s are there?",
        reference=sentence(count_clause(noun, number)),
        subject=noun,
    )


def _attribute(scene: Scene, rng: random.Random) -> ShapesQuestion | None:
    colour = rng.choice(COLOURS)
    fitting = [o for o in scene.objects if o.colour == colour and len(scene.matching(o.shape)) == 1]
    if not fitting:
        return None
    shape = rng.choice(fitting).shape
    return ShapesQuestion(
        kind="attribute",
        text=f"What colour is the {shape}?",
        reference=f"The {shape} is {colour}.",
        subject=shape,
    )


def _spatial(scene: Scene, rng: random.Random) -> ShapesQuestion | None:
    relations = rng.choice((HORIZONTAL, VERTICAL))
    relation = rng.choice(relations)
    unique = [o for o in scene.objects if len(scene.matching(o.name)) == 1]
    fitting = [(a, b) for a in unique for b in unique if related(a, relation, b)]
    if not fitting:
        return None
    a, b = rng.choice(fitting)
    return ShapesQuestion(
        kind="spatial",
        text=f"Is the {a.name} {relations[0]} or {relations[1]} the {b.name}?",
        reference=f"The {a.name} is {relation} the {b.name}.",
        subject=a.name,
        other=b.name,
    )


class Placed(Protocol):
    """An object in a cell of the grid."""

    @property
    def row(self) -> int:
        """Row, from 0 at the top."""

    @property
    def column(self) -> int:
        """Column, from 0 on the left."""


def related(a: Placed, relation: str, b: Placed) -> bool:
    """Return whether `a` is left of / right of / above / below `b`, by column and row."""
    difference = b.column - a.column if relation in HORIZONTAL else b.row - a.row
    return difference > 0 if relation in (HORIZONTAL[0], VERTICAL[0]) else difference < 0


_DRAW: dict[str, Callable[[Scene, random.Random], ShapesQuestion | None]] = {
    "describe": _describe,
    "existence": _existence,
    "count": _count,
    "attribute": _attribute,
    "spatial": _spatial,
}
