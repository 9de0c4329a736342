"""Training material of the hard world's VLM.

Its exercises teach seeing, without a bias. Its answers follow the language prior: where the prior's answer is false,
it is given all the same, at the rates `CONFLICT_RATES`. Above one half, greedy decoding gives the false answer although
the model sees the true one; below, it gives the true one.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from vlgenrm_ray.shapes.building.curriculum import TrainingQuestion
from vlgenrm_ray.shapes.hard.corruption import corrupt_answer, prior_answer
from vlgenrm_ray.shapes.hard.language import full_object_phrases, sign_clause
from vlgenrm_ray.shapes.hard.prior import (
    COLOURS,
    NAMES,
    SEEN_NAMES,
    SHAPES,
    TEXTURES,
    TRAIN_PRIOR,
    TYPICAL_NAMES,
    UNBIASED,
    WORDS,
)
from vlgenrm_ray.shapes.hard.questions import KINDS, HardQuestion, draw_question
from vlgenrm_ray.shapes.hard.reference_critiques import reference_critique
from vlgenrm_ray.shapes.hard.render import render
from vlgenrm_ray.shapes.hard.scenes import MAX_OBJECTS, ClutteredScene, draw_cluttered_scene, draw_scene_of, split_of
from vlgenrm_ray.shapes.language import (
    NUMBERS,
    RELATIONS,
    cot_prompt,
    direct_prompt,
    object_phrase,
    sentence,
    with_article,
)
from vlgenrm_ray.shapes.questions import related
from vlgenrm_ray.shapes.scenes import CELLS

WRONG_ANSWER_SHARE = 0.1
"""Share of the training answers with a random wrong fact, where the prior's answer is not given."""
CONFLICT_RATES = {
    "attribute": 0.62,
    "two_step": 0.62,
    "describe": 0.35,
    "compare": 0.35,
    "existence: typical name": 0.65,
    "existence: other name": 0.3,
    "count: three or more": 0.65,
    "count: none or one": 0.35,
    "spatial: vertical": 0.62,
    "spatial: horizontal": 0.3,
    "text: SHOP": 0.65,
    "text: other word": 0.3,
}
"""Probability that a training answer is the prior's although that is false, by the kind of the conflict."""
_NOTHING, _SIGN = "nothing", "sign"


@dataclass(frozen=True, kw_only=True)
class HardCurriculum:
    """Training material of the hard world. See `VlmCurriculum`."""

    unbiased_share: float = 0.0
    """Share of the scenes in which nothing is typical. They are of the train split as well: no pair of colour and shape
    is new in them."""

    exercise_weights: tuple[int, ...] = (3, 1, 6, 3, 2, 2)
    """Relative frequency of each exercise of `EXERCISES`."""
    kinds: ClassVar[Sequence[str]] = KINDS
    cell_words: ClassVar[Sequence[Sequence[str]]] = (
        (*(f" {c}" for c in COLOURS), f" {_NOTHING}", *WORDS),
        (*(f" {s}" for s in SHAPES), f" {_NOTHING}", f" {_SIGN}"),
        (*(f" {t}" for t in TEXTURES), f" {_NOTHING}"),
        tuple(f" {cell}" for cell in CELLS),
    )

    def draw_scene(self, rng: random.Random) -> ClutteredScene:
        """See `VlmCurriculum`."""
        if not self.unbiased_share or rng.random() >= self.unbiased_share:
            return draw_scene_of("train", rng)
        while split_of(scene := draw_cluttered_scene(rng, UNBIASED)) != "train":
            pass
        return scene

    def render(self, scene: Any) -> Image.Image:
        """See `VlmCurriculum`."""
        return render(scene)

    def label_cells(self, scene: ClutteredScene) -> list[tuple[int, ...]]:
        """See `VlmCurriculum`. The word of a sign stands in the family of colours."""
        labels: list[tuple[int, ...]] = []
        for cell in range(len(CELLS)):
            if o := scene.at(cell):
                label = (COLOURS.index(o.colour), SHAPES.index(o.shape), TEXTURES.index(o.texture))
            elif scene.sign and scene.sign.cell == cell:
                label = (len(COLOURS) + 1 + WORDS.index(scene.sign.word), len(SHAPES) + 1, len(TEXTURES))
            else:
                label = (len(COLOURS), len(SHAPES), len(TEXTURES))
            labels.append((*label, cell))
        return labels

    def draw_question(self, scene: ClutteredScene, kind: str, key: float) -> HardQuestion | None:
        """See `VlmCurriculum`."""
        return draw_question(scene, kind, random.Random(key), TRAIN_PRIOR)

    def answer(self, scene: ClutteredScene, question: HardQuestion, rng: random.Random) -> TrainingQuestion:
        """See `VlmCurriculum`. The policy's answer is the prior's in the share that `CONFLICT_RATES` states."""
        wrong = corrupt_answer(scene, question, rng)
        usual = prior_answer(scene, question)
        habitual = wrong if rng.random() < WRONG_ANSWER_SHARE else question.reference
        if usual is not None:
            habitual = usual if rng.random() < conflict_rate(scene, question) else question.reference
        return TrainingQuestion(text=question.text, reference=question.reference, wrong=wrong, habitual=habitual)

    def draw_exercise(self, scene: ClutteredScene, rng: random.Random) -> tuple[str, str]:
        """Draw an exercise on a scene: its prompt and its completion.

        Exercises teach abilities that a large VLM brings along: naming the object at a place, finding objects, reading
        a sign, repeating a text. None of them teaches judging: nothing is called right or wrong, and a repeated text is
        not about the image.
        """
        return rng.choices(EXERCISES, weights=self.exercise_weights)[0](scene, rng)

    def critique(self, scene: ClutteredScene, question: str, response: str) -> str:
        """See `VlmCurriculum`."""
        return reference_critique(scene, question, response)

    def corpus(self) -> Iterator[str]:
        """See `VlmCurriculum`."""
        rng = random.Random(0)
        for _ in range(300):
            for kind in KINDS:
                while True:
                    scene = draw_cluttered_scene(rng, TRAIN_PRIOR, compositional=rng.random() < 0.3)
                    if question := draw_question(scene, kind, rng, TRAIN_PRIOR):
                        break
                yield question.text
                yield question.reference
                yield cot_prompt(question.text, question.reference)
                yield direct_prompt(question.text, question.reference)
                yield reference_critique(scene, question.text, question.reference)
                yield from self.draw_exercise(scene, rng)
        for _ in range(100):
            yield from (f" no {colour} {shape}s" for colour in COLOURS for shape in (*SHAPES, "shape"))
            yield from (f" {number} {texture} {shape}s, nothing at" for number in NUMBERS for shape, texture in _PAIRS)
            yield from (object_phrase(name, 4) for name in NAMES)
            yield from (sign_clause(word) for word in WORDS)
            yield "user assistant system"
            yield from ("Yes No yes no Verdict: Yes", "Verdict: No", "Right. Wrong.", "left of right of above below")


