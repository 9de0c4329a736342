"""verl: `RewardLoopManager` with its workers on Ray, once with the reward function and once with the reward manager.

The configuration is verl's own `ppo_trainer` with the overrides of a launch command.
"""

# /// script
# dependencies = [
#     "verl==0.9.1", "antlr4-python3-runtime==4.9.3", "codetiming==1.4.0", "hydra-core==1.3.2", "omegaconf==2.3.0",
#     "orjson==3.13.0", "pylatexenc==2.11", "pyvers==0.2.3", "tensordict==0.10.0", "torchdata==0.11.0",
# ]
# ///

import os
from importlib.metadata import version
from typing import Any

# Where this package is installed, its entry point `verl.plugins` does the same.
os.environ["VERL_USE_EXTERNAL_MODULES"] = "vlgenrm_ray.adapters.verl"

import numpy as np
import ray
import torch
from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopManager

ENTRANCES = {
    "function": ["reward.custom_reward_function.path=pkg://vlgenrm_ray.adapters.verl"],
    "manager": ["reward.reward_manager.name=vlgenrm"],
}


def run(request: Request) -> dict[str, Outcome]:
    """Score the samples as one batch with either entrance."""
    ray.init("local", num_cpus=2, include_dashboard=False)
    tokenizer = AutoTokenizer.from_pretrained(request.model)
    return {name: run_entrance(name, overrides, request, tokenizer) for name, overrides in ENTRANCES.items()}


def run_entrance(name: str, overrides: list[str], request: Request, tokenizer: Any) -> Outcome:
    """Score the samples with one entrance."""
    common = [f"actor_rollout_ref.model.path={request.model}", "reward.num_workers=1"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [*common, *overrides])
    manager = RewardLoopManager(config)

    def rewards(samples: list[Sample]) -> list[float]:
        batch = manager.compute_rm_score(build_batch(samples, tokenizer, with_label=name == "function"))
        return batch.batch["rm_scores"].sum(-1).tolist()

    outcome = Outcome(rewards(request.samples), outcome_of(lambda: rewards([request.empty])))
    for worker in manager.reward_loop_workers:
        ray.kill(worker)
    return outcome


def build_batch(samples: list[Sample], tokenizer: Any, *, with_label: bool) -> DataProto:
    """Return samples as the rollout leaves them: padded tokens, the row's columns, and the prompt with its image."""
    answers = [tokenizer(s.response + END_OF_TURN, add_special_tokens=False)["input_ids"] for s in samples]
    prompts = [tokenizer(s.question, add_special_tokens=False)["input_ids"] for s in samples]
    length, prompt_length = max(map(len, answers)), max(map(len, prompts))
    pad = tokenizer.pad_token_id
    responses = torch.tensor([ids + [pad] * (length - len(ids)) for ids in answers])
    padded = torch.tensor([[pad] * (prompt_length - len(ids)) + ids for ids in prompts])
    mask = torch.tensor(
        [
            [0] * (prompt_length - len(prompt)) + [1] * (len(prompt) + len(ids)) + [0] * (length - len(ids))
            for prompt, ids in zip(prompts, answers, strict=True)
        ]
    )
    columns: dict[str, list[Any]] = {
        "data_source": ["shapes"] * len(samples),
        "reward_model": [{"style": "rule", "ground_truth": None} for _ in samples],
        "extra_info": [{"question": s.question, "image": s.data_url} if with_label else {} for s in samples],
        "raw_prompt": [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": s.open_image()}, {"type": "text", "text": s.question}],
                }
            ]
            for s in samples
        ],
    }
    arrays = {name: np.fromiter(values, dtype=object, count=len(values)) for name, values in columns.items()}
    tensors = {"prompts": padded, "responses": responses, "attention_mask": mask}
    return DataProto(batch=TensorDict(tensors, batch_size=len(samples)), non_tensor_batch=arrays)


if __name__ == "__main__":
    respond(version("verl"), run)
