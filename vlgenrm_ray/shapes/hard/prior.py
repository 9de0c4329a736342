"""Language prior of the hard world: what is usual in the train split, and rare in validation and test.

Some shapes have a typical colour, signs mostly say "STOP", things mostly come in twos, and most answers are yes or the
side that the question names first. A judge or a policy that relies on this is often right in the train split and often
wrong in the others. Some pairs of colour and shape never occur in the train split at all.
"""

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
TEXTURES = ("solid", "striped", "dotted")
WORDS = ("STOP", "SHOP", "OPEN", "EXIT", "SALE", "TAXI")

TYPICAL_COLOURS = {"circle": "red", "star": "yellow", "heart": "pink"}
"""Shapes with a typical colour."""
TYPICAL_NAMES = tuple(f"{colour} {shape}" for shape, colour in TYPICAL_COLOURS.items())
TYPICAL_WORD = "STOP"
TYPICAL_NUMBER = 2

UNSEEN_COLOURS = {
    **{"circle": "green", "square": "purple", "triangle": "orange"},
    **{"star": "blue", "heart": "brown", "diamond": "yellow"},
}
"""For each shape the colour that it never has in the train split; compositional items show such pairs."""
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SEEN_NAMES = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES if UNSEEN_COLOURS[s] != c)
"""Pairs of colour and shape that occur in the train split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPrior:
    """Frequencies of the typical in one split, as probabilities."""

    typical_colour: float
    """A shape with a typical colour has it."""
    typical_word: float
    """A sign says `TYPICAL_WORD`."""
    typical_number: float
    """The answer to a counting question is `TYPICAL_NUMBER`."""
    yes: float
    """The answer to an existence question is yes."""
    first: float
    """The answer to a spatial or comparing question is the side that the question names first."""


TRAIN_PRIOR = SplitPrior(typical_colour=0.65, typical_word=0.6, typical_number=0.5, yes=0.7, first=0.7)
UNBIASED = SplitPrior(typical_colour=0.15, typical_word=0.17, typical_number=0.25, yes=0.5, first=0.5)
"""Frequencies without a prior."""
EVALUATION_PRIOR = SplitPrior(typical_colour=0.05, typical_word=0.05, typical_number=0.1, yes=0.4, first=0.35)


def prior_of(split: str) -> SplitPrior:
    """Return the frequencies of a split."""
    return TRAIN_PRIOR if split == "train" else EVALUATION_PRIOR
