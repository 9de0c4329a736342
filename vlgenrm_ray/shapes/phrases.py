"""The world's language, as written: articles, plurals, numbers and the phrases for things."""

from collections.abc import Sequence

from vlgenrm_ray.shapes.scenes import CELLS, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five")
HORIZONTAL = ("left of", "right of")
VERTICAL = ("above", "below")
RELATIONS = (*HORIZONTAL, *VERTICAL)


def with_article(noun: str) -> str:
    """ "red circle" -> "a red circle", "orange star" -> "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def placed(noun: str, cell: int) -> str:
    """An object phrase: "a red circle at the top left"."""
    return f"{with_article(noun)} at the {CELLS[cell]}"


def listed(things: Sequence[Thing], otherwise: str) -> str:
    """Object phrases of things, comma-separated, or `otherwise` if there are none."""
    return ", ".join(placed(t.name, t.cell) for t in things) or otherwise


def counted(noun: str, number: int) -> str:
    """The clause that counts: "there are two circles", "there is one circle", "there are no circles"."""
    return f"there is one {noun}" if number == 1 else f"there are {NUMBERS[number]} {noun}s"


def sentence(clause: str) -> str:
    """A clause with a capital and a full stop."""
    return f"{clause[0].upper()}{clause[1:]}."
