"""verifiers (v1 and the rubrics before it), hence prime-rl.

v1: `--taskset.task.rewards.vlgenrm.fn vlgenrm_ray.adapters.verifiers.reward`, or call it from a `@vf.reward` method.
Rubrics: `vf.Rubric(funcs=[rubric_reward])`.
Images are those of the prompt's `image_url` parts. No reward raises, which is verifiers' own way: the rollout is
recorded as failed and not scored; VLGENRM_FAILED_REWARD is better left unset here.
"""

from typing import Any

from vlgenrm_ray.adapters.asking import ask, said
from vlgenrm_ray.adapters.connection import async_judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.judge.label import Label, read


async def reward(task: Any, trace: Any) -> float:
    """The reward of a trace's last reply to the task's prompt; `task` is the task's data."""
    label = Label(reference=read(getattr(task, "answer", None)).reference)
    return await _score(trace.last_reply, task.prompt, label)


async def rubric_reward(prompt: Any, completion: Any, answer: Any = "", info: Any = None, **_: Any) -> float:
    """A rubric's function; `info` may say question and images, see `judge/label.py`."""
    told = read(info)
    label = Label(question=told.question, images=told.images, reference=told.reference or read(answer).reference)
    return await _score(said(completion), prompt, label)


async def _score(response: str, prompt: Any, label: Label) -> float:
    (value,) = required(await async_judge().score([ask(response, prompt=prompt, label=label)]))
    return value
