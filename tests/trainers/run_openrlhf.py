"""OpenRLHF: its executor of single turns against `/get_reward`, and the executor of the adapter.

The rollout engine answers with the sample's response. OpenRLHF's own code reads the images, decodes the query,
posts it, and makes the training experience of the answer.
"""

# /// script
# dependencies = ["openrlhf==0.11.2", "pylatexenc==2.11"]
# ///

import asyncio
import os
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.trainer.ray.vllm_engine import _load_agent_executor
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoProcessor


class ScriptedEngine:
    """Rollout engine that answers with one text."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    async def generate(self, *_: Any, **__: Any) -> Any:
        """Return the answer in vLLM's form."""
        output = SimpleNamespace(token_ids=self._token_ids, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def run(request: Request) -> dict[str, Outcome]:
    """Roll out every sample with either entrance."""
    address = os.environ["VLGENRM_URL"].replace("://", f"://any:{os.environ['VLGENRM_TOKEN']}@")
    processor = AutoProcessor.from_pretrained(request.model)
    gateway = SingleTurnAgentExecutor(f"{address}/get_reward")
    adapter = _load_agent_executor(find_spec("vlgenrm_ray.adapters.openrlhf").origin)
    return {
        "/get_reward": roll_out(gateway, processor, request, with_label=True),
        "executor": roll_out(adapter, processor, request, with_label=False),
    }


def roll_out(executor: SingleTurnAgentExecutor, processor: Any, request: Request, *, with_label: bool) -> Outcome:
    """Roll out every sample and read the reward of its experience."""

    def rewards(sample: Sample) -> torch.Tensor | None:
        content = [{"type": "image"}, {"type": "text", "text": sample.question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        tokens = processor.tokenizer(sample.response + END_OF_TURN, add_special_tokens=False)["input_ids"]
        params = SimpleNamespace(max_tokens=256, logprobs=None)
        label = sample.label if with_label else ""
        record = asyncio.run(
            executor.execute(prompt, label, params, 2048, processor, ScriptedEngine(tokens), images=[sample.image])
        )
        return SamplesGenerator._process_response_into_experience(None, record).rewards

    scored = [rewards(sample).item() for sample in request.samples]
    return Outcome(scored, outcome_of(lambda: rewards(request.empty)))


if __name__ == "__main__":
    respond(version("openrlhf"), run)
