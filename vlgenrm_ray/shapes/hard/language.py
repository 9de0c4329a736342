"""The language of the hard world: signs, relations and several counts, beside those of the basic world."""

from collections.abc import Sequence

from vlgenrm_ray.shapes.hard.scenes import TexturedObject
from vlgenrm_ray.shapes.language import count_clause, object_phrase, sentence, with_article

MAX_COUNT = 3
"""Largest number that answers a counting question."""


def sign_clause(word: str) -> str:
    """State the word on the sign: `the sign says "OPEN"`."""
    return f'the sign says "{word}"'


def count_sentences(numbers: Sequence[tuple[str, int]]) -> str:
    """State several counts: "There are three circles. There is one square."."""
    return " ".join(sentence(count_clause(noun, number)) for noun, number in numbers)


def relation_clause(colour: str, relation: str, other: str) -> str:
    """State the colour of the shape on one side of another: "there is a blue shape left of the red star"."""
    return f"there is {with_article(f'{colour} shape')} {relation} the {other}"


def full_object_phrases(objects: Sequence[TexturedObject], otherwise: str) -> str:
    """Join the phrases of objects, with textures and places, by commas; return `otherwise` if there are none."""
    return ", ".join(object_phrase(o.full_name, o.cell) for o in objects) or otherwise


def describe(objects: Sequence[tuple[str, int]], word: str | None) -> str:
    """Describe (full name, cell) pairs with one sentence each, then the word of the sign, if there is one."""
    sentences = [sentence(f"there is {object_phrase(name, cell)}") for name, cell in objects]
    return " ".join([*sentences, *([sentence(sign_clause(word))] if word else [])])
