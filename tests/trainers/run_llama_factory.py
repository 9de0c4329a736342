"""LLaMA-Factory: `get_rewards` of its PPO trainer with `reward_model_type: api`.

The trainer decodes queries and responses and posts them to `/v1/score/evaluation`, without images.
"""

# /// script
# dependencies = ["llamafactory==0.9.5", "torchdata==0.11.0", "trl==0.24.0"]
# ///

import importlib.machinery
import os
import sys
import types
from importlib.metadata import version

from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond
from transformers import AutoTokenizer

# The newest releases of transformers and the like are above its bounds.
os.environ["DISABLE_VERSION_CHECK"] = "1"
# It imports torchaudio, which has no CPU build on PyPI, for data sets with sound.
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


def run(request: Request) -> dict[str, Outcome]:
    """Score all samples in one call without the image's placeholder, then one with it: that is no question of text."""
    import torch
    from llamafactory.train.ppo.trainer import CustomPPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(request.model)
    address = os.environ["VLGENRM_URL"].replace("://", f"://any:{os.environ['VLGENRM_TOKEN']}@")
    trainer = types.SimpleNamespace(
        finetuning_args=types.SimpleNamespace(reward_model_type="api"),
        reward_model=f"{address}/v1/score/evaluation",
        tokenizer=tokenizer,
    )

    def encode(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])

    def rewards(samples: list[Sample], image: str = "") -> list[float]:
        queries = [
            encode(f"<|im_start|>user\n{image}{sample.question}<|im_end|>\n<|im_start|>assistant\n")
            for sample in samples
        ]
        responses = [encode(sample.response + END_OF_TURN) for sample in samples]
        return CustomPPOTrainer.get_rewards(trainer, queries, responses).tolist()

    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    scores = rewards(request.samples)
    return {
        "empty response": Outcome(scores, outcome_of(lambda: rewards([request.empty]))),
        "image placeholder": Outcome(scores, outcome_of(lambda: rewards(request.samples[:1], placeholder))),
    }


if __name__ == "__main__":
    respond(version("llamafactory"), run)
