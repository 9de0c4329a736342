"""The five kinds of question, each with its reference answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from vlgenrm_ray.shapes.phrases import HORIZONTAL, VERTICAL, counted, placed, sentence, with_article
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES, Scene, Thing

KINDS = ("describe", "existence", "count", "attribute", "spatial")
MAX_COUNT = 3
"""Largest number that a question about a count has for an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question with its reference answer and what it is about."""

    kind: str
    text: str
    reference: str
    subject: str = ""
    """Singular noun phrase asked about ("red circle", "star", "red shape"); "" for describe."""
    other: str = ""
    """Second noun phrase of a spatial question."""


def ask(scene: Scene, kind: str, rng: random.Random) -> Asked | None:
    """A question of `kind` about `scene`, or None if the one that `rng` had in mind does not suit the scene.

    What the answer shall be (yes or no, which number, which side) is drawn before the scene is looked at. So whoever
    tries scene after scene with an equal `rng` gets evenly spread answers, and the question alone tells nothing.
    """
    return _ASK[kind](scene, rng)


def _describe(scene: Scene, rng: random.Random) -> Asked:
    return Asked(
        kind="describe",
        text="Describe the image.",
        reference=describe([(t.name, t.cell) for t in scene.things]),
    )


def describe(things: list[tuple[str, int]]) -> str:
    """The description of (name, cell) pairs: one sentence each."""
    return " ".join(sentence(f"there is {placed(name, cell)}") for name, cell in things)


def _existence(scene: Scene, rng: random.Random) -> Asked:
    present = rng.random() < 0.5
    names = {t.name for t in scene.things}
    if present:
        name = rng.choice(sorted(names))
    else:
        absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
        # Half the absent things share colour or shape with one that is there: those take a closer look.
        near = [n for n in absent if any(set(n.split()) & set(m.split()) for m in names)]
        name = rng.choice(near if near and rng.random() < 0.5 else absent)
    return Asked(
        kind="existence",
        text=f"Is there {with_article(name)}?",
        reference=existence(name, present),
        subject=name,
    )


def existence(name: str, present: bool) -> str:
    """The answer to "Is there a ...?"."""
    return f"Yes, there is {with_article(name)}." if present else f"No, there is no {name}."


def _count(scene: Scene, rng: random.Random) -> Asked | None:
    number = rng.randint(0, MAX_COUNT)
    nouns = list(SHAPES) if rng.random() < 0.5 else [f"{c} shape" for c in COLOURS]
    fitting = [n for n in nouns if len(scene.matching(n)) == number]
    if not fitting:
        return None
    noun = rng.choice(fitting)
    return Asked(
        kind="count",
        text=f"How many {noun}s are there?",
        reference=sentence(counted(noun, number)),
        subject=noun,
    )


def _attribute(scene: Scene, rng: random.Random) -> Asked | None:
    colour = rng.choice(COLOURS)
    fitting = [t for t in scene.things if t.colour == colour and len(scene.matching(t.shape)) == 1]
    if not fitting:
        return None
    shape = rng.choice(fitting).shape
    return Asked(
        kind="attribute",
        text=f"What colour is the {shape}?",
        reference=f"The {shape} is {colour}.",
        subject=shape,
    )


def _spatial(scene: Scene, rng: random.Random) -> Asked | None:
    relations = rng.choice((HORIZONTAL, VERTICAL))
    relation = rng.choice(relations)
    unique = [t for t in scene.things if len(scene.matching(t.name)) == 1]
    fitting = [(a, b) for a in unique for b in unique if related(a, relation, b)]
    if not fitting:
        return None
    a, b = rng.choice(fitting)
    return Asked(
        kind="spatial",
        text=f"Is the {a.name} {relations[0]} or {relations[1]} the {b.name}?",
        reference=f"The {a.name} is {relation} the {b.name}.",
        subject=a.name,
        other=b.name,
    )


def related(a: Thing, relation: str, b: Thing) -> bool:
    """Whether `a` is left of / right of / above / below `b`, by column and row."""
    difference = b.column - a.column if relation in HORIZONTAL else b.row - a.row
    return difference > 0 if relation in (HORIZONTAL[0], VERTICAL[0]) else difference < 0


_ASK: dict[str, Callable[[Scene, random.Random], Asked | None]] = {
    "describe": _describe,
    "existence": _existence,
    "count": _count,
    "attribute": _attribute,
    "spatial": _spatial,
}
