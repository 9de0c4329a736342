"""What the tiny VLM is trained on: pictures of train-split scenes, questions about them, and a few critiques."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vlgenrm_ray.shapes.building.vlm_exercises import exercise
from vlgenrm_ray.shapes.critiques import critique, verdict_word
from vlgenrm_ray.shapes.judging import cot_prompt, direct_prompt
from vlgenrm_ray.shapes.pairs import corrupt
from vlgenrm_ray.shapes.questions import KINDS, ask
from vlgenrm_ray.shapes.render import render
from vlgenrm_ray.shapes.scenes import Scene, draw_in

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3VLProcessor

IGNORED = -100
"""Label of a token that bears no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange about one picture."""

    scene: int
    """Index of the scene in its album."""
    prompt: str
    completion: str


class Album:
    """Scenes with their pictures as the processor makes them."""

    def __init__(self, processor: "Qwen3VLProcessor", scenes: Sequence[Scene]) -> None:
        import torch

        self.processor = processor
        self.scenes = scenes
        patches = []
        for start in range(0, len(scenes), 256):
            pictures = [render(scene) for scene in scenes[start : start + 256]]
            batch = processor.image_processor(images=pictures, return_tensors="pt")
            patches.append(batch["pixel_values"].half().view(len(pictures), -1, batch["pixel_values"].shape[-1]))
        self.patches = torch.cat(patches)
        """[scenes, 36 patches, 3 x 2 x 12 x 12 values]"""
        self.grid = batch["image_grid_thw"][:1]
        self.num_image_tokens = int(self.grid.prod()) // processor.image_processor.merge_size**2

    @classmethod
    def drawn(cls, processor: "Qwen3VLProcessor", *, size: int, seed: int) -> Self:
        """`size` random scenes of the train split."""
        rng = random.Random(f"album/{seed}")
        return cls(processor, [draw_in("train", rng) for _ in range(size)])

    def question(self, kind: str, rng: random.Random) -> tuple[int, Turn, str]:
        """A random question of a kind: the scene's index, the turn, and the same answer with one fact changed."""
        key = rng.random()
        while True:
            index = rng.randrange(len(self.scenes))
            scene = self.scenes[index]
            # Equal seed for every scene that is tried, so that answers stay evenly spread (see `questions.ask`).
            if asked := ask(scene, kind, random.Random(key)):
                turn = Turn(scene=index, prompt=asked.text, completion=asked.reference)
                return index, turn, corrupt(scene, asked, rng)

    def exercise(self, rng: random.Random) -> Turn:
        """A random exercise in seeing."""
        index = rng.randrange(len(self.scenes))
        prompt, completion = exercise(self.scenes[index], rng)
        return Turn(scene=index, prompt=prompt, completion=completion)

    def judgements(self, count: int, rng: random.Random) -> tuple[list[Turn], list[Turn]]:
        """`count` critiques, half of right answers, half of wrong ones to the same questions; their bare verdicts."""
        critiques, verdicts = [], []
        for number in range(count // 2):
            index, turn, wrong = self.question(KINDS[number % len(KINDS)], rng)
            for answer in (turn.completion, wrong):
                text = critique(self.scenes[index], turn.prompt, answer)
                critiques.append(Turn(scene=index, prompt=cot_prompt(turn.prompt, answer), completion=text))
                word = verdict_word(answer == turn.completion)
                verdicts.append(Turn(scene=index, prompt=direct_prompt(turn.prompt, answer), completion=word))
        return critiques, verdicts

    def batch(self, turns: list[Turn]) -> "dict[str, torch.Tensor]":
        """Model inputs with labels, padded on the right; only completions and ends of turn bear loss."""
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
            given = tokenizer.encode(prompt)
            wanted = [*tokenizer.encode(turn.completion), tokenizer.eos_token_id]
            rows.append([*given, *wanted])
            labels.append([*[IGNORED] * len(given), *wanted])
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
