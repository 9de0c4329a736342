"""Training material of a tiny VLM: scenes of the train split, exercises in seeing, answers, critiques."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingQuestion:
    """A question about a scene with its true answer, a false one, and the one that the policy is trained to give."""

    text: str
    reference: str
    wrong: str
    habitual: str
    """The true answer, or a false one: the policy errs although it sees well."""


class VlmCurriculum(Protocol):
    """Training material of one world. Scenes are opaque to the training; every world has a type of its own."""

    @property
    def kinds(self) -> Sequence[str]:
        """Kinds of question."""
        ...

    @property
    def cell_words(self) -> Sequence[Sequence[str]]:
        """Families of words that describe a cell of the image (colour, shape, place, ...), as texts to be tokenized."""
        ...

    def draw_scene(self, rng: Random) -> Any:
        """Draw a scene of the train split."""
        ...

    def render(self, scene: Any) -> Image.Image:
        """Render a scene."""
        ...

    def label_cells(self, scene: Any) -> list[tuple[int, ...]]:
        """Return for each cell of the image the index of its word in each family of `cell_words`."""
        ...

    def draw_question(self, scene: Any, kind: str, key: float) -> Any:
        """Draw a question of a kind; None if the answer that `key` determines does not fit the scene."""
        ...

    def answer(self, scene: Any, question: Any, rng: Random) -> TrainingQuestion:
        """Give a drawn question its answers."""
        ...

    def draw_exercise(self, scene: Any, rng: Random) -> tuple[str, str]:
        """Draw an exercise in seeing: its prompt and its completion."""
        ...

    def critique(self, scene: Any, question: str, response: str) -> str:
        """Write the reference critique of a response."""
        ...

    def corpus(self) -> Iterator[str]:
        """Generate text in which every word of the world is frequent, with and without a leading space."""
        ...
