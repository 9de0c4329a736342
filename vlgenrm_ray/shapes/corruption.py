"""Wrong answers: the reference answer with one fact changed, such that neither length nor wording reveals it."""

import random

from vlgenrm_ray.shapes.language import HORIZONTAL, VERTICAL, count_clause, sentence
from vlgenrm_ray.shapes.questions import MAX_COUNT, ShapesQuestion, describe, existence
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, Scene


def corrupt_answer(scene: Scene, question: ShapesQuestion, rng: random.Random) -> str:
    """Change one fact of the reference answer so that it is false of the scene."""
    if question.kind == "describe":
        return _corrupt_description(scene, rng)
    if question.kind == "existence":
        return existence(question.subject, not question.reference.startswith("Yes"))
    if question.kind == "count":
        number = len(scene.matching(question.subject))
        wrong = rng.choice([n for n in range(MAX_COUNT + 1) if n != number])
        return sentence(count_clause(question.subject, wrong))
    if question.kind == "attribute":
        (subject,) = scene.matching(question.subject)
        return f"The {question.subject} is {_draw_other(COLOURS, subject.colour, rng)}."
    for one, two in (HORIZONTAL, VERTICAL):
        if one in question.reference:
            return question.reference.replace(one, two)
        if two in question.reference:
            return question.reference.replace(two, one)
    raise ValueError(f"no relation in {question.reference!r}")


def _corrupt_description(scene: Scene, rng: random.Random) -> str:
    """Describe the scene with colour, shape or cell of one object changed. The order of the objects stays the same."""
    objects = [(o.name, o.cell) for o in scene.objects]
    index = rng.randrange(len(objects))
    changed = scene.objects[index]
    before = objects[index - 1][1] if index else -1
    after = objects[index + 1][1] if index + 1 < len(objects) else len(CELLS)
    free = [cell for cell in range(before + 1, after) if cell != changed.cell]
    fact = rng.choice(("colour", "shape", "cell") if free else ("colour", "shape"))
    if fact == "colour":
        objects[index] = (f"{_draw_other(COLOURS, changed.colour, rng)} {changed.shape}", changed.cell)
    elif fact == "shape":
        objects[index] = (f"{changed.colour} {_draw_other(SHAPES, changed.shape, rng)}", changed.cell)
    else:
        objects[index] = (changed.name, rng.choice(free))
    return describe(objects)


def _draw_other(values: tuple[str, ...], value: str, rng: random.Random) -> str:
    return rng.choice([v for v in values if v != value])
