"""Settings of the training stage."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.reward.balance import Balance
from vlgenrm_ray.settings import RemovedSetting, Settings


class TrainingConfig(Settings):
    """Settings of the fine-tuning on one round's examples."""

    removed: ClassVar = {"keep_checkpoints": RemovedSetting(1, "a run resumes from the newest; copy one to keep it")}

    operational: ClassVar = frozenset({"num_cpus", "num_gpus", "checkpoint_every", "retries"})

    objective: Literal["completions", "bradley_terry"] = "completions"
    """`completions`: cross-entropy of the selected critiques, for a generative judge. `bradley_terry`: the preference
    pairs themselves, without critiques and selection, for a discriminative judge that writes no text
    (`judge.direct_prompt` is its prompt; an example is a pair)."""
    workers: int = Field(default=1, ge=1)
    """Training processes; each holds a replica of the model or, under ZeRO, its shard."""
    num_cpus: int = Field(default=2, ge=1)
    """CPUs, hence threads, of each worker."""
    num_gpus: int = Field(default=0, ge=0, le=1)
    """GPUs of each worker: 1, or 0 to train on the CPU."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the round's examples."""
    max_steps: int = Field(default=0, ge=0)
    """Largest number of optimizer steps; 0 runs all steps of the epochs."""
    examples_per_step: int = Field(default=32, ge=1)
    """Examples of one optimizer step, over all workers."""
    tokens_per_batch: int = Field(default=8192, ge=16)
    """Padded tokens, image tokens included, of one micro-batch on one worker. A longer example is dropped, not cut."""
    normalise: Literal["tokens", "examples"] = "tokens"
    """Loss of a step: the weighted mean over its completion tokens, or over its examples (each its tokens' mean)."""
    balance: Balance = "weights"
    """Method that gives Yes and No examples equal weight."""
    seed: int = 0
    """Seed of shuffling, balancing and new adapters."""
    checkpoint_every: int = Field(default=100, ge=0)
    """Steps between checkpoints; 0 writes none, and an interrupted training starts again from the base."""
    retries: int = Field(default=2, ge=0)
    """Restarts of a crashed group of workers, from the last checkpoint, before the stage fails."""
    num_probes: int = Field(default=8, ge=0)
    """Judgements of the trained model recorded in `probes.json` before the export, so that any engine that loads the
    export can compare its rewards with them."""
    images: ImageLimits = ImageLimits()
    """Limits of the images that are opened."""
    image_processor: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's image processor; empty takes those of the engine that wrote the critiques."""
    engine: DeepSpeedConfig = DeepSpeedConfig()
    """Training engine: DeepSpeed and the optimizer."""
