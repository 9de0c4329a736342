"""Settings of training with DeepSpeed, the learning-rate schedule, and the configuration passed to DeepSpeed."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vlgenrm_ray.engines.environment import thread_variables
from vlgenrm_ray.settings import Settings


class LoraConfig(Settings):
    """Low-rank adapters (arXiv 2106.09685) on the language model's linear layers."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Numerator of the adapters' scale, alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability on the adapters' input."""
    target_modules: str = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    """Regular expression that whole module names must match."""


class DeepSpeedConfig(Settings):
    """Optimizer, precision and memory of training with DeepSpeed."""

    renamed: ClassVar[Mapping[str, str]] = {"warmup_share": "warmup_ratio", "min_lr_share": "min_lr_ratio"}

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage. Workers partition: nothing (0), optimizer states (1), also gradients (2), also weights (3)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the forward pass. `bf16` keeps fp32 master weights (ZeRO 1-3) or uses autocast (ZeRO 0). `auto`:
    bf16 on GPUs, fp32 on CPUs, because most CPUs only emulate bf16, many times slower."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Storage of unused optimizer states (and of weights with ZeRO 3): `cpu` needs ZeRO 2 or 3, `nvme` needs ZeRO 3."""
    nvme_path: str = ""
    """Folder on the fast disk of each node, for `offload: nvme`."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Highest learning rate of the schedule."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the linear warm-up: cosine decay, or constant."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of all steps over which the learning rate rises linearly from 0."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of a cosine schedule, as a fraction of the highest."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moment estimates."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Global norm that gradients are clipped to."""
    lora: LoraConfig | None = None
    """Low-rank adapters to train. None: train all weights."""
    freeze_vision: bool = False
    """Do not train the vision tower and its merger."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which needs less memory and about a third more time."""

    shared_prompts: bool = True
    """Compute the prompt of several samples once, in one row, where that is cheaper. Such a row has a mask, for which
    attention has no flash kernel; false gives every sample a row of its own."""

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> "DeepSpeedConfig":
        if self.offload == "cpu" and self.zero_stage < 2:
            raise ValueError(f"offload = cpu needs zero_stage 2 or 3, got {self.zero_stage}")
        if self.offload == "nvme" and (self.zero_stage < 3 or not self.nvme_path):
            raise ValueError("offload = nvme needs zero_stage = 3 and nvme_path")
        return self


def in_bf16(config: DeepSpeedConfig, *, gpu: bool) -> bool:
    """Return True if the forward pass computes in bf16."""
    return config.precision == "bf16" or (config.precision == "auto" and gpu)


def lr_factor(step: int, total: int, config: DeepSpeedConfig) -> float:
    """Return the learning rate of a step, 0 <= step < total, as a fraction of the highest.

    Linear warm-up, then constant or cosine. Unlike the schedules of transformers, the first step has a learning rate
    above 0, and the last one has exactly `min_lr_ratio`.
    """
    warmup = math.ceil(total * config.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant" or total <= warmup + 1:
        return 1.0
    progress = (step - warmup) / (total - 1 - warmup)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def worker_environment(num_cpus: int, *, gpu: bool) -> dict[str, str]:
    """Return the environment variables of a training process, to be set before it starts."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # DeepSpeed calls functions that torch deprecates, and torch warns at every call.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning",
    }
    # With DS_ACCELERATOR set, DeepSpeed does not search for accelerators and does not warn that there are none.
    return thread_variables(num_cpus) | quiet | ({} if gpu else {"DS_ACCELERATOR": "cpu"})


def engine_settings(config: DeepSpeedConfig, *, gpu: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration dictionary."""
    bf16 = in_bf16(config, gpu=gpu)
    zero: dict[str, Any] = {"stage": config.zero_stage, "contiguous_gradients": True, "overlap_comm": False}
    if gpu and config.zero_stage >= 2:
        zero["overlap_comm"] = True
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 10_000
    if config.offload != "none":
        offload: dict[str, Any] = {"device": config.offload, "pin_memory": gpu}
        offload |= {"nvme_path": config.nvme_path} if config.offload == "nvme" else {}
        zero |= {"offload_optimizer": offload} | ({"offload_param": offload} if config.zero_stage == 3 else {})
    return {
        # Micro-batches vary in rows, and steps in micro-batches; the learner scales losses and triggers the steps.
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16 and config.zero_stage > 0},
        "torch_autocast": {"enabled": bf16 and config.zero_stage == 0, "dtype": "bfloat16"},
        # DeepSpeed compiles its CPU Adam on first use, with a compiler that the node may not have.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def frozen_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a frozen model with the precision and partitioning of `settings`."""
    zero = settings["zero_optimization"]
    if zero["stage"] < 3:
        zero = {"stage": 0}
    return settings | {"zero_optimization": {k: v for k, v in zero.items() if k != "offload_optimizer"}}
