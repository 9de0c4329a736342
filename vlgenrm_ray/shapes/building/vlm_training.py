"""Training of a tiny VLM, one Qwen3-VL that is both the policy and the base GenRM of an embedded world.

`build_vlm` pretrains the vision tower, then trains the whole model on exercises, questions (many with wrong answers)
and a few critiques. It stops early on purpose: the model should see well and judge poorly.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.shapes.building.curriculum import VlmCurriculum
from vlgenrm_ray.shapes.building.vlm_dataset import IGNORED, ShapesDataset, TrainingTurn
from vlgenrm_ray.shapes.building.vlm_model import VlmArchitecture, build_model, build_processor

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPhase:
    """A training phase: its steps, and the turns of each sort per batch. All other turns are questions."""

    steps: int
    exercises: int
    critiques: int = 0
    verdicts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCycle:
    """Phases under one learning-rate schedule, on scenes of their own."""

    curriculum: VlmCurriculum
    phases: tuple[TrainingPhase, ...]
    horizon: int
    """Steps of the learning-rate schedule. Training may stop earlier, while the model still judges poorly."""
    scenes: int
    adamw_rate: float = 2e-3
    muon_rate: float = 0.02

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmTrainingConfig:
    """Schedule and data of the training of a tiny VLM."""

    cycles: tuple[TrainingCycle, ...]
    architecture: VlmArchitecture = field(default_factory=VlmArchitecture)
    batch: int = 32
    tower_steps: int = 100
    """Steps of `pretrain_vision_tower`, with batches twice as large, before all cycles."""
    warmup: int = 100
    """Steps of linear warm-up of each cycle."""
    num_judgements: int = 400
    """Distinct critiques of a cycle, each also used as a bare verdict; they are repeated throughout the cycle."""


def train_vlm(
    model: "Qwen3VLForConditionalGeneration", processor: "Qwen3VLProcessor", config: VlmTrainingConfig, seed: int
) -> dict[str, Any]:
    """Train the model in place: first to see, then to answer (often wrongly), and to write the format of critiques.

    Returns:
        `cells_seen` (share in [0, 1]), `loss` (mean of the last 100 steps) and `seconds`.
    """
    import torch

    start = time.monotonic()
    metrics: dict[str, Any] = {}
    patch_embed = model.model.visual.patch_embed
    for number, cycle in enumerate(config.cycles):
        dataset = ShapesDataset.draw(processor, cycle.curriculum, size=cycle.scenes, seed=seed + number)
        patch_embed.forward = partial(_embed_patches, patch_embed.proj)
        model.train()
        if number == 0:
            seen = pretrain_vision_tower(model, dataset, steps=config.tower_steps, batch=2 * config.batch, seed=seed)
            print(f"cells seen {seen:.3f}", flush=True)
            metrics["cells_seen"] = seen
        metrics["loss"] = _train_cycle(model, dataset, cycle, config, seed + number)
        del patch_embed.forward
        # Each cycle starts from weights that can be stored in 16 bits.
        model.to(torch.bfloat16).to(torch.float32)
    return metrics | {"seconds": time.monotonic() - start}


def _train_cycle(
    model: "Qwen3VLForConditionalGeneration",
    dataset: ShapesDataset,
    cycle: TrainingCycle,
    config: VlmTrainingConfig,
    seed: int,
) -> float:
    """Train one cycle; return the mean loss of its last 100 steps."""
    import torch

    rng = random.Random(f"config/{seed}")
    critiques, verdicts = dataset.draw_judgements(config.num_judgements, rng)
    optimizer = MuonAdamW(model, adamw_rate=cycle.adamw_rate, muon_rate=cycle.muon_rate)
    kinds = cycle.curriculum.kinds
    start = time.monotonic()
    losses: list[float] = []
    for phase in cycle.phases:
        for _ in range(phase.steps):
            turns = rng.sample(critiques, phase.critiques) + rng.sample(verdicts, phase.verdicts)
            turns += [dataset.draw_exercise(rng) for _ in range(phase.exercises)]
            first = len(losses) * config.batch
            turns += [
                dataset.draw_answer(kinds[(first + i) % len(kinds)], rng) for i in range(config.batch - len(turns))
            ]
            losses.append(_backward(model, dataset, turns))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(_rate(len(losses) - 1, warmup=config.warmup, horizon=cycle.horizon))
            if len(losses) % 100 == 0:
                loss = sum(losses[-100:]) / 100
                print(f"step {len(losses)} loss {loss:.4f} {time.monotonic() - start:.0f} s", flush=True)
    return sum(losses[-100:]) / len(losses[-100:])


def _embed_patches(projection: "torch.nn.Conv3d", patches: "torch.Tensor") -> "torch.Tensor":
    """Embed patches by a matrix product: the same as the model's convolution, and faster on a CPU."""
    import torch

    return torch.nn.functional.linear(patches, projection.weight.flatten(1), projection.bias)


