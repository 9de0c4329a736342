"""TRL's GRPO and RLOO (1.10 to 1.16): `GRPOTrainer(reward_funcs=vlgenrm_reward)`, or
`trl grpo --reward_funcs vlgenrm_ray.adapters.trl.vlgenrm_reward`.

The data set's column `image` (one) or `images` (a list) holds the pictures, unless the prompts' messages do. A column
`reference`, where there is one, is shown to the judge.
No reward is None: TRL masks the sample. A service that cannot be reached raises, after retries.
"""

from collections.abc import Sequence
from typing import Any

from vlgenrm_ray.adapters.asking import ask
from vlgenrm_ray.adapters.connection import async_judge, judge
from vlgenrm_ray.adapters.failures import masked
from vlgenrm_ray.judge.label import Label
from vlgenrm_ray.judge.protocol import ScoreInput


def vlgenrm_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """A reward function of TRL."""
    replies = judge().score(_asks(prompts, completions, columns))
    _log(columns, [reply.verdict_mass for reply in replies])
    return masked(replies)


async def vlgenrm_reward_async(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """The same, run together with other asynchronous reward functions."""
    replies = await async_judge().score(_asks(prompts, completions, columns))
    _log(columns, [reply.verdict_mass for reply in replies])
    return masked(replies)


def _asks(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[ScoreInput]:
    rows = range(len(completions))
    references = columns.get("reference") or [None] * len(completions)
    return [
        ask(
            completions[i],
            prompt=prompts[i],
            images=_images(columns, i),
            label=Label(reference=references[i]),
        )
        for i in rows
    ]


def _images(columns: dict[str, Any], row: int) -> list[Any]:
    """The row's pictures."""
    if (images := columns.get("images")) is not None:
        return list(images[row] or ())
    column = columns.get("image")
    return [] if column is None or column[row] is None else [column[row]]


def _log(columns: dict[str, Any], masses: list[float]) -> None:
    if masses and (log_metric := columns.get("log_metric")) is not None:
        log_metric("vlgenrm/verdict_mass", sum(masses) / len(masses))
