"""Training data of the tiny VLM: images of train-split scenes, exercises, questions about them, and a few critiques."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vlgenrm_ray.shapes.language import cot_prompt, direct_prompt, object_phrases, sentence, with_article
from vlgenrm_ray.shapes.pairs import corrupt_answer
from vlgenrm_ray.shapes.questions import KINDS, draw_question
from vlgenrm_ray.shapes.reference_critiques import reference_critique, verdict_word
from vlgenrm_ray.shapes.render import render
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, MAX_OBJECTS, SHAPES, Scene, draw_scene, draw_scene_of

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3VLProcessor

IGNORED = -100
"""Label of tokens without loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTurn:
    """A prompt and its completion about one image."""

    scene: int
    """Index of the scene in its dataset."""
    prompt: str
    completion: str


class ShapesDataset:
    """Scenes of the train split with their preprocessed images; draws training turns about them."""

    def __init__(self, processor: "Qwen3VLProcessor", scenes: Sequence[Scene]) -> None:
        import torch

        self.processor = processor
        self.scenes = scenes
        patches = []
        for start in range(0, len(scenes), 256):
            images = [render(scene) for scene in scenes[start : start + 256]]
            batch = processor.image_processor(images=images, return_tensors="pt")
            patches.append(batch["pixel_values"].half().view(len(images), -1, batch["pixel_values"].shape[-1]))
        self.patches = torch.cat(patches)
        """Preprocessed images, shape [scenes, 36 patches, 3 x 2 x 12 x 12 values]."""
        self.grid = batch["image_grid_thw"][:1]
        self.num_image_tokens = int(self.grid.prod()) // processor.image_processor.merge_size**2

    @classmethod
    def draw(cls, processor: "Qwen3VLProcessor", *, size: int, seed: int) -> Self:
        """Draw `size` random scenes of the train split."""
        rng = random.Random(f"album/{seed}")
        return cls(processor, [draw_scene_of("train", rng) for _ in range(size)])

    def draw_question(self, kind: str, rng: random.Random) -> tuple[int, TrainingTurn, str]:
        """Draw a question of a kind. Return the index of its scene, the training turn, and a wrong answer."""
        key = rng.random()
        while True:
            index = rng.randrange(len(self.scenes))
            scene = self.scenes[index]
            # The same seed for every scene keeps answers evenly distributed (see `questions.draw_question`).
            if question := draw_question(scene, kind, random.Random(key)):
                turn = TrainingTurn(scene=index, prompt=question.text, completion=question.reference)
                return index, turn, corrupt_answer(scene, question, rng)

    def draw_exercise(self, rng: random.Random) -> TrainingTurn:
        """Draw an exercise about a random scene."""
        index = rng.randrange(len(self.scenes))
        prompt, completion = draw_exercise(self.scenes[index], rng)
        return TrainingTurn(scene=index, prompt=prompt, completion=completion)

    def draw_judgements(self, count: int, rng: random.Random) -> tuple[list[TrainingTurn], list[TrainingTurn]]:
        """Draw `count` judgements of right and wrong answers, each as a critique and as a verdict alone."""
        critiques, verdicts = [], []
        for number in range(count // 2):
            index, turn, wrong = self.draw_question(KINDS[number % len(KINDS)], rng)
            for answer in (turn.completion, wrong):
                text = reference_critique(self.scenes[index], turn.prompt, answer)
                critiques.append(TrainingTurn(scene=index, prompt=cot_prompt(turn.prompt, answer), completion=text))
                word = verdict_word(answer == turn.completion)
                verdicts.append(TrainingTurn(scene=index, prompt=direct_prompt(turn.prompt, answer), completion=word))
        return critiques, verdicts

    def collate(self, turns: list[TrainingTurn]) -> "dict[str, torch.Tensor]":
        """Collate turns into model inputs with labels, right-padded; only completions and ends of turn have a loss."""
        import torch

        tokenizer = self.processor.tokenizer
        image_token = self.processor.image_token_id
        rows, labels = [], []
        for turn in turns:
            content = [{"type": "image"}, {"type": "text", "text": turn.prompt}]
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            prompt = prompt.replace(self.processor.image_token, self.processor.image_token * self.num_image_tokens)
            prompt_ids = tokenizer.encode(prompt)
            completion_ids = [*tokenizer.encode(turn.completion), tokenizer.eos_token_id]
            rows.append([*prompt_ids, *completion_ids])
            labels.append([*[IGNORED] * len(prompt_ids), *completion_ids])
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[tokenizer.pad_token_id] * (width - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        patches = self.patches[torch.tensor([turn.scene for turn in turns])]
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(width)[None, :] < lengths[:, None]).long(),
            "labels": torch.tensor([[*row, *[IGNORED] * (width - len(row))] for row in labels]),
            "mm_token_type_ids": (ids == image_token).int(),
            "pixel_values": patches.flatten(0, 1).float(),
            "image_grid_thw": self.grid.expand(len(turns), -1),
        }


def draw_exercise(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Draw an exercise on a scene: its prompt and its completion.

    Exercises teach abilities that a large VLM brings along: naming the object at a place, finding objects, repeating a
    text. None of them teaches judging: nothing is called right or wrong, and a repeated text is not about the image.
    """
    kinds = (_name_cells, _name_all_cells, _find_objects, _repeat_text)
    return rng.choices(kinds, weights=(3, 1, 5, 1))[0](scene, rng)


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
    names = (with_article(occupant.name) if (occupant := scene.at(cell)) else "nothing" for cell in cells)
    return " ".join(f"{CELLS[cell]}: {name}." for cell, name in zip(cells, names, strict=True))
