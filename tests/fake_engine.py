"""An engine deployment for the ingress without a model, and an ingress that starts no engine."""

import asyncio

from vlgenrm_ray.records import JudgeCritique, Judgement
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.engine import ChatAnswer, ChatResult, ChatTask, ScoreTask
from vlgenrm_ray.serving.ingress import Ingress
from vlgenrm_ray.serving.model_version import ModelVersion

SLOW_S = 10.0
"""Seconds that the response "slow" takes."""


class FakeEngine:
    """The reward of a response is its own number; its critique states the size of the image's file."""

    async def judge(self, tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        if any(task.response == "slow" for task in tasks):
            await asyncio.sleep(SLOW_S)
        return model.name, [_judgement(task) for task in tasks]

    async def chat(self, task: ChatTask, model: ModelVersion) -> tuple[str, ChatResult]:
        text = f"{len(task.turns)} turns, {len(task.images)} images"
        answer = ChatAnswer(text=text, finish="stop", num_tokens=4)
        return model.name, ChatResult(status="ok", answers=(answer,) * task.sampling.n, num_prompt_tokens=9)

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        raise NotImplementedError


def _judgement(task: ScoreTask) -> Judgement:
    text = f"{len(task.images[0].data) if task.images else 0} bytes"
    critique = JudgeCritique(id="c0", text=text, verdict="yes", p_yes=0.5, verdict_mass=0.0, num_tokens=0, seed=0)
    reward = float(task.response) if task.response[0].isdigit() else 0.5
    return Judgement(id=task.item_id(), reward=reward, status="ok", critiques=(critique,))


class EnginelessIngress(Ingress):
    """An ingress that never probes its engine, which therefore never starts."""

    async def _probe(self) -> None:
        return
