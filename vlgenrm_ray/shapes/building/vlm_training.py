"""Teaching the tiny VLM: to see first, then to answer, often wrongly, and of judging no more than the format."""

import math
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlgenrm_ray.shapes.building.vlm_data import IGNORED, Album, Turn
from vlgenrm_ray.shapes.building.vlm_optimizer import Optimizer
from vlgenrm_ray.shapes.building.vlm_seeing import see
from vlgenrm_ray.shapes.questions import KINDS

if TYPE_CHECKING:
    from transformers import Qwen3VLForConditionalGeneration


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training with one mix: of each batch so many of these, and for the rest questions."""

    steps: int
    exercises: int
    critiques: int = 0
    verdicts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """How long and on what."""

    phases: tuple[Phase, ...] = (
        Phase(steps=1000, exercises=20),
        Phase(steps=1000, exercises=14, critiques=2, verdicts=2),
    )
    horizon: int = 3000
    """Steps for which the fall of the rates is laid out. It stops before, seeing well and judging poorly."""
    batch: int = 32
    seeing: int = 100
    """Steps, before all others, in which the vision tower alone learns to name what it sees; of twice the pictures."""
    adamw_rate: float = 2e-3
    muon_rate: float = 0.02
    warmup: int = 100
    """Steps."""
    scenes: int = 8_000
    misled: float = 0.3
    """Share of the answers it is taught that are wrong in one fact. So it errs as a policy, as large ones do that have
    learnt from captions as people write them, though it sees well: what it says is to be checked, not what it sees."""
    num_judgements: int = 400
    """Critiques in all, each also given as a bare verdict; the same ones again and again."""

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


def teach(model: "Qwen3VLForConditionalGeneration", album: Album, lessons: Lessons, seed: int) -> dict[str, float]:
    """Train in place; return the share of cells seen, the mean loss of the last 100 steps and the seconds it took."""
    import torch

    rng = random.Random(f"lessons/{seed}")
    critiques, verdicts = album.judgements(lessons.num_judgements, rng)
    began = time.monotonic()
    model.train()
    seen = see(model, album, steps=lessons.seeing, batch=2 * lessons.batch, seed=seed)
    print(f"cells seen {seen:.3f}", flush=True)
    optimizer = Optimizer(model, adamw_rate=lessons.adamw_rate, muon_rate=lessons.muon_rate)
    losses: list[float] = []
    for phase in lessons.phases:
        for _ in range(phase.steps):
            turns = rng.sample(critiques, phase.critiques) + rng.sample(verdicts, phase.verdicts)
            turns += [album.exercise(rng) for _ in range(phase.exercises)]
            first = len(losses) * lessons.batch
            turns += [
                _answer(album, KINDS[(first + i) % len(KINDS)], lessons.misled, rng)
                for i in range(lessons.batch - len(turns))
            ]
            losses.append(_backward(model, album, turns))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(_rate(len(losses) - 1, lessons))
            if len(losses) % 100 == 0:
                loss = sum(losses[-100:]) / 100
                print(f"step {len(losses)} loss {loss:.4f} {time.monotonic() - began:.0f} s", flush=True)
    return {"cells_seen": seen, "loss": sum(losses[-100:]) / len(losses[-100:]), "seconds": time.monotonic() - began}


def _answer(album: Album, kind: str, misled: float, rng: random.Random) -> Turn:
    """A question with its answer, or, in so large a share of cases, with a wrong one."""
    _, turn, wrong = album.question(kind, rng)
    return replace(turn, completion=wrong) if rng.random() < misled else turn


def _rate(step: int, lessons: Lessons) -> float:
    """Share of the peak rates: up in a line, down in half a cosine to a twentieth."""
    if step < lessons.warmup:
        return (step + 1) / lessons.warmup
    done = (step - lessons.warmup) / max(lessons.horizon - lessons.warmup, 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


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