def _rate(step: int, *, warmup: int, horizon: int) -> float:
    """Return the fraction of the peak rates at a step: linear warm-up, then half a cosine down to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(horizon - warmup, 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def _backward(model: "Qwen3VLForConditionalGeneration", dataset: ShapesDataset, turns: list[TrainingTurn]) -> float:
    """Accumulate the gradient of the mean token loss of `turns`; return the loss. Short and long turns run apart."""
    ordered = sorted(turns, key=lambda turn: len(turn.prompt) + len(turn.completion))
    cut = len(ordered) * 2 // 3
    parts = [dataset.collate(part) for part in (ordered[:cut], ordered[cut:])]
    counts = [int((part["labels"] != IGNORED).sum()) for part in parts]
    total = 0.0
    for part, count in zip(parts, counts, strict=True):
        loss = model(**part).loss * (count / sum(counts))
        loss.backward()
        total += float(loss.detach())
    return total


# -- vision tower ---------------------------------------------------------------------------------------------------

_SHARPNESS = 30.0
"""Scale of the logits (cosine times token norm). A large scale keeps token norms close to word norms."""


def pretrain_vision_tower(
    model: "Qwen3VLForConditionalGeneration", dataset: ShapesDataset, *, steps: int, batch: int, seed: int
) -> float:
    """Train the vision tower in place to name the content of each cell in the words of the language model.

    The tower of a large VLM is pretrained on image-text pairs. This one starts from random weights and would learn to
    see only slowly from answers alone. Every merged image token is pulled towards the embeddings of the words for its
    cell (colour, shape, place, ...), so that the language model can read all of them in the same way.

    Returns:
        Share of cells in the last step that were named correctly in all families of words.
    """
    import torch

    tower = model.model.visual
    words = model.model.language_model.embed_tokens.weight.detach()
    families = [_directions(dataset, words, texts) for texts in dataset.curriculum.cell_words]
    truth = torch.tensor([dataset.curriculum.label_cells(scene) for scene in dataset.scenes])
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    correct = torch.zeros(())
    for _ in range(steps):
        indices = torch.randint(len(dataset.scenes), (batch,), generator=generator)
        features = tower(dataset.patches[indices].flatten(0, 1).float(), dataset.grid.expand(batch, -1))
        loss = torch.zeros(())
        correct = torch.ones(batch * truth.shape[1], dtype=torch.bool)
        for tokens in (features.pooler_output, *features.deepstack_features):
            for number, directions in enumerate(families):
                logits = tokens @ directions.T * _SHARPNESS
                target = truth[indices, :, number].flatten()
                loss = loss + torch.nn.functional.cross_entropy(logits, target)
                correct &= logits.argmax(-1) == target
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return float(correct.float().mean())


def _directions(dataset: ShapesDataset, words: "torch.Tensor", texts: Sequence[str]) -> "torch.Tensor":
    """Return the direction of the summed token embeddings of each text, shape [texts, width]."""
    import torch

    sums = [words[dataset.processor.tokenizer.encode(text)].sum(0) for text in texts]
    return torch.nn.functional.normalize(torch.stack(sums), dim=1)


# -- optimizer ------------------------------------------------------------------------------------------------------

_ADAMW_NAMES = ("embed", "lm_head")
_WEIGHT_DECAY = 0.01
_QUINTIC = [(3.4445, -4.7750, 2.0315)]
"""Coefficients of Muon's Newton-Schulz iteration."""


