"""The language of the embedded world: articles, plurals, numbers, object phrases, and the prompts of its judge."""

from collections.abc import Sequence

from vlgenrm_ray.shapes.scenes import CELLS, SceneObject

NUMBERS = ("no", "one", "two", "three", "four", "five")
HORIZONTAL = ("left of", "right of")
VERTICAL = ("above", "below")
RELATIONS = (*HORIZONTAL, *VERTICAL)


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun phrase: "a red circle", "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def object_phrase(noun: str, cell: int) -> str:
    """Name an object with its cell: "a red circle at the top left"."""
    return f"{with_article(noun)} at the {CELLS[cell]}"


def object_phrases(objects: Sequence[SceneObject], otherwise: str) -> str:
    """Join the phrases of objects by commas; return `otherwise` if there are none."""
    return ", ".join(object_phrase(o.name, o.cell) for o in objects) or otherwise


def count_clause(noun: str, number: int) -> str:
    """State a count: "there are two circles", "there is one circle", "there are no circles"."""
    return f"there is one {noun}" if number == 1 else f"there are {NUMBERS[number]} {noun}s"


def sentence(clause: str) -> str:
    """Turn a clause into a sentence with a capital letter and a full stop."""
    return f"{clause[0].upper()}{clause[1:]}."


def cot_prompt(question: str, response: str) -> str:
    """Return the prompt for a critique with a verdict. `judge/prompts/shapes_cot.txt` holds the same text."""
    return f"Question: {question}\nResponse: {response}\nCheck each claim against the image, then give a verdict."


def direct_prompt(question: str, response: str) -> str:
    """Return the prompt for a verdict alone. `judge/prompts/shapes_direct.txt` holds the same text."""
    return f"Question: {question}\nResponse: {response}\nIs the response right? Answer Yes or No."
