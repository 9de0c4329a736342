"""Teaching the tiny VLM: enough to answer some questions and to have seen the judge's format, no more."""

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlgenrm_ray.shapes.questions import KINDS
from vlgenrm_ray.shapes.vlm_data import IGNORED, Album, Turn

if TYPE_CHECKING:
    from transformers import Qwen3VLForConditionalGeneration


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """How long and on what. The defaults made the committed weights."""

    steps: int = 2000
    batch: int = 32
    peak_rate: float = 2e-3
    warmup: int = 350
    """Steps; much less, and the loss never falls."""
    scenes: int = 12_000
    num_judgements: int = 400
    """Critiques in all, each also given as a bare verdict; the same ones again and again."""
    judge_share: float = 0.25
    """Share of each batch that are judgements, half of them critiques."""
    judge_from: int = 600
    """First step with judgements."""
    exercise_share: float = 0.6
    """Share of each batch that are exercises, before step `exercise_until`."""
    exercise_until: int = 600
    late_exercise_share: float = 0.3
    """The same from then on."""


def teach(model: "Qwen3VLForConditionalGeneration", album: Album, lessons: Lessons, seed: int) -> dict[str, float]:
    """Train in place on one thread's worth of arithmetic; return the last losses and the seconds it took."""
    import torch

    rng = random.Random(f"lessons/{seed}")
    critiques, verdicts = album.judgements(lessons.num_judgements, rng)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lessons.peak_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )

    def rate(step: int) -> float:
        if step < lessons.warmup:
            return (step + 1) / lessons.warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - lessons.warmup) / (lessons.steps - lessons.warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    began = time.monotonic()
    model.train()
    losses: list[float] = []
    for step in range(lessons.steps):
        turns = _turns(album, critiques, verdicts, lessons, step, rng)
        loss = _backward(model, album, turns)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {sum(losses[-100:]) / 100:.4f} {time.monotonic() - began:.0f} s", flush=True)
    return {"loss": sum(losses[-100:]) / len(losses[-100:]), "seconds": time.monotonic() - began}


def _backward(model: "Qwen3VLForConditionalGeneration", album: Album, turns: list[Turn]) -> float:
    """Add the gradient of the mean token loss of `turns`; return that loss. Short turns run apart from long ones."""
    ordered = sorted(turns, key=lambda turn: len(turn.prompt) + len(turn.completion))
    cut = len(ordered) * 2 // 3
    parts = [album.batch(part) for part in (ordered[:cut], ordered[cut:])]
    counts = [int((part["labels"] != IGNORED).sum()) for part in parts]
    total = 0.0
    for part, count in zip(parts, counts, strict=True):
        loss = model(**part).loss * (count / sum(counts))
        loss.backward()
        total += float(loss.detach())
    return total


def _turns(
    album: Album, critiques: list[Turn], verdicts: list[Turn], lessons: Lessons, step: int, rng: random.Random
) -> list[Turn]:
    """One batch: judgements, exercises, and for the rest the five kinds of question in turn."""
    judged = round(lessons.batch * lessons.judge_share) if step >= lessons.judge_from else 0
    drill = lessons.exercise_share if step < lessons.exercise_until else lessons.late_exercise_share
    turns = rng.sample(critiques, (judged + 1) // 2) + rng.sample(verdicts, judged // 2)
    turns += [album.exercise(rng) for _ in range(round(lessons.batch * drill))]
    first = step * lessons.batch
    return turns + [album.question(KINDS[(first + i) % len(KINDS)], rng)[1] for i in range(lessons.batch - len(turns))]
