"""Training data of a tiny VLM: images of train-split scenes, exercises, questions about them, and a few critiques."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vlgenrm_ray.shapes.building.curriculum import TrainingQuestion, VlmCurriculum
from vlgenrm_ray.shapes.language import cot_prompt, direct_prompt
from vlgenrm_ray.shapes.reference_critiques import verdict_word

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

    def __init__(self, processor: "Qwen3VLProcessor", curriculum: VlmCurriculum, scenes: Sequence[Any]) -> None:
        import torch

        self.processor = processor
        self.curriculum = curriculum
        self.scenes = scenes
        patches = []
        for start in range(0, len(scenes), 256):
            images = [curriculum.render(scene) for scene in scenes[start : start + 256]]
            batch = processor.image_processor(images=images, return_tensors="pt")
            patches.append(batch["pixel_values"].half().view(len(images), -1, batch["pixel_values"].shape[-1]))
        self.patches = torch.cat(patches)
        """Preprocessed images, shape [scenes, patches, 3 x 2 x patch x patch values]."""
        self.grid = batch["image_grid_thw"][:1]
        self.num_image_tokens = int(self.grid.prod()) // processor.image_processor.merge_size**2

    @classmethod
    def draw(cls, processor: "Qwen3VLProcessor", curriculum: VlmCurriculum, *, size: int, seed: int) -> Self:
        """Draw `size` random scenes of the train split."""
        rng = random.Random(f"album/{seed}")
        return cls(processor, curriculum, [curriculum.draw_scene(rng) for _ in range(size)])

    def draw_question(self, kind: str, rng: random.Random) -> tuple[int, TrainingQuestion]:
        """Draw a question of a kind. Return the index of its scene, and the question with its answers."""
        key = rng.random()
        while True:
            index = rng.randrange(len(self.scenes))
            scene = self.scenes[index]
            # The same key for every scene keeps answers distributed as the curriculum states.
            if question := self.curriculum.draw_question(scene, kind, key):
                return index, self.curriculum.answer(scene, question, rng)

    def draw_exercise(self, rng: random.Random) -> TrainingTurn:
        """Draw an exercise about a random scene."""
        index = rng.randrange(len(self.scenes))
        prompt, completion = self.curriculum.draw_exercise(self.scenes[index], rng)
        return TrainingTurn(scene=index, prompt=prompt, completion=completion)

    def draw_answer(self, kind: str, rng: random.Random) -> TrainingTurn:
        """Draw a question of a kind with the answer that the policy is trained to give."""
        index, question = self.draw_question(kind, rng)
        return TrainingTurn(scene=index, prompt=question.text, completion=question.habitual)

    def draw_judgements(self, count: int, rng: random.Random) -> tuple[list[TrainingTurn], list[TrainingTurn]]:
        """Draw `count` judgements of right and wrong answers, each as a critique and as a verdict alone."""
        critiques, verdicts = [], []
        kinds = self.curriculum.kinds
        for number in range(count // 2):
            index, question = self.draw_question(kinds[number % len(kinds)], rng)
            for answer in (question.reference, question.wrong):
                text = self.curriculum.critique(self.scenes[index], question.text, answer)
                prompt = cot_prompt(question.text, answer)
                critiques.append(TrainingTurn(scene=index, prompt=prompt, completion=text))
                prompt, word = direct_prompt(question.text, answer), verdict_word(answer == question.reference)
                verdicts.append(TrainingTurn(scene=index, prompt=prompt, completion=word))
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
