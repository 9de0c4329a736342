"""Work of two training workers for a test: each memory setting in bf16 on one model, with results in files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, LoraConfig
from vlgenrm_ray.records import ImageRef

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.vlm_batch import Batch

LORA = LoraConfig(rank=4, alpha=8.0)
CONFIGS = {
    "zero-0": DeepSpeedConfig(zero_stage=0, precision="bf16", freeze_vision=True),
    "zero-1": DeepSpeedConfig(zero_stage=1, precision="bf16"),
    "zero-2": DeepSpeedConfig(zero_stage=2, precision="bf16", freeze_vision=True, gradient_checkpointing=True),
    "zero-3": DeepSpeedConfig(zero_stage=3, precision="bf16", gradient_checkpointing=True),
    "lora-2": DeepSpeedConfig(zero_stage=2, precision="bf16", lora=LORA),
    "lora-3": DeepSpeedConfig(zero_stage=3, precision="bf16", lora=LORA),
    "fp32": DeepSpeedConfig(zero_stage=1, precision="fp32"),
}
LEARNING_RATE = 1e-3
STEPS = 4
SAVED_AT = 2
ROWS = 3
"""Prompts per worker, each with two completions."""
IMAGE_PROCESSOR = {"size": {"shortest_edge": 3136, "longest_edge": 25088}}
COMPLETIONS = ("a red circle", "there are two blue squares to the left")
SIZES = ((96, 150), (200, 61), (181, 123))


def run_bf16_checks(base: Path, folder: Path) -> None:
    """Run all configurations in turn, on every worker. Writes `<configuration>-<rank>.pt` and `<configuration>/`."""
    import torch

    rank = torch.distributed.get_rank()
    batch = encode(base, folder, rank, shared=False)
    shared = encode(base, folder, rank, shared=True)
    for name, config in CONFIGS.items():
        target = folder / name
        target.mkdir(exist_ok=True)
        torch.save(_check(base, config, target, batch, shared), folder / f"{name}-{rank}.pt")


def encode(base: Path, folder: Path, rank: int, *, shared: bool) -> "Batch":
    """Encode a worker's rows: two completions of each prompt, in a row of their own or in one."""
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder

    encoder = VlmEncoder(base, ImageLimits(), image_processor=IMAGE_PROCESSOR)
    rows = []
    for number in range(ROWS):
        ref = draw(folder / f"image-{rank}-{number}.png", SIZES[number], seed=10 * rank + number)
        rows += [(encoder.encode((ref,), f"What is image {number}?", text), (ref,), 1.0) for text in COMPLETIONS]
    return encoder.batch(rows, shared_rows=[range(i, i + 2) for i in range(0, len(rows), 2)] if shared else None)


def draw(path: Path, size: tuple[int, int], seed: int) -> ImageRef:
    """Write an image of coarse noise."""
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)
    return images.probe(str(path), ImageLimits())


def _check(base: Path, config: DeepSpeedConfig, target: Path, batch: "Batch", shared: "Batch") -> dict[str, Any]:
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.export import export

    learner = Learner(base, config, seed=0, keep_reference=True)
    results: dict[str, Any] = {
        "before": learner.logprobs([batch])[0],
        "shared": learner.logprobs([shared])[0],
        "losses": [_step(learner, batch) for _ in range(SAVED_AT)],
    }
    learner.save(target)
    results["losses"] += [_step(learner, batch) for _ in range(SAVED_AT, STEPS)]
    results["after"] = learner.logprobs([batch])[0]
    results["reference"] = learner.logprobs([batch], reference=True)[0]
    results["names"] = [name for name, _ in learner.weights()]
    results["trained"] = [name for name, _ in learner.weights(trained_only=True)]
    export(learner, target / "model")
    learner.close()
    learner = Learner(base, config, seed=1)
    learner.load(target)
    results["resumed"] = [_step(learner, batch) for _ in range(SAVED_AT, STEPS)]
    results["resumed_after"] = learner.logprobs([batch])[0]
    results["shared_loss"] = _step(learner, shared)
    learner.close()
    learner = Learner(target / "model", DeepSpeedConfig(zero_stage=1, precision="bf16"), seed=0)
    results["exported"] = learner.logprobs([batch])[0]
    learner.close()
    return results


def _step(learner: "Learner", batch: "Batch") -> float:
    return learner.step([batch], denominator=60.0, lr=LEARNING_RATE).loss


def largest_difference(one: "torch.Tensor", other: "torch.Tensor") -> float:
    """Return the largest absolute difference of two tensors."""
    return float((one - other).abs().max())
