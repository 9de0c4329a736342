"""TRL's side of the policy bench: a recipe trained by GRPOTrainer, `python -m ... RUN GENERATION MICRO_BATCHES TARGET`.

RUN is the run folder of our own training; the recipe, and the questions in the order of their steps, come from there.
TARGET receives `metrics.jsonl`, with a line per step that has the same fields as ours.

TRL's colocated vLLM cannot sample from a vision-language model on a CPU as TRL 1.16 ships it. `patch_vllm_generation`
makes the three changes that are needed; each of them is in TRL's favour.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast

from vlgenrm_ray import config
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.data import images
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.deepspeed_config import in_bf16
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.rollouts import step_indices
from vlgenrm_ray.records import Question
from vlgenrm_ray.rewards.function import load_function

GenerationBackend = Literal["transformers", "vllm"]
GENERATION_BACKENDS: tuple[GenerationBackend, ...] = ("transformers", "vllm")


# -- arguments ---------------------------------------------------------------------------------------------------------


def grpo_arguments(training: PolicyRunConfig, *, generation: GenerationBackend, micro_batches: int) -> dict[str, Any]:
    """Translate a recipe into arguments of `GRPOConfig`: the same steps, samples, loss and optimizer.

    Args:
        training: Recipe.
        generation: Generation backend of the trainer.
        micro_batches: Micro-batches of a step.

    Returns:
        All arguments but `output_dir`.

    Raises:
        InputError: The recipe uses a setting that the trainer lacks or defines differently.
    """
    policy = training.policy
    if unsupported := _unsupported_settings(policy):
        raise InputError(f"TRL's GRPOTrainer cannot train this recipe: {'; '.join(unsupported)}")
    algorithm, engine, rollouts = policy.algorithm, policy.engine, policy.rollouts
    num_samples = policy.questions_per_step * rollouts.group_size
    if num_samples % micro_batches:
        raise InputError(f"{num_samples} samples a step cannot be divided into {micro_batches} micro-batches")
    arguments: dict[str, Any] = {
        "max_steps": policy.steps,
        "per_device_train_batch_size": num_samples // micro_batches,
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
        "warmup_steps": math.ceil(policy.steps * engine.warmup_ratio),
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
        # Logs and checkpoints are not part of a step.
        "logging_strategy": "no",
        "save_strategy": "no",
        "log_multimodal": False,
        "report_to": [],
        "disable_tqdm": True,
    }
    if generation == "vllm":
        arguments |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": rollouts.engine.max_model_len}
        arguments["vllm_importance_sampling_correction"] = algorithm.importance is not None
        if (correction := algorithm.importance) is not None:
            arguments["vllm_importance_sampling_mode"] = f"{correction.level}_{correction.outside}"
            arguments["vllm_importance_sampling_clip_max"] = correction.high
            arguments["vllm_importance_sampling_clip_min"] = correction.low or None
    return arguments


def _unsupported_settings(policy: PolicyConfig) -> list[str]:
    algorithm = policy.algorithm
    problems = {
        "policy.algorithm.algorithm is not grpo": algorithm.algorithm != "grpo",
        "policy.algorithm.kl.estimator is not k3": algorithm.kl.coefficient > 0 and algorithm.kl.estimator != "k3",
        "policy.algorithm.resample_rounds is not 0": algorithm.resample_rounds > 0,
        "policy.algorithm.entropy_coefficient is not 0": algorithm.entropy_coefficient > 0,
        "policy.algorithm.overlong.handling is not keep": algorithm.overlong.handling != "keep",
        "policy.updates_per_step is not 1": policy.updates_per_step != 1,
        "policy.engine.lora is set": policy.engine.lora is not None,
    }
    return [problem for problem, present in problems.items() if present]


# -- training ----------------------------------------------------------------------------------------------------------


def train_with_trl(run_folder: Path, generation: GenerationBackend, micro_batches: int, target: Path) -> None:
    """Train the recipe of a run folder and write a line of metrics per step.

    Args:
        run_folder: Run of our side.
        generation: Generation backend.
        micro_batches: Micro-batches of a step.
        target: Folder for the metrics and the trainer's files.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    training = config.load_policy(run_folder / "config.yaml")
    arguments = grpo_arguments(training, generation=generation, micro_batches=micro_batches)
    target.mkdir(parents=True, exist_ok=True)
    questions = _questions_by_step(training, list(StageFolder(run_folder / "pool").records(Question)))
    # Our learner holds fp32 weights too, with autocast where configured.
    model = AutoModelForImageTextToText.from_pretrained(training.base, dtype=torch.float32)
    if training.policy.engine.freeze_vision:
        model.model.visual.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(training.base)
    # TRL pads prompts on the left and assumes that the tokenizer does.
    processor.tokenizer.padding_side = "left"
    if arguments.get("use_vllm"):
        patch_vllm_generation(
            training.policy.rollouts.engine_config(training.base), image_token=processor.image_token_id
        )
    logger = _StepLogger(questions, training, target / "metrics.jsonl")

    class LogStep(TrainerCallback):  # type: ignore[misc]
        """Writes the metrics at the end of each step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            logger.end_step()

    def compute_rewards(completions: Any, completion_ids: Any, index: Sequence[int], **_: Any) -> list[float]:
        return logger.compute_rewards([messages[0]["content"] for messages in completions], completion_ids, index)

    rows = {
        "prompt": [[{"role": "user", "content": question.text}] for question in questions],
        "image": [images.read(question.image, training.policy.images) for question in questions],
        "index": list(range(len(questions))),
    }
    GRPOTrainer(
        model=model,
        reward_funcs=compute_rewards,
        processing_class=processor,
        train_dataset=Dataset.from_dict(rows),
        args=GRPOConfig(output_dir=str(target), **arguments),
        callbacks=[LogStep()],
    ).train()


def _questions_by_step(training: PolicyRunConfig, pool: Sequence[Question]) -> list[Question]:
    """Return the questions in the order of the steps of our own training."""
    policy = training.policy
    return [
        pool[index]
        for step in range(policy.steps)
        for index in step_indices(len(pool), policy.questions_per_step, seed=policy.seed, step=step)
    ]


class _StepLogger:
    """Computes rewards, and writes the metrics of each step."""

    def __init__(self, questions: Sequence[Question], training: PolicyRunConfig, path: Path) -> None:
        self._questions = questions
        self._measure = load_function(training.policy.evaluation.measure)
        self._path = path
        self._step = 0
        self._lap_start = time.monotonic()
        self._line: dict[str, Any] = {}

    def compute_rewards(
        self, texts: Sequence[str], tokens: Sequence[Sequence[int]], indices: Sequence[int]
    ) -> list[float]:
        """Compute the rewards of a step's samples; `indices` are positions of their questions."""
        start = time.monotonic()
        rewards = [
            float(cast("float", self._measure(self._questions[index], text)))
            for index, text in zip(indices, texts, strict=True)
        ]
        end = time.monotonic()
        self._line = {
            "samples": len(texts),
            "length": sum(map(len, tokens)) / len(tokens),
            "reward": sum(rewards) / len(rewards),
            # Sampling includes the log-probabilities of the reference model.
            "seconds": {"sampling": start - self._lap_start, "scoring": end - start},
        }
        self._lap_start = end
        return rewards

    def end_step(self) -> None:
        """Write the line of a step; `learn` is everything after the rewards."""
        now = time.monotonic()
        self._line["seconds"]["learn"] = now - self._lap_start
        self._lap_start, self._step = now, self._step + 1
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": self._step, "timestamp": time.time()} | self._line) + "\n")


