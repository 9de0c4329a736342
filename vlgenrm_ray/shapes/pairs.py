"""Pairs with a known better side: a true answer, and the same answer with one fact changed.

What is changed to what is drawn so that neither length nor wording tells the sides apart.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from vlgenrm_ray.records import Origin, Preference
from vlgenrm_ray.shapes.phrases import HORIZONTAL, VERTICAL, counted, sentence
from vlgenrm_ray.shapes.questions import MAX_COUNT, Asked, describe, existence
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, Scene, Split
from vlgenrm_ray.shapes.world import draw, questions, rng_of


def corrupt(scene: Scene, asked: Asked, rng: random.Random) -> str:
    """The reference answer with one fact changed, so that it is false of the scene."""
    if asked.kind == "describe":
        return _corrupt_description(scene, rng)
    if asked.kind == "existence":
        return existence(asked.subject, not asked.reference.startswith("Yes"))
    if asked.kind == "count":
        number = len(scene.matching(asked.subject))
        wrong = rng.choice([n for n in range(MAX_COUNT + 1) if n != number])
        return sentence(counted(asked.subject, wrong))
    if asked.kind == "attribute":
        (thing,) = scene.matching(asked.subject)
        return f"The {asked.subject} is {_another(COLOURS, thing.colour, rng)}."
    for one, two in (HORIZONTAL, VERTICAL):
        if one in asked.reference:
            return asked.reference.replace(one, two)
        if two in asked.reference:
            return asked.reference.replace(two, one)
    raise ValueError(f"no relation in {asked.reference!r}")


def _corrupt_description(scene: Scene, rng: random.Random) -> str:
    """Another colour, shape or cell for one thing. A moved thing keeps its turn in the row-major order."""
    things = [(t.name, t.cell) for t in scene.things]
    index = rng.randrange(len(things))
    thing = scene.things[index]
    before = things[index - 1][1] if index else -1
    after = things[index + 1][1] if index + 1 < len(things) else len(CELLS)
    free = [cell for cell in range(before + 1, after) if cell != thing.cell]
    fact = rng.choice(("colour", "shape", "cell") if free else ("colour", "shape"))
    if fact == "colour":
        things[index] = (f"{_another(COLOURS, thing.colour, rng)} {thing.shape}", thing.cell)
    elif fact == "shape":
        things[index] = (f"{thing.colour} {_another(SHAPES, thing.shape, rng)}", thing.cell)
    else:
        things[index] = (thing.name, rng.choice(free))
    return describe(things)


def _another(values: tuple[str, ...], value: str, rng: random.Random) -> str:
    return rng.choice([v for v in values if v != value])


def gold_pairs(folder: Path, *, seed: int, split: Split, count: int, start: int = 0) -> Iterator[Preference]:
    """`count` labelled pairs, the kinds in turn, for evaluation only; pictures are written to `folder`."""
    made = questions(folder, seed=seed, split=split, count=count, start=start)
    for index, question in enumerate(made, start):
        scene, asked = draw(seed, split, index)
        wrong = corrupt(scene, asked, rng_of(seed, split, index, "wrong"))
        yield Preference(
            id=f"{question.id}/gold",
            question=question,
            chosen=asked.reference,
            rejected=wrong,
            origin=Origin.GOLD,
            kind=asked.kind,
            evidence="ground truth",
        )
