"""Exercises in seeing and reading that no question of the world asks: they make the tiny VLM able to learn the rest.

A large VLM brings all this along: it names what lies at a place, finds what is asked for, and can repeat a text.
None of it is judging: nothing is said to be right or wrong, and a text that is repeated is not about the picture.
"""

import random

from vlgenrm_ray.shapes.phrases import listed, sentence, with_article
from vlgenrm_ray.shapes.questions import KINDS, ask
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, MAX_THINGS, SHAPES, Scene, draw


def exercise(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One exercise on a scene: what is asked, and what to answer."""
    return rng.choices((places, everything, finding, repeating), weights=(3, 1, 5, 1))[0](scene, rng)


def places(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Some cells in any order: "top left: a red circle. centre: nothing."."""
    cells = rng.sample(range(len(CELLS)), rng.randint(1, MAX_THINGS))
    asked = ", the ".join(CELLS[cell] for cell in cells)
    return f"What is at the {asked}?", _read(scene, cells)


def everything(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """All cells in order."""
    return "What is where?", _read(scene, list(range(len(CELLS))))


def finding(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """All things of a shape, a colour or both, with their places."""
    name = rng.choice(scene.things).name if rng.random() < 0.5 else f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}"
    colour, shape = name.split()
    noun = rng.choice((shape, f"{colour} shape", name))
    return f"Which {noun}s are there?", sentence(listed(scene.matching(noun), f"no {noun}s"))


def repeating(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """An answer about some other scene, word for word."""
    while (asked := ask(draw(rng), rng.choice(KINDS), rng)) is None:
        pass
    return f"Repeat: {asked.reference}", asked.reference


def _read(scene: Scene, cells: list[int]) -> str:
    names = (with_article(thing.name) if (thing := scene.at(cell)) else "nothing" for cell in cells)
    return " ".join(f"{CELLS[cell]}: {name}." for cell, name in zip(cells, names, strict=True))
