"""AReaL: episodes of its `VisionRLVRWorkflow`, which calls the reward in a process pool, and of the judge's workflow.

The inference engine answers with the sample's response. Prompt, decoding and the wrapper of the reward are AReaL's.
"""

# /// script
# dependencies = [
#     "areal==1.0.4", "aiofiles==25.1.0", "antlr4-python3-runtime==4.9.3", "blinker==1.9.0", "flask==3.1.3",
#     "hydra-core==1.3.2", "itsdangerous==2.2.0", "omegaconf==2.3.0", "orjson==3.13.0", "tenacity==9.2.1",
#     "torchdata==0.11.0",
# ]
# ///

import asyncio
from importlib.metadata import version
from typing import Any

from areal.api import ModelRequest, ModelResponse
from areal.api.cli_args import GenerationHyperparameters
from areal.utils.dynamic_import import import_from_string
from areal.workflow.vision_rlvr import VisionRLVRWorkflow
from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond


class ScriptedEngine:
    """Inference engine that answers with one text."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """Return the answer as tokens."""
        ids = request.tokenizer(self._text, add_special_tokens=False)["input_ids"]
        zeros = [0] * len(ids)
        return ModelResponse(
            input_tokens=request.input_ids, output_tokens=ids, output_logprobs=[0.0] * len(ids), output_versions=zeros
        )


def run(request: Request) -> dict[str, Outcome]:
    """Play one episode per sample, with AReaL's workflow and the reward function, then with the judge's workflow."""
    settings = {
        "gconfig": GenerationHyperparameters(),
        "tokenizer": request.model,
        "processor": request.model,
        "enable_thinking": False,
    }
    workflows = {
        "reward_fn": VisionRLVRWorkflow("vlgenrm_ray.adapters.areal.vlgenrm_reward", **settings),
        "workflow": import_from_string("vlgenrm_ray.adapters.areal.JudgeVisionRLVRWorkflow")(**settings),
    }
    return {name: play(workflow, request) for name, workflow in workflows.items()}


def play(workflow: VisionRLVRWorkflow, request: Request) -> Outcome:
    """Play all episodes of a workflow, at once as AReaL does."""

    async def reward(sample: Sample) -> float:
        episode = await workflow.arun_episode(ScriptedEngine(sample.response + END_OF_TURN), row(workflow, sample))
        return episode["rewards"].item()

    async def rewards() -> list[float]:
        return await asyncio.gather(*map(reward, request.samples))

    return Outcome(asyncio.run(rewards()), outcome_of(lambda: asyncio.run(reward(request.empty))))


def row(workflow: VisionRLVRWorkflow, sample: Sample) -> dict[str, Any]:
    """Return a row of AReaL's vision data sets: `messages` is text that the processor has rendered."""
    content = [{"type": "image"}, {"type": "text", "text": sample.question}]
    messages = workflow.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return {"messages": messages, "images": [sample.open_image()]}


if __name__ == "__main__":
    respond(version("areal"), run)
