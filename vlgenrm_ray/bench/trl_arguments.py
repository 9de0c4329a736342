"""A recipe of a policy's training, as arguments of TRL's GRPOTrainer. Pure."""

import math
from typing import Any, Literal

from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.engines.deepspeed_config import in_bf16
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.policy.config import PolicyConfig

Generation = Literal["transformers", "vllm"]
GENERATIONS: tuple[Generation, ...] = ("transformers", "vllm")


def arguments(config: PolicyRunConfig, *, generation: Generation, micro_batches: int) -> dict[str, Any]:
    """Of `GRPOConfig`, but the folder it writes to: the same steps, samples, loss and optimizer.

    `micro_batches`: of a step's samples. Raises InputError for what the trainer cannot do, or does otherwise.
    """
    policy = config.policy
    if wrong := _otherwise(policy):
        raise InputError(f"TRL's GRPOTrainer is no match for this recipe: {'; '.join(wrong)}")
    algorithm, engine, rollouts = policy.algorithm, policy.engine, policy.rollouts
    samples = policy.questions_per_step * rollouts.group_size
    if samples % micro_batches:
        raise InputError(f"{samples} samples a step cannot be dealt out to {micro_batches} micro-batches")
    found: dict[str, Any] = {
        "max_steps": policy.steps,
        "per_device_train_batch_size": samples // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "num_generations": rollouts.group_size,
        "max_completion_length": rollouts.max_tokens,
        "temperature": rollouts.temperature,
        "top_p": rollouts.top_p,
        "beta": algorithm.kl.coefficient,
        "use_bias_correction_kl": algorithm.kl.weighted,
        "epsilon": algorithm.clip_low,
        "epsilon_high": algorithm.clip_high,
        "importance_sampling_level": algorithm.ratio,
        "loss_type": {"tokens": "dapo", "sequences": "grpo", "constant": "dr_grpo"}[algorithm.normalise],
        "scale_rewards": algorithm.scale,
        "learning_rate": engine.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup", "cosine": "cosine"}[engine.schedule],
        "warmup_steps": math.ceil(policy.steps * engine.warmup_share),
        "weight_decay": engine.weight_decay,
        "adam_beta1": engine.betas[0],
        "adam_beta2": engine.betas[1],
        "max_grad_norm": engine.max_grad_norm,
        "optim": "adamw_torch_fused",
        "bf16": in_bf16(engine, gpu=False),
        "gradient_checkpointing": engine.gradient_checkpointing,
        "use_cpu": True,
        "shuffle_dataset": False,
        "seed": policy.seed,
        # What is no part of a step.
        "logging_strategy": "no",
        "save_strategy": "no",
        "log_multimodal": False,
        "report_to": [],
        "disable_tqdm": True,
    }
    if generation == "vllm":
        found |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": rollouts.engine.max_model_len}
        found["vllm_importance_sampling_correction"] = algorithm.importance is not None
        if (correction := algorithm.importance) is not None:
            found["vllm_importance_sampling_mode"] = f"{correction.level}_{correction.outside}"
            found["vllm_importance_sampling_clip_max"] = correction.high
            found["vllm_importance_sampling_clip_min"] = correction.low or None
    return found


def _otherwise(policy: PolicyConfig) -> list[str]:
    algorithm = policy.algorithm
    found = {
        "policy.algorithm.algorithm is not grpo": algorithm.algorithm != "grpo",
        "policy.algorithm.kl.estimator is not k3": algorithm.kl.coefficient > 0 and algorithm.kl.estimator != "k3",
        "policy.algorithm.resample_rounds is not 0": algorithm.resample_rounds > 0,
        "policy.algorithm.entropy_coefficient is not 0": algorithm.entropy_coefficient > 0,
        "policy.algorithm.overlong.handling is not keep": algorithm.overlong.handling != "keep",
        "policy.updates_per_step is not 1": policy.updates_per_step != 1,
        "policy.engine.lora is set": policy.engine.lora is not None,
    }
    return [what for what, true in found.items() if true]
