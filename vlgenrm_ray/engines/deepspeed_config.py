"""How a model learns: the settings, the learning rate's course, and what DeepSpeed is told of them."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from vlgenrm_ray.engines.environment import thread_variables
from vlgenrm_ray.settings import Settings


class LoraConfig(Settings):
    """Low-rank adapters (arXiv 2106.09685) on the language model's linear layers."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    """Regular expression over whole module names."""


class DeepSpeedConfig(Settings):
    """How a model learns."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What the workers share out: nothing, optimizer states (1), also gradients (2), also weights (3)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 keeps an fp32 master copy of the weights (ZeRO 1-3), or runs under autocast (ZeRO 0). `auto`: bf16 on GPUs,
    fp32 on CPUs, since most of them only emulate bf16, many times slower."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where optimizer states (and, under ZeRO 3, weights) live while unused; cpu needs ZeRO 2 or 3, nvme ZeRO 3."""
    nvme_path: str = ""
    """Folder on each node's fast disk, for offload = nvme."""
    learning_rate: float = Field(default=1e-5, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    min_lr_share: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of a cosine schedule, as a share of the highest."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    lora: LoraConfig | None = None
    """Train adapters only; None trains all weights."""
    freeze_vision: bool = False
    """Leave the vision tower (with its merger) as it is."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> "DeepSpeedConfig":
        if self.offload == "cpu" and self.zero_stage < 2:
            raise ValueError(f"offload = cpu needs zero_stage 2 or 3, got {self.zero_stage}")
        if self.offload == "nvme" and (self.zero_stage < 3 or not self.nvme_path):
            raise ValueError("offload = nvme needs zero_stage = 3 and nvme_path")
        return self


def in_bf16(config: DeepSpeedConfig, *, gpu: bool) -> bool:
    """Whether the forward pass computes in bf16."""
    return config.precision == "bf16" or (config.precision == "auto" and gpu)


def lr_share(step: int, total: int, config: DeepSpeedConfig) -> float:
    """Learning rate of step 0 <= step < total, as a share of the highest: linear warm-up, then constant or cosine."""
    warmup = math.ceil(total * config.warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant" or total <= warmup + 1:
        return 1.0
    progress = (step - warmup) / (total - 1 - warmup)
    return config.min_lr_share + (1 - config.min_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))


def worker_environment(num_cpus: int, *, gpu: bool) -> dict[str, str]:
    """Environment variables of a training process, to be set before it starts."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # torch deprecates what DeepSpeed calls, and says so at every call.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning",
    }
    # Told, DeepSpeed does not search for accelerators, and does not warn that it found none.
    return thread_variables(num_cpus) | quiet | ({} if gpu else {"DS_ACCELERATOR": "cpu"})


def engine_settings(config: DeepSpeedConfig, *, gpu: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration dictionary."""
    bf16 = in_bf16(config, gpu=gpu)
    zero: dict[str, Any] = {"stage": config.zero_stage, "contiguous_gradients": True, "overlap_comm": False}
    if gpu and config.zero_stage >= 2:
        zero["overlap_comm"] = True
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 10_000
    if config.offload != "none":
        place: dict[str, Any] = {"device": config.offload, "pin_memory": gpu}
        place |= {"nvme_path": config.nvme_path} if config.offload == "nvme" else {}
        zero |= {"offload_optimizer": place} | ({"offload_param": place} if config.zero_stage == 3 else {})
    return {
        # Micro-batches differ in rows and steps in micro-batches: the learner scales losses and says when to step.
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16 and config.zero_stage > 0},
        "torch_autocast": {"enabled": bf16 and config.zero_stage == 0, "dtype": "bfloat16"},
        # DeepSpeed's own CPU Adam is compiled on first use, with a compiler the node may not have.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def frozen_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration of a model beside one that learns by `settings`: equal in precision and sharing."""
    zero = settings["zero_optimization"]
    if zero["stage"] < 3:
        zero = {"stage": 0}
    return settings | {"zero_optimization": {k: v for k, v in zero.items() if k != "offload_optimizer"}}
