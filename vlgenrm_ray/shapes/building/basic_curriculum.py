"""Training material of the basic world's VLM: exercises in seeing, answers that are often wrong, critiques."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from vlgenrm_ray.shapes.building.curriculum import TrainingQuestion
from vlgenrm_ray.shapes.corruption import corrupt_answer
from vlgenrm_ray.shapes.language import (
    NUMBERS,
    cot_prompt,
    direct_prompt,
    object_phrase,
    object_phrases,
    sentence,
    with_article,
)
from vlgenrm_ray.shapes.questions import KINDS, ShapesQuestion, draw_question
from vlgenrm_ray.shapes.reference_critiques import reference_critique
from vlgenrm_ray.shapes.render import render
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, MAX_OBJECTS, SHAPES, Scene, draw_scene, draw_scene_of

WRONG_ANSWER_SHARE = 0.3
"""Share of the training answers with one wrong fact. The model then errs as a policy although it sees well, like
large models that learnt from human captions."""
_NOTHING = "nothing"


class BasicCurriculum:
    """Training material of the basic world. See `VlmCurriculum`."""

    kinds: Sequence[str] = KINDS
    cell_words: Sequence[Sequence[str]] = (
        tuple(f" {word}" for word in (*COLOURS, _NOTHING)),
        tuple(f" {word}" for word in (*SHAPES, _NOTHING)),
        tuple(f" {cell}" for cell in CELLS),
    )

    def draw_scene(self, rng: random.Random) -> Scene:
        """See `VlmCurriculum`."""
        return draw_scene_of("train", rng)

    def render(self, scene: Any) -> Image.Image:
        """See `VlmCurriculum`."""
        return render(scene)

    def label_cells(self, scene: Scene) -> list[tuple[int, ...]]:
        """See `VlmCurriculum`. "Empty" is one more colour and one more shape."""
        occupants = [scene.at(cell) for cell in range(len(CELLS))]
        return [
            (COLOURS.index(o.colour), SHAPES.index(o.shape), cell) if o else (len(COLOURS), len(SHAPES), cell)
            for cell, o in enumerate(occupants)
        ]

    def draw_question(self, scene: Scene, kind: str, key: float) -> ShapesQuestion | None:
        """See `VlmCurriculum`."""
        return draw_question(scene, kind, random.Random(key))

    def answer(self, scene: Scene, question: ShapesQuestion, rng: random.Random) -> TrainingQuestion:
        """See `VlmCurriculum`. The policy's answer is wrong in a share of `WRONG_ANSWER_SHARE`."""
        wrong = corrupt_answer(scene, question, rng)
        habitual = wrong if rng.random() < WRONG_ANSWER_SHARE else question.reference
        return TrainingQuestion(text=question.text, reference=question.reference, wrong=wrong, habitual=habitual)

    def draw_exercise(self, scene: Scene, rng: random.Random) -> tuple[str, str]:
        """Draw an exercise on a scene: its prompt and its completion.

        Exercises teach abilities that a large VLM brings along: naming the object at a place, finding objects,
        repeating a text. None of them teaches judging: nothing is called right or wrong, and a repeated text is not
        about the image.
        """
        kinds = (_name_cells, _name_all_cells, _find_objects, _repeat_text)
        return rng.choices(kinds, weights=(3, 1, 5, 1))[0](scene, rng)

    def critique(self, scene: Scene, question: str, response: str) -> str:
        """See `VlmCurriculum`."""
        return reference_critique(scene, question, response)

    def corpus(self) -> Iterator[str]:
        """See `VlmCurriculum`."""
        rng = random.Random(0)
        for _ in range(400):
            for kind in KINDS:
                while (question := draw_question(scene := draw_scene(rng), kind, rng)) is None:
                    pass
                yield question.text
                yield question.reference
                yield cot_prompt(question.text, question.reference)
                yield direct_prompt(question.text, question.reference)
                yield reference_critique(scene, question.text, question.reference)
                yield from self.draw_exercise(scene, rng)
        for _ in range(100):
            yield from (f" no {colour} {shape}s" for colour in COLOURS for shape in (*SHAPES, "shape"))
            yield from (f" {number} {shape}s, nothing at" for number in NUMBERS for shape in SHAPES)
            yield from (object_phrase(f"{colour} star", 4) for colour in COLOURS)
            yield "user assistant system"
            yield from ("Yes No yes no Verdict: Yes", "Verdict: No", "Right. Wrong.", "left of right of above below")


def _name_cells(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Name some cells in any order: "top left: a red circle. centre: nothing."."""
    cells = rng.sample(range(len(CELLS)), rng.randint(1, MAX_OBJECTS))
    places = ", the ".join(CELLS[cell] for cell in cells)
    return f"What is at the {places}?", _read_cells(scene, cells)


def _name_all_cells(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Name all cells in order."""
    return "What is where?", _read_cells(scene, list(range(len(CELLS))))


def _find_objects(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """List all objects of a shape, a colour or both, with their places."""
    name = rng.choice(scene.objects).name if rng.random() < 0.5 else f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}"
    colour, shape = name.split()
    noun = rng.choice((shape, f"{colour} shape", name))
    return f"Which {noun}s are there?", sentence(object_phrases(scene.matching(noun), f"no {noun}s"))


def _repeat_text(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Repeat an answer about another scene, word for word."""
    while (question := draw_question(draw_scene(rng), rng.choice(KINDS), rng)) is None:
        pass
    return f"Repeat: {question.reference}", question.reference


def _read_cells(scene: Scene, cells: list[int]) -> str:
    names = (with_article(occupant.name) if (occupant := scene.at(cell)) else _NOTHING for cell in cells)
    return " ".join(f"{CELLS[cell]}: {name}." for cell, name in zip(cells, names, strict=True))