class Muon:
    """Muon: steps along the orthogonalised momentum of each matrix (https://kellerjordan.github.io/posts/muon/).

    `torch.optim.Muon` computes in bfloat16 only. Most CPUs emulate that, 20 times slower than float32.
    """

    def __init__(self, matrices: "list[torch.nn.Parameter]", *, rate: float, momentum: float = 0.95) -> None:
        import torch

        self.rate = rate
        self.momentum = momentum
        self._matrices = matrices
        self._means = [torch.zeros_like(matrix) for matrix in matrices]

    def step(self, share: float) -> None:
        """Update the matrices at a fraction `share` of the peak rate, and clear their gradients."""
        import torch
        from timm.optim.muon import zeropower_via_newtonschulz

        rate = self.rate * share
        with torch.no_grad():
            for matrix, mean in zip(self._matrices, self._means, strict=True):
                if matrix.grad is None:
                    continue
                mean.lerp_(matrix.grad, 1 - self.momentum)
                ahead = matrix.grad.lerp(mean, self.momentum)
                direction = zeropower_via_newtonschulz(ahead, 5, _QUINTIC, dtype=torch.float32)
                rows, columns = matrix.shape
                matrix.mul_(1 - rate * _WEIGHT_DECAY)
                matrix.add_(direction, alpha=-rate * max(1.0, rows / columns) ** 0.5)
                matrix.grad = None


class MuonAdamW:
    """Muon for the matrices between layers, AdamW for all other weights, on one schedule."""

    def __init__(self, model: "torch.nn.Module", *, adamw_rate: float, muon_rate: float) -> None:
        """Create the optimizer; both rates are peak rates."""
        import torch

        matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and not any(word in name for word in _ADAMW_NAMES)
            (matrices if is_matrix else rest).append(parameter)
        self._muon = Muon(matrices, rate=muon_rate)
        self._adamw = torch.optim.AdamW(rest, lr=adamw_rate, betas=(0.9, 0.95), weight_decay=_WEIGHT_DECAY, fused=True)
        self._adamw_rate = adamw_rate

    def step(self, share: float) -> None:
        """Update all weights at a fraction `share` of the peak rates, and clear their gradients."""
        self._muon.step(share)
        for group in self._adamw.param_groups:
            group["lr"] = self._adamw_rate * share
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)


# -- pack -----------------------------------------------------------------------------------------------------------


def build_vlm(folder: Path, config: VlmTrainingConfig, seed: int) -> dict[str, Any]:
    """Build and train a tiny VLM, and write it as a Hugging Face folder of bfloat16 safetensors.

    Returns:
        The settings of the training, its last loss, its seconds and the number of parameters.
    """
    import torch

    torch.set_num_threads(1)  # One thread: equal seeds give equal weights on equal machines.
    processor = build_processor(config.cycles[0].curriculum, config.architecture)
    model = build_model(processor.tokenizer, config.architecture, seed)
    metrics = train_vlm(model, processor, config, seed)
    # bfloat16 halves the size, and every engine starts from the same numbers.
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": seed,
        "steps": sum(cycle.steps for cycle in config.cycles),
        "horizon": config.cycles[-1].horizon,
        "batch": config.batch,
        "scenes": sum(cycle.scenes for cycle in config.cycles),
        "judge_examples": config.num_judgements * len(config.cycles),
        **metrics,
    }
