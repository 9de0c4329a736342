"""verifiers (run: 0.4.0), and thereby prime-rl.

`--env.taskset.task.rewards.vlgenrm.fn vlgenrm_ray.adapters.verifiers.reward`, or call it from a `@vf.reward` method.
Versions before 0.4 have rubrics: `vf.Rubric(funcs=[rubric_reward])`.
Images are the prompt's `image_url` parts (the task's `image` is a container's). An item without a reward raises, as is
verifiers' own convention: the rollout is recorded as failed and not scored. Leave VLGENRM_FAILED_REWARD unset here.
"""

from typing import Any

from vlgenrm_ray.adapters.clients import async_judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, response_text
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.judge.label import Label, read_label


async def reward(task: Any, trace: Any) -> float:
    """Return the reward of a trace's last reply to the task's prompt. `task` is the task's data."""
    label = Label(reference=read_label(getattr(task, "answer", None)).reference)
    return await _score(trace.last_reply, task.prompt, label)


async def rubric_reward(prompt: Any, completion: Any, answer: Any = "", info: Any = None, **_: Any) -> float:
    """Return the reward of a completion, as a rubric's function. `info` may be a label (`judge/label.py`)."""
    label = read_label(info)
    reference = label.reference or read_label(answer).reference
    label = Label(question=label.question, images=label.images, reference=reference)
    return await _score(response_text(completion), prompt, label)


async def _score(response: str, prompt: Any, label: Label) -> float:
    replies = await async_judge_client().score([build_score_input(response, prompt=prompt, label=label)])
    (value,) = required_rewards(replies)
    return value