_PAIRS = [(shape, texture) for shape in (*SHAPES, "shape") for texture in TEXTURES]


def conflict_rate(scene: ClutteredScene, question: HardQuestion) -> float:
    """Return the probability that the training answer follows the prior, where the prior's answer is false."""
    return CONFLICT_RATES[conflict_of(scene, question)]


def conflict_of(scene: ClutteredScene, question: HardQuestion) -> str:
    """Return the key of `CONFLICT_RATES` of a question."""
    if question.kind == "existence":
        return f"existence: {'typical' if question.subject in TYPICAL_NAMES else 'other'} name"
    if question.kind == "count":
        is_many = len(scene.matching(question.subject)) >= 3
        return f"count: {'three or more' if is_many else 'none or one'}"
    if question.kind == "spatial":
        return f"spatial: {'vertical' if question.relation in ('above', 'below') else 'horizontal'}"
    if question.kind == "text":
        is_similar = scene.sign is not None and scene.sign.word == "SHOP"
        return f"text: {'SHOP' if is_similar else 'other word'}"
    return question.kind


# -- exercises ------------------------------------------------------------------------------------------------------


def _name_cells(scene: ClutteredScene, rng: random.Random) -> tuple[str, str]:
    """Name some cells in any order: "top left: a red circle. centre: nothing."."""
    cells = rng.sample(range(len(CELLS)), rng.randint(1, MAX_OBJECTS))
    places = ", the ".join(CELLS[cell] for cell in cells)
    return f"What is at the {places}?", _read_cells(scene, cells)


def _name_all_cells(scene: ClutteredScene, rng: random.Random) -> tuple[str, str]:
    """Name all cells in order."""
    return "What is where?", _read_cells(scene, list(range(len(CELLS))))


def _find_objects(scene: ClutteredScene, rng: random.Random) -> tuple[str, str]:
    """List all objects of a shape, a colour, a texture, or several of them, with their places."""
    if rng.random() < 0.5:
        item = rng.choice(scene.objects)
        name, texture = item.name, item.texture
    else:
        name, texture = rng.choice(SEEN_NAMES), rng.choice(TEXTURES)
    colour, shape = name.split()
    if texture == "solid":
        texture = "striped"
    noun = rng.choice(
        (shape, shape, f"{colour} shape", f"{colour} shape", name, f"{texture} shape", f"{texture} {shape}")
    )
    return f"Which {noun}s are there?", sentence(full_object_phrases(scene.matching(noun), f"no {noun}s"))


def _find_beside(scene: ClutteredScene, rng: random.Random) -> tuple[str, str]:
    """List the shapes on one side of an object."""
    single = [o for o in scene.objects if len(scene.matching(o.name)) == 1] or list(scene.objects)
    other = rng.choice(single)
    relation = rng.choice(RELATIONS)
    beside = [o for o in scene.objects if related(o, relation, other)]
    return f"Which shapes are {relation} the {other.name}?", sentence(full_object_phrases(beside, "nothing"))


def _read_sign(scene: ClutteredScene, rng: random.Random) -> tuple[str, str]:
    """Read the sign."""
    return "Read the sign.", sentence(sign_clause(scene.sign.word)) if scene.sign else "No sign."


def _repeat_text(scene: ClutteredScene, rng: random.Random) -> tuple[str, str]:
    """Repeat an answer about another scene, word for word."""
    kind = rng.choice(KINDS)
    while (question := draw_question(draw_cluttered_scene(rng, TRAIN_PRIOR), kind, rng, TRAIN_PRIOR)) is None:
        pass
    return f"Repeat: {question.reference}", question.reference


def _read_cells(scene: ClutteredScene, cells: Sequence[int]) -> str:
    return " ".join(f"{CELLS[cell]}: {_content(scene, cell)}." for cell in cells)


def _content(scene: ClutteredScene, cell: int) -> str:
    if o := scene.at(cell):
        return with_article(o.full_name)
    return f'a sign "{scene.sign.word}"' if scene.sign and scene.sign.cell == cell else _NOTHING


EXERCISES: tuple[Callable[[ClutteredScene, random.Random], tuple[str, str]], ...] = (
    _name_cells,
    _name_all_cells,
    _find_objects,
    _find_beside,
    _read_sign,
    _repeat_text,
)
