"""Estimate of the GPU memory that a learner's worker needs, from a model's configuration alone.

Bytes per weight, for P weights of which T are trained, on N workers (ZeRO, arXiv 1910.02054):

    bf16, ZeRO 1-3   weights 2 P, gradients 2 T, fp32 master weights and two moments 12 T
    fp32, or ZeRO 0  weights 4 P, gradients 4 T, two moments 8 T (autocast: a bf16 copy 2 P for a moment, not counted)

ZeRO 1 divides masters and moments by N, ZeRO 2 also gradients, ZeRO 3 also weights. Activations are those of a decoder
with fused attention (34 bytes per token, layer and hidden unit, arXiv 2205.05198); with checkpointing 2, plus one whole
layer. Logits are those of a micro-batch whose tokens are all targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, in_bf16
from vlgenrm_ray.errors import InputError

_GB = 1e9
_ACTIVATION_BYTES = 34
_CHECKPOINT_BYTES = 2
_LOGIT_CHUNK_ROWS = 1024
"""Rows of logits in fp32 at a time, see `log_probs`."""
_BUFFERS_GB = 3.0
"""DeepSpeed's buckets and gathered layers, NCCL, the CUDA context and fragmentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Sizes of a model that decide a learner's memory."""

    num_weights: int
    num_vision_weights: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_lora_targets: int = 0
    """Sum over the linear layers of the language model of input plus output width: weights of adapters of rank 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerMemory:
    """Memory of one worker on its GPU, in GB (10^9 bytes)."""

    zero_stage: int
    weights: float
    gradients: float
    optimizer: float
    """Master weights and moments."""
    activations: float
    """With the logits of a micro-batch."""

    @property
    def total(self) -> float:
        """Return the sum, with buffers."""
        return self.weights + self.gradients + self.optimizer + self.activations + _BUFFERS_GB


def model_size(model: str) -> ModelSize:
    """Return the sizes of a model from its configuration, without weights.

    Args:
        model: Model folder, or hub name whose configuration is cached or can be downloaded.

    Raises:
        InputError: There is no configuration, or it is of no vision-language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            module: Any = AutoModelForImageTextToText.from_config(config)
    # The hub's client raises its own errors.
    except Exception as error:
        cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError(f"model {model}: no configuration ({cause}); download the model") from error
    text = config.get_text_config()
    linear = (m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear) and ".language_model." in n)
    return ModelSize(
        # Tied weights count once.
        num_weights=sum(parameter.numel() for parameter in module.parameters()),
        num_vision_weights=sum(p.numel() for name, p in module.named_parameters() if ".visual." in name),
        num_layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        num_lora_targets=sum(layer.in_features + layer.out_features for layer in linear),
    )


def estimate(
    size: ModelSize,
    config: DeepSpeedConfig,
    *,
    workers: int,
    tokens_per_batch: int,
    has_reference: bool = False,
    zero_stage: int | None = None,
) -> LearnerMemory:
    """Estimate the memory of one worker on a GPU.

    Args:
        size: Sizes of the model.
        config: Settings of the training.
        workers: Number of workers.
        tokens_per_batch: Tokens of a micro-batch.
        has_reference: The learner keeps a frozen copy of the initial weights; with adapters none is needed.
        zero_stage: ZeRO stage in place of that of the settings.
    """
    stage = config.zero_stage if zero_stage is None else zero_stage
    trained = size.num_weights - (size.num_vision_weights if config.freeze_vision else 0)
    if config.lora is not None:
        trained = config.lora.rank * size.num_lora_targets
    masters = in_bf16(config, gpu=True) and stage > 0
    weight_bytes, state_bytes = (2, 12) if masters else (4, 8)
    copies = 2 if has_reference and config.lora is None else 1
    divided = {level: workers if stage >= level else 1 for level in (1, 2, 3)}
    offloaded = config.offload != "none"
    per_unit = _CHECKPOINT_BYTES if config.gradient_checkpointing else _ACTIVATION_BYTES
    layer_units = size.num_layers * per_unit + (_ACTIVATION_BYTES if config.gradient_checkpointing else 0)
    # bf16 logits with their gradient, and a chunk in fp32 with its softmax and gradient.
    logits = size.vocab_size * (tokens_per_batch * 2 * 2 + min(tokens_per_batch, _LOGIT_CHUNK_ROWS) * 3 * 4)
    return LearnerMemory(
        zero_stage=stage,
        weights=0.0 if offloaded and stage == 3 else copies * weight_bytes * size.num_weights / divided[3] / _GB,
        gradients=weight_bytes * trained / divided[2] / _GB,
        optimizer=0.0 if offloaded and stage >= 2 else state_bytes * trained / divided[1] / _GB,
        activations=(tokens_per_batch * size.hidden_size * layer_units + logits) / _GB,
    )


def stages(
    size: ModelSize, config: DeepSpeedConfig, *, workers: int, tokens_per_batch: int, has_reference: bool = False
) -> Mapping[int, LearnerMemory]:
    """Estimate the memory for every ZeRO stage; arguments as for `estimate`."""
    plain = config.model_copy(update={"offload": "none"})
    return {
        stage: estimate(
            size,
            config if stage == config.zero_stage else plain,
            workers=workers,
            tokens_per_batch=tokens_per_batch,
            has_reference=has_reference,
            zero_stage=stage,
        )
        for stage in (0, 1, 2, 3)
    }


def is_local(model: str) -> bool:
    """Return whether a model's configuration can be read without a network."""
    if Path(model).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json"), str)