# -- vLLM in TRL's process ---------------------------------------------------------------------------------------------


def patch_vllm_generation(engine: VllmConfig, *, image_token: int) -> None:
    """Patch TRL's vLLM generation in this process.

    Args:
        engine: Settings of the engine.
        image_token: Id of the placeholder token of images.
    """
    from trl.generation import vllm_generation

    module = cast("Any", vllm_generation)
    generation = module.VLLMGeneration
    generate = generation.generate

    def sync_weights(self: Any) -> None:
        """Load all weights by vLLM's own method.

        TRL assigns them to vLLM's layers one by one, but on a CPU these have packed and dropped their weights.
        """
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._iter_named_params()})
        self.llm.reset_prefix_cache()

    def generate_with_single_placeholders(self: Any, prompts: Sequence[Sequence[int]], *rest: Any, **named: Any) -> Any:
        """Pass one placeholder per image.

        TRL passes one per token of an image, where vLLM expects a single one and repeats it.
        https://github.com/huggingface/trl/issues/6294
        """
        return generate(self, [collapse_placeholders(ids, image_token) for ids in prompts], *rest, **named)

    # TRL cannot set how the engine computes: by default in the model folder's bf16, and compiled. Arguments that TRL
    # does set override ours.
    arguments = engine_arguments(engine, Path(engine.model))
    module.LLM = partial(module.LLM, **arguments)
    generation.sync_weights, generation.generate = sync_weights, generate_with_single_placeholders


def collapse_placeholders(ids: Sequence[int], image_token: int) -> list[int]:
    """Replace each run of placeholders in a prompt by a single one."""
    return [id for id, run in groupby(ids) for _ in ([0] if id == image_token else run)]


if __name__ == "__main__":
    train_with_trl(Path(sys.argv[1]), cast("GenerationBackend", sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
