"""False answers of the hard world: one fact of the reference answer changed, or given up for the language prior."""

import random
from collections.abc import Sequence

from vlgenrm_ray.shapes.hard.language import MAX_COUNT, count_sentences, describe, relation_clause, sign_clause
from vlgenrm_ray.shapes.hard.prior import (
    COLOURS,
    SHAPES,
    TEXTURES,
    TYPICAL_COLOURS,
    TYPICAL_NUMBER,
    TYPICAL_WORD,
    UNSEEN_COLOURS,
    WORDS,
)
from vlgenrm_ray.shapes.hard.questions import HardQuestion, answer_object
from vlgenrm_ray.shapes.hard.scenes import ClutteredScene, TexturedObject
from vlgenrm_ray.shapes.language import HORIZONTAL, VERTICAL, count_clause, sentence
from vlgenrm_ray.shapes.questions import existence
from vlgenrm_ray.shapes.scenes import CELLS

_P_PRIOR = 0.5
"""Probability that a false answer is the one of the language prior, where that one is false."""
_P_SWAP = 0.5
"""Probability that a false comparison has its numbers exchanged; otherwise one of them is changed."""


def corrupt_answer(scene: ClutteredScene, question: HardQuestion, rng: random.Random) -> str:
    """Change one fact of the reference answer so that it is false of the scene.

    Half of the false answers are those that the language prior suggests, where these are false.
    """
    if question.kind == "describe":
        return _corrupt_description(scene, rng)
    usual = prior_answer(scene, question)
    if usual is not None and (rng.random() < _P_PRIOR or question.kind in ("existence", "spatial")):
        return usual
    if question.kind == "existence":
        return existence(question.subject, not question.reference.startswith("Yes"))
    if question.kind == "count":
        number = len(scene.matching(question.subject))
        wrong = rng.choice([n for n in range(MAX_COUNT + 1) if n != number])
        return sentence(count_clause(question.subject, wrong))
    if question.kind == "text":
        return sentence(sign_clause(_draw_other(WORDS, _word(scene), rng)))
    if question.kind == "attribute":
        subject = answer_object(scene, question)
        if question.is_about_texture:
            return f"The {question.subject} is {_draw_other(TEXTURES, subject.texture, rng)}."
        return f"The {question.subject} is {_draw_other(_colours_of(scene, subject.shape), subject.colour, rng)}."
    if question.kind == "two_step":
        wrong_colour = _draw_other(COLOURS, answer_object(scene, question).colour, rng)
        return sentence(relation_clause(wrong_colour, question.relation, question.other))
    if question.kind == "compare":
        return _corrupt_comparison(scene, question, rng)
    pair = HORIZONTAL if question.relation in HORIZONTAL else VERTICAL
    return question.reference.replace(question.relation, pair[1 - pair.index(question.relation)])


def prior_answer(scene: ClutteredScene, question: HardQuestion) -> str | None:
    """Return the answer that the language prior suggests, if it is false of the scene; None otherwise."""
    answer = _usual_answer(scene, question)
    return None if answer == question.reference else answer


def _usual_answer(scene: ClutteredScene, question: HardQuestion) -> str:
    """Return the answer of someone who knows what is usual: typical colours and words, two, yes, the first side."""
    if question.kind == "describe":
        objects = [(_usual_name(o), o.cell) for o in scene.objects]
        return describe(objects, scene.sign.word if scene.sign else None)
    if question.kind == "existence":
        return existence(question.subject, True)
    if question.kind == "count":
        return sentence(count_clause(question.subject, TYPICAL_NUMBER))
    if question.kind == "text":
        return sentence(sign_clause(TYPICAL_WORD))
    if question.kind == "attribute":
        typical = TYPICAL_COLOURS.get(question.subject)
        if typical is None or question.is_about_texture:
            return question.reference
        return f"The {question.subject} is {typical}."
    if question.kind == "two_step":
        there = answer_object(scene, question)
        colour = TYPICAL_COLOURS.get(there.shape, there.colour)
        return sentence(relation_clause(colour, question.relation, question.other))
    if question.kind == "compare":
        nouns = (question.subject, question.other)
        numbers = sorted((len(scene.matching(noun)) for noun in nouns), reverse=True)
        return count_sentences(list(zip(nouns, numbers, strict=True)))
    first = HORIZONTAL[0] if question.relation in HORIZONTAL else VERTICAL[0]
    return f"The {question.subject} is {first} the {question.other}."


def _usual_name(item: TexturedObject) -> str:
    return item.full_name.replace(item.colour, TYPICAL_COLOURS.get(item.shape, item.colour))


def _corrupt_comparison(scene: ClutteredScene, question: HardQuestion, rng: random.Random) -> str:
    """Exchange the two numbers of a comparing answer, or change one of them."""
    nouns = (question.subject, question.other)
    numbers = [len(scene.matching(noun)) for noun in nouns]
    if rng.random() < _P_SWAP:
        numbers.reverse()
    else:
        index = rng.randrange(2)
        numbers[index] = rng.choice([n for n in range(MAX_COUNT + 1) if n != numbers[index]])
    return count_sentences(list(zip(nouns, numbers, strict=True)))


def _corrupt_description(scene: ClutteredScene, rng: random.Random) -> str:
    """Describe the scene with one fact changed. The order of the objects stays the same."""
    objects = [(o.full_name, o.cell) for o in scene.objects]
    word = scene.sign.word if scene.sign else None
    unusual = [i for i, o in enumerate(scene.objects) if TYPICAL_COLOURS.get(o.shape, o.colour) != o.colour]
    if unusual and rng.random() < _P_PRIOR:
        index = rng.choice(unusual)
        objects[index] = (_usual_name(scene.objects[index]), scene.objects[index].cell)
        return describe(objects, word)
    index = rng.randrange(len(objects))
    changed = scene.objects[index]
    before = objects[index - 1][1] if index else -1
    after = objects[index + 1][1] if index + 1 < len(objects) else len(CELLS)
    free = [cell for cell in range(before + 1, after) if cell != changed.cell]
    facts = ["colour", "shape", "texture", *(["cell"] if free else []), *(["word"] if word else [])]
    fact = rng.choice(facts)
    if fact == "word" and word:
        word = _draw_other(WORDS, word, rng)
    elif fact == "cell":
        objects[index] = (changed.full_name, rng.choice(free))
    else:
        shape, colour, texture = changed.shape, changed.colour, changed.texture
        if fact == "colour":
            colour = _draw_other(_colours_of(scene, shape), colour, rng)
        elif fact == "shape":
            shapes = [s for s in SHAPES if colour in _colours_of(scene, s)]
            shape = _draw_other(shapes, shape, rng)
        else:
            # "A red circle" is true of a striped one as well: a texture can only be changed into another or added.
            texture = _draw_other(TEXTURES[1:], texture, rng)
        name = f"{colour} {shape}" if texture == "solid" else f"{texture} {colour} {shape}"
        objects[index] = (name, changed.cell)
    return describe(objects, word)


def _colours_of(scene: ClutteredScene, shape: str) -> Sequence[str]:
    """Return the colours that texts about a scene may give to a shape."""
    return COLOURS if scene.is_compositional else [c for c in COLOURS if c != UNSEEN_COLOURS[shape]]


def _word(scene: ClutteredScene) -> str:
    return scene.sign.word if scene.sign else ""


def _draw_other(values: Sequence[str], value: str, rng: random.Random) -> str:
    return rng.choice([v for v in values if v != value])
